"""What is compared on, from what was typed or given: a name with options, an object, or a user's own function."""

from __future__ import annotations

from typing import Any, TypeVar

from deqlm.comparison.problem import PROBLEMS, Family, Problem
from deqlm.comparison.problems.factory import FromFactory, load_callable
from deqlm.comparison.problems.sequences import SEQUENCES, Sequence, UserSequence
from deqlm.comparison.problems.user import UserProblem
from deqlm.comparison.spec import make_from, read_options
from deqlm_solvers import Registry
from deqlm_solvers.core.checks import suggest

__all__ = ["to_problem", "to_sequence"]

T = TypeVar("T", bound=Family)


def to_problem(given: Any) -> Problem:
    """Return a problem from an object, a spec, or a factory that returns ``(f, z0)``.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: an unknown option, a value that breaks its rule, nothing to import, or anything else.
    """
    return _of(given, PROBLEMS, UserProblem, "a name, a Problem or a factory of (f, z0)")  # type: ignore[return-value]


def to_sequence(given: Any) -> Sequence:
    """Return a sequence from an object, a spec, or a factory of pairs ``(f, z0)``.

    Raises:
        KeyError, TypeError, ValueError: as for `to_problem`.
    """
    rule = "a name, a Sequence or a factory of pairs (f, z0)"
    return _of(given, SEQUENCES, UserSequence, rule)  # type: ignore[return-value]


def _of(given: Any, registry: Registry[T], own: type[FromFactory], rule: str) -> T | FromFactory:
    if isinstance(given, registry.base):
        return given
    if isinstance(given, str):
        return _read(given, registry, own)
    if callable(given):
        return own(make=given)
    raise TypeError(f"a {registry.kind} must be {rule}, got {given!r}")


def _read(spec: str, registry: Registry[T], own: type[FromFactory]) -> T | FromFactory:
    """Return what ``name:key=value,...`` of the registry is, or the user's ``module:callable:key=value,...``."""
    name, colon, rest = spec.partition(":")
    if name.endswith(".py") and not colon:
        raise ValueError(f"{registry.kind} {name!r} is a file, name a function in it: {name}:make")
    attribute, _, options = rest.partition(":")
    if colon and "=" not in attribute:
        return own(make=load_callable(f"{name}:{attribute}"), shown=spec, options=read_options(options))
    if name not in registry:
        raise KeyError(f"unknown {registry.kind} {name!r}: {suggest(name, registry)}, or your own module:callable")
    return make_from(registry, spec)
