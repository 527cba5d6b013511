"""Compare solvers on the map, or on the DEQ, that the caller holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

from deqlm.comparison.problems.user import UserProblem
from deqlm.comparison.run import Each
from deqlm.comparison.settings import Settings, SettingsOptions
from deqlm.comparison.solvers.result import Comparison
from deqlm.comparison.solvers.run import compare as compare_on_problems
from deqlm.deq import DEQ
from deqlm.wrap.trees import tensors
from deqlm_solvers import Solver

__all__ = ["compare"]

OF_THE_STATE = ("dtype", "device", "batch", "seed", "quick")
"""Settings that belong to problems which are drawn."""


def compare(
    f: Callable[..., Any],
    z0: Any,
    solvers: Iterable[str | Mapping[str, Any] | Solver] | str | Mapping[str, Any] | Solver | None = None,
    *,
    memory: bool = True,
    each: Each | None = None,
    **settings: Unpack[SettingsOptions],
) -> Comparison:
    """Compare solvers on a map of your own, or on the equation that a `DEQ` solves at an input.

    `deqlm.comparison.compare` does the same on families of problems with known answers, and says how it is done.

    Args:
        f: a map of the state alone, a module or a function; or a `DEQ`, whose equation z = layer(z + x) is solved, with
            none of its own settings.
        z0: the start of the map, a tensor or a tree of tensors with the batch first; of a `DEQ`, its input x.
        solvers: specs ("anderson:memory=5"), dicts with ``name``, or objects, or one of them; None takes every
            registered one.
        memory: measure peak memory, which needs a slow run of its own.
        each: called with the problem's result as soon as it is there; text that it returns is printed.
        **settings: ``repeats``, ``threads`` and ``progress`` of `Settings`; dtype, device and batch are those of z0,
            and the tolerance is that of its dtype.

    Returns:
        `Comparison` of one problem: ``print`` it, or read its fields.

    Raises:
        KeyError: an unknown solver; the message names the nearest one.
        TypeError, ValueError: a bad option or setting, one that z0 says itself, a state or an f that cannot be solved.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()))
        >>> result = deqlm.compare(deq, torch.ones(2, 4), "anderson,broyden", repeats=1, progress=False)
        >>> [entry.outcome for entry in result.problems[0].entries]
        ['solved', 'solved']
    """
    if not callable(f):
        raise TypeError(f"f must be a map or a DEQ, got {type(f).__name__}; families of problems: deqlm.comparison")
    for name in OF_THE_STATE:
        if name in settings:
            raise ValueError(f"{name} has no meaning for a map of your own, z0 says it; leave it out")
    states = [leaf for leaf in tensors(z0) if leaf.is_floating_point() or leaf.is_complex()]
    first = next(iter(states), None) if not isinstance(f, DEQ) or states else next(f.parameters(), None)
    if first is None:
        raise TypeError(f"z0 must hold floating point tensors, got {type(z0).__name__}")
    dtype = first.dtype.to_real()
    problem = UserProblem(make=lambda: (f, z0), shown=_name(f))
    problem.build(Settings(dtype=dtype, device=first.device))  # what cannot be solved is told here
    fixed: Any = {**settings, "dtype": dtype, "device": first.device}
    return compare_on_problems(problem, solvers, memory=memory, each=each, **fixed)


def _name(f: Callable[..., Any]) -> str:
    if isinstance(f, DEQ):
        return f"DEQ({type(f.layer).__name__})"
    named = getattr(f, "__name__", type(f).__name__)
    return "your map" if named == "<lambda>" else named
