"""What a user brings: a function named as ``module:callable`` or ``path/to/file.py:callable``, with its options."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from deqlm.comparison.problem import Family
from deqlm.comparison.settings import Settings
from deqlm_solvers import options
from deqlm_solvers.core.checks import require, suggest

__all__ = ["FromFactory", "load_callable"]


@options
class FromFactory(Family):
    """A family that a user's function makes, called with those of the keywords dtype, device, batch, seed it accepts.

    Args:
        make: the function.
        shown: name in tables; None takes the function's own.
        options: further keywords for ``make``; they come before what the comparison offers.

    Raises:
        TypeError: an option that ``make`` does not take.
    """

    make: Callable[..., Any]
    shown: str | None = None
    options: Mapping[str, Any] | None = None

    own: ClassVar[str] = "problem"

    def __post_init__(self) -> None:
        known = _keywords(self.make)
        for key in self.options or {}:
            if known is not None and key not in known:
                raise TypeError(f"{self.label} got an unknown option {key!r}: {suggest(key, known)}")

    @property
    def title(self) -> str:
        """First line of the function's docstring."""
        lines = (inspect.getdoc(self.make) or "").strip().splitlines()
        return lines[0].rstrip(".") if lines else f"your own {self.own}"

    @property
    def label(self) -> str:
        """``module:callable`` as it was typed."""
        return self.shown or getattr(self.make, "__name__", self.own)

    def made(self, settings: Settings) -> Any:
        """Call the function with what it accepts of the settings, and with its options."""
        known = inspect.signature(self.make).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
        offered = {name: getattr(settings, name) for name in ("dtype", "device", "batch", "seed")}
        wanted = {name: value for name, value in offered.items() if name in known or takes_all}
        if wanted.get("batch", 0) is None:
            del wanted["batch"]
        return self.make(**{**wanted, **(self.options or {})})


def _keywords(make: Callable[..., Any]) -> list[str] | None:
    """Return the keywords that ``make`` takes; None where it takes all, or does not say."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def load_callable(spec: str) -> Callable[..., Any]:
    """Import ``module:callable``; the module may be a path that ends in .py, and the current directory is searched.

    Raises:
        ValueError: no such module, file or callable; the message names the nearest one.
    """
    where, _, attribute = spec.rpartition(":")
    require(bool(where and attribute), "problem", spec, "module:callable or file.py:callable")
    module = _load_file(where) if where.endswith(".py") else _load_module(where, spec)
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = get_close_matches(attribute, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where} has no callable {attribute!r}{hint}")
    return found


def _load_module(name: str, spec: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing == name or name.startswith(f"{missing}."):
            raise ValueError(
                f"no module {missing!r} for the problem {spec!r}; it is looked up from {os.getcwd()}"
            ) from None
        raise ValueError(f"the module of {spec!r} needs {missing!r}, which is not installed") from None
    finally:
        sys.path.remove(os.getcwd())


def _load_file(path: str) -> Any:
    file = Path(path)
    require(file.is_file(), "problem file", path, "an existing file")
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
