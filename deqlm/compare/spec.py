"""What is typed on the command line, as objects: ``anderson:memory=5,damping=0.8,broyden``."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch

from deqlm.compare.problem import PROBLEMS, TOLERANCES, Problem, label_of
from deqlm.compare.problems.user import UserProblem, load_callable
from deqlm_solvers import Options, Registry
from deqlm_solvers.checks import suggest

__all__ = ["make_from", "parse_device", "parse_dtype", "parse_problem", "split_specs", "to_problem", "to_rows"]

T = TypeVar("T", bound=Options)


def split_specs(text: str) -> list[str]:
    """Split a comma-separated list of ``name:key=value,key=value``; ``key=value`` belongs to the name before it.

    Raises:
        ValueError: the list starts with an option, or an item is empty.

    Example:
        >>> split_specs("anderson:memory=5,damping=0.8,broyden")
        ['anderson:memory=5,damping=0.8', 'broyden']
    """
    specs: list[str] = []
    for item in text.split(","):
        item = item.strip()
        if not item:
            raise ValueError(f"an empty name in {text!r}")
        if "=" in item and ":" not in item.split("=")[0]:
            if not specs:
                raise ValueError(f"option {item!r} stands before any name; write name:{item}")
            specs[-1] += ("," if "=" in specs[-1] else ":") + item
        else:
            specs.append(item)
    return specs


def make_from(registry: Registry[T], spec: str) -> T:
    """Return an object of ``registry`` from ``name`` or ``name:key=value,...``.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: an unknown option or a value that breaks its rule.

    Example:
        >>> from deqlm_solvers import SOLVERS
        >>> make_from(SOLVERS, "anderson:memory=5").memory
        5
    """
    name, _, rest = spec.partition(":")
    return registry.make({"name": name, **_options(rest)})


def parse_problem(spec: str) -> Problem:
    """Return a problem from ``name:key=value,...`` or ``module:callable``.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: an unknown option, a value that breaks its rule, or nothing to import.
    """
    name, colon, rest = spec.partition(":")
    head = rest.partition(":")[0]
    if not colon or "=" in head:
        if name not in PROBLEMS:
            raise KeyError(f"unknown problem {name!r}: {suggest(name, PROBLEMS)}, or your own module:callable")
        return make_from(PROBLEMS, spec)
    attribute, _, options = rest.partition(":")
    where = f"{name}:{attribute}"
    return UserProblem(make=load_callable(where), shown=spec, options=_options(options))


def parse_device(name: str | torch.device) -> torch.device:
    """Return a device that this machine has.

    Raises:
        ValueError: no such kind of device, or none of it here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {str(name)!r}: {suggest(str(name), ('cpu', 'cuda', 'mps'))}") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, True) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {str(name)!r} is not available here; `deqlm env` lists what is")
    return device


def to_problem(given: Any) -> Problem:
    """Return a problem from an object, a spec, or a factory that returns ``(f, z0)``.

    Raises:
        TypeError: anything else.
    """
    if isinstance(given, Problem):
        return given
    if isinstance(given, str):
        return parse_problem(given)
    if callable(given):
        return UserProblem(make=given)
    raise TypeError(f"a problem must be a name, a Problem or a factory of (f, z0), got {given!r}")


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return one of the dtypes a comparison can run in.

    Raises:
        ValueError: any other; the message names the nearest one.
    """
    known = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
    text = str(name).removeprefix("torch.")
    if text not in known:
        raise ValueError(f"unknown dtype {text!r}: {suggest(text, known)}")
    return known[text]


def to_rows(
    registry: Registry[T], given: Iterable[str | Mapping[str, Any] | T] | None
) -> list[tuple[str, Callable[[], T]]]:
    """Return (label, maker) per row of a table; None takes every registered name.

    A maker may raise what a plugin's import raises: that belongs into its row and not before the run.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: bad options of something that is installed, or a row asked for twice.
    """
    rows: list[tuple[str, Callable[[], T]]] = []
    for item in registry if given is None else given:
        if isinstance(item, registry.base):
            rows.append((label_of(item), lambda item=item: item))
            continue
        spec = item if isinstance(item, str) else _spec_of(item)
        name = spec.partition(":")[0]
        if name not in registry:
            raise KeyError(f"unknown {registry.kind} {name!r}: {suggest(name, registry)}")
        if given is not None:
            with contextlib.suppress(ImportError):
                make_from(registry, spec)
        rows.append((spec, lambda spec=spec: make_from(registry, spec)))
    labels = [label for label, _ in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{registry.kind} {label!r} is asked for twice")
    return rows


def _spec_of(item: Any) -> str:
    values = dict(item)
    name = str(values.pop("name", ""))
    tail = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}:{tail}" if tail else name


def _options(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"an option must be key=value, got {item!r}")
        values[key.strip()] = _literal(value.strip())
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
