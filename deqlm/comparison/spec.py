"""What is typed on the command line, as objects: ``anderson:memory=5,damping=0.8,broyden``."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, TypeVar

from deqlm.comparison.problem import label_of
from deqlm_solvers import Options, Registry
from deqlm_solvers.core.checks import suggest

__all__ = ["PluginError", "load", "make_from", "read_options", "split_specs", "to_list", "to_rows"]

T = TypeVar("T", bound=Options)


WORDS = {"float": "a number", "int": "a whole number", "bool": "True or False"}
"""Types of options as a user reads them."""

TAKES_TEXT = re.compile(r"\b(str|Literal|Any)\b")


class PluginError(Exception):
    """A plugin that is installed and cannot be used; the message names its entry point."""


def to_list(given: Any) -> list[Any] | None:
    """Return what was asked for as a list: text is split at its commas, a lone object is a list of one.

    Examples:
        >>> to_list("anderson:memory=5,broyden")
        ['anderson:memory=5', 'broyden']
    """
    if given is None:
        return None
    if isinstance(given, str):
        return split_specs(given)
    if isinstance(given, Options | Mapping) or callable(given):
        return [given]
    return list(given)


def split_specs(text: str) -> list[str]:
    """Split a comma-separated list of ``name:key=value,key=value``; ``key=value`` belongs to the name before it.

    Raises:
        ValueError: the list starts with an option, or an item is empty.

    Examples:
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


def load(registry: Registry[T], name: str) -> type[T]:
    """Return the class of a name that ``registry`` has.

    Raises:
        ImportError: a plugin whose import fails; the message names its entry point.
        PluginError: a plugin that raises anything else, or is no class of the registry's kind.
    """
    try:
        return registry[name]
    except ImportError:
        raise
    except Exception as error:  # a plugin may raise anything when it is imported
        where = ", ".join(point.value for point in entry_points(group=registry.group, name=name))
        raise PluginError(
            f"{registry.kind} {name!r} of {where} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def make_from(registry: Registry[T], spec: str) -> T:
    """Return an object of ``registry`` from ``name`` or ``name:key=value,...``.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: an unknown option or a value that breaks its rule.
        ImportError, PluginError: a plugin that cannot be imported.

    Examples:
        >>> from deqlm_solvers import SOLVERS
        >>> make_from(SOLVERS, "anderson:memory=5").memory
        5
    """
    name, _, rest = spec.partition(":")
    if name not in registry:
        raise KeyError(f"unknown {registry.kind} {name!r}: {suggest(name, registry)}")
    cls, given = load(registry, name), read_options(rest)
    try:
        return cls(**given)
    except TypeError as error:
        raise _wrong_type(cls, given) or error from None


def to_rows(
    registry: Registry[T], given: Iterable[str | Mapping[str, Any] | T] | str | Mapping[str, Any] | T | None
) -> list[tuple[str, Callable[[], T]]]:
    """Return (label, maker) per row of a table; None takes every registered name.

    What was asked for by name is made once, so that mistakes are found before the run. Where everything is taken, a
    maker may raise what a plugin's import raises: that belongs into its row.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: bad options, or a row asked for twice.
        ImportError, PluginError: a plugin that was named and cannot be imported.
    """
    rows: list[tuple[str, Callable[[], T]]] = []
    asked = to_list(given)
    for item in registry if asked is None else asked:
        if isinstance(item, registry.base):
            rows.append((label_of(item), lambda item=item: item))
            continue
        if not isinstance(item, str | Mapping):
            registry.make(item)  # raises, and says what would do
        spec = item if isinstance(item, str) else _spec_of(item)
        if asked is not None:
            make_from(registry, spec)
        rows.append((spec, lambda spec=spec: make_from(registry, spec)))
    labels = [label for label, _ in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{registry.kind} {label!r} is asked for twice")
    return rows


def read_options(text: str) -> dict[str, Any]:
    """Return the options of ``key=value,...``.

    Raises:
        ValueError: an item without a value.

    Examples:
        >>> read_options("memory=5,impl=torch")
        {'memory': 5, 'impl': 'torch'}
    """
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"an option must be key=value, got {item!r}")
        values[key.strip()] = _literal(value.strip())
    return values


def _wrong_type(cls: type[Options], given: Mapping[str, Any]) -> ValueError | None:
    """Return which option has a value of the wrong kind, for a class that fails on it without saying so."""
    kinds = {f.name: str(f.type) for f in fields(cls) if f.name in given}  # type: ignore[arg-type]
    if set(kinds) != set(given):
        return None
    texts = [key for key, kind in kinds.items() if isinstance(given[key], str) and not TAKES_TEXT.search(kind)]
    guilty = texts or (list(given) if len(given) == 1 else [])
    if not guilty:
        return None
    key = guilty[0]
    words = [WORDS.get(kind, kind) for kind in kinds[key].split(" | ")]
    return ValueError(f"{key} must be {' or '.join(words)}, got {given[key]!r}")


def _spec_of(item: Any) -> str:
    values = dict(item)
    name = str(values.pop("name", ""))
    tail = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}:{tail}" if tail else name


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
