"""What a registry holds, as text."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from deqlm.comparison.spec import PluginError, load
from deqlm.reporting.table import explained, terminal_width
from deqlm_solvers import GUARANTEES, Options, Registry

__all__ = ["add_listing", "describe", "list_registry"]


def add_listing(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> None:
    """Add a subcommand that lists a registry."""
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}. Plugins of installed packages are listed too."
    )
    parser.add_argument("--names", action="store_true", help="names only, one per line")
    parser.set_defaults(run=run)


def list_registry(registry: Registry[Any], names_only: bool) -> str:
    """Return every entry with its first docstring line, options and guarantees; what cannot be imported says why.

    Only our own classes go through the contract suite; what others promise is called declared.
    """
    if names_only:
        return "\n".join(registry)
    parts = [describe(registry, name) for name in registry]
    classes = [cls for name in registry if (cls := _loaded(registry, name)) is not None]
    promised = {promise for cls in classes for promise in _guarantees(cls)}
    if promised:
        tail = "" if all(_is_ours(cls) for cls in classes) else "; declared ones are the word of their author"
        parts.append(f"guarantees, tested by the contract suite{tail}:")
        told = [(f"  {name}", GUARANTEES[name]) for name in sorted(promised) if name in GUARANTEES]
        parts[-1] += "\n" + explained(told, terminal_width())
    return "\n\n".join(parts)


def describe(registry: Registry[Any], name: str) -> str:
    """Return name, first docstring line, options with defaults, and guarantees of one entry."""
    try:
        cls = load(registry, name)
    except (ImportError, PluginError) as error:
        return "\n".join([name, *_wrapped(str(error))])
    lines = [name, *_wrapped(f"{_first_line(cls)}")]
    settings = [f"{f.name}={_default(f)}" for f in fields(cls)]
    lines += _wrapped(f"options: {', '.join(settings) or 'none'}")
    promises = sorted(_guarantees(cls))
    kind = "guarantees" if _is_ours(cls) else "declared guarantees"
    if promises:
        lines += _wrapped(f"{kind}: {', '.join(promises)}")
    if getattr(cls, "exact", False):
        lines += _wrapped(f"{kind}: the implicit gradient up to tolerances at a converged point")
    return "\n".join(lines)


def _loaded(registry: Registry[Any], name: str) -> type | None:
    try:
        return load(registry, name)
    except (ImportError, PluginError):
        return None


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("deqlm", "deqlm_solvers")


def _guarantees(cls: type) -> frozenset[str]:
    return getattr(cls, "guarantees", frozenset())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, terminal_width(), initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def _first_line(cls: type) -> str:
    lines = (inspect.getdoc(cls) or "no description").strip().splitlines()
    return lines[0]


def _default(field: Any) -> str:
    if field.default is MISSING:
        return "(required)" if field.default_factory is MISSING else repr(field.default_factory())
    return _short(field.default)


def _short(value: Any) -> str:
    """Return an option's value; nested options only with what differs from their defaults."""
    if not isinstance(value, Options):
        return repr(value)
    known: Any = fields(value)  # type: ignore[arg-type]
    given = [f"{f.name}={_short(getattr(value, f.name))}" for f in known if getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(given)})"
