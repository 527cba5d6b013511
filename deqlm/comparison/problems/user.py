"""The user's own map: ``module:callable`` or ``path/to/file.py:callable``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.comparison.problem import Case, Problem, Setting
from deqlm.comparison.problems.equation import Equation, refuse_solvers
from deqlm.deq import DEQ
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Map, options
from deqlm_solvers.core.checks import require, suggest

__all__ = ["UserProblem", "call_with", "load_callable"]


@options
class UserProblem(Problem):
    """Your own map.

    ``make`` is called with those of the keywords ``dtype``, ``device``, ``batch`` and ``seed`` that it accepts, and
    with ``options``; it returns ``(f, z0)``: a callable (or `nn.Module`) and a start of the same structure, a tensor or
    a tree of tensors with the batch first. torch's generator is seeded before the call. A z0 of another dtype is cast.
    Of ``(deq, x)``, a `DEQ` and its input, the equation z = layer(z + x) is the map, and the start is that of the DEQ.

    The true residual needs f in float64: a module is copied and widened, any other f is called with a float64 z. Where
    it refuses or returns another dtype, the residual is taken in f's own dtype and the table says so.

    Args:
        make: the factory.
        shown: name in tables; None takes the factory's own.
        options: further keywords for ``make``; they come before what the comparison offers.

    Raises:
        TypeError: an option that ``make`` does not take.

    Examples:
        >>> from deqlm.comparison import UserProblem, compare
        >>> def make(dtype, width=4):
        ...     layer = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh())
        ...     return layer.to(dtype), torch.zeros(2, width, dtype=dtype)
        >>> result = compare(UserProblem(make=make, options={"width": 3}), "anderson", repeats=1, progress=False)
        >>> result["make"].unknowns, result["make"].entry("anderson").outcome
        (3, 'solved')
    """

    make: Callable[..., Any]
    shown: str | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        known = _keywords(self.make)
        for key in self.options or {}:
            if known is not None and key not in known:
                raise TypeError(f"{self.label} got an unknown option {key!r}: {suggest(key, known)}")

    @property
    def title(self) -> str:
        """First line of the factory's docstring."""
        lines = (inspect.getdoc(self.make) or "").strip().splitlines()
        return lines[0].rstrip(".") if lines else "your own map"

    @property
    def label(self) -> str:
        """``module:callable`` as it was typed."""
        return self.shown or getattr(self.make, "__name__", "problem")

    def build(self, setting: Setting) -> Case:
        f, state = self.call(setting)
        state = _cast(state, setting.dtype, setting.device)
        notes, batch_dims = [], None
        if isinstance(f, DEQ):
            notes.append(f"{self.label} is a DEQ: solved is its equation at x, with none of its own settings")
            f, batch_dims = Equation(f, state), f.batch_dims
            state = f.start()
        else:
            refuse_solvers(f, self.label)
        rows = Rows(state, batch_dims)
        packed = RowMap(rows, f, ())
        exact, widened = _exact(f, state, rows, batch_dims)
        if widened is None:
            notes.append(f"{self.label} does not run in float64: residual in its own dtype")
        parameters = tuple(f.parameters()) if isinstance(f, nn.Module) else ()
        return Case(
            f=packed,
            exact=exact,
            z0=rows.z0.detach(),
            max_iter=self.budget(setting),
            parameters=parameters,
            exact_parameters=tuple(widened.parameters()) if isinstance(widened, nn.Module) else (),
            note="\n".join(notes),
        )

    def call(self, setting: Setting) -> tuple[Callable[..., Any], Any]:
        """Call the factory with what it accepts of the setting; return its (f, z0) or (deq, x).

        Raises:
            ValueError: it returns anything else.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            made = call_with(self.make, setting, self.options)
        ok = isinstance(made, tuple) and len(made) == 2 and callable(made[0])
        rule = "a pair (f, z0) with a callable f, or (deq, x) with a DEQ and its input"
        got = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        require(ok, f"the result of {self.label}", got, rule)
        return made


def call_with(make: Callable[..., Any], setting: Setting, options: Mapping[str, Any] | None = None) -> Any:
    """Call a factory with what it accepts of the setting, and with ``options``."""
    offered = {"dtype": setting.dtype, "device": setting.device, "batch": setting.batch, "seed": setting.seed}
    known = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    wanted = {k: v for k, v in offered.items() if k in known or takes_all}
    if wanted.get("batch", 0) is None:
        del wanted["batch"]
    return make(**{**wanted, **(options or {})})


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


def _cast(state: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a tree of tensors in another floating dtype."""
    if isinstance(state, Tensor):
        return state.detach().to(device, dtype) if state.is_floating_point() else state
    if isinstance(state, Mapping):
        return {key: _cast(value, dtype, device) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(_cast(value, dtype, device) for value in state)
    return state


def _exact(
    f: Callable[..., Any], state: Any, rows: Rows, batch_dims: int | None
) -> tuple[Map, Callable[..., Any] | None]:
    """Return f as a map on float64 rows, and the widened f, or None where f keeps its own dtype."""
    wide = _cast(state, torch.float64, rows.device)
    wide_rows = Rows(wide, batch_dims)
    widened = copy.deepcopy(f).double() if isinstance(f, nn.Module) else f
    try:
        with torch.no_grad():
            wide_rows.pack(widened(wide))
    except (RuntimeError, TypeError, ValueError):
        own = RowMap(rows, f, ())
        return lambda z: own(z.to(rows.dtype)).double(), None
    return RowMap(wide_rows, widened, ()), widened
