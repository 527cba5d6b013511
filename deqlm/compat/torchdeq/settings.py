"""The options of `get_deq`, read from keywords, a dict, a Namespace or any object with attributes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from deqlm.compat.torchdeq.arguments import ELSEWHERE
from deqlm_solvers.core.checks import number, require, suggest, whole
from deqlm_solvers.core.policy import OnFailure, check_on_failure

__all__ = ["Settings"]

LEAST = {"f_max_iter": 0, "b_max_iter": 1, "eval_f_max_iter": 0, "n_states": 1}
"""Smallest values of whole numbers."""


@dataclass(frozen=True)
class Settings:
    """What `get_deq` reads, by torchdeq's names.

    Args:
        core: a name of `register_deq`.
        f_solver: forward solver, a name of `register_solver`.
        b_solver: backward solver of ``ift``, likewise.
        no_stat: leave the numbers of the forward solve out; None does so for "simple_fixed_point_iter" alone.
        f_max_iter: evaluations of the forward solve, >= 0; 0 goes straight to the gradient's steps.
        b_max_iter: products of the backward solve, >= 1.
        f_tol: tolerance of the forward solve, >= 0; 0 tests nothing.
        b_tol: tolerance of the backward solve, >= 0.
        f_stop_mode: "abs" tests ||f(z) - z||, "rel" that divided by ||f(z)||.
        b_stop_mode: likewise for the backward solve, relative to the incoming gradient in both.
        eval_factor: the forward solve in eval() may make int(f_max_iter * eval_factor) evaluations.
        eval_f_max_iter: or so many, where it is > 0.
        ift: the implicit gradient for the last state.
        hook_ift: another name of ``ift``: the hook of torchdeq has no counterpart, because nothing needs one.
        grad: steps of the phantom gradient, one number for all states or one for each.
        tau: their damping, in (0, 1].
        sup_gap: return the phantom gradient's every so many-th step as a state too, where > 0.
        sup_loc: or the steps of these numbers, and the last.
        n_states: return so many states, at equal distances, where > 1.
        indexing: or those after these evaluations, and the last.
        on_failure: "warn", "raise" or "ignore" when a row does not converge; torchdeq says nothing.

    Raises:
        ValueError: a value that breaks its rule.
    """

    core: str = "sliced"
    f_solver: str = "fixed_point_iter"
    b_solver: str = "fixed_point_iter"
    no_stat: bool | None = None
    f_max_iter: int = 40
    b_max_iter: int = 40
    f_tol: float = 1e-3
    b_tol: float = 1e-6
    f_stop_mode: str = "abs"
    b_stop_mode: str = "abs"
    eval_factor: float = 1.0
    eval_f_max_iter: int = 0
    ift: bool = False
    hook_ift: bool = False
    grad: int | Sequence[int] = 1
    tau: float = 1.0
    sup_gap: int = -1
    sup_loc: Sequence[int] | None = None
    n_states: int = 1
    indexing: Sequence[int] | None = None
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            whole(name, getattr(self, name), least)
        for name in ("f_tol", "b_tol", "eval_factor"):
            number(name, getattr(self, name), ">= 0", lambda t: t >= 0)
        number("tau", self.tau, "in (0, 1]", lambda t: 0 < t <= 1)
        for name in ("f_stop_mode", "b_stop_mode"):
            require(getattr(self, name) in ("abs", "rel"), name, getattr(self, name), "'abs' or 'rel'")
        check_on_failure(self.on_failure)
        self._check_states()

    @classmethod
    def read(cls, args: Any = None, options: Mapping[str, Any] | None = None) -> Settings:
        """Return the options of ``args`` with those of ``options`` in their place; neither is written to.

        Args:
            args: None, `Settings`, a dict, or an object with attributes such as an ``argparse.Namespace``. Objects may
                hold options of anything else; one whose name is nearly one of these is warned of.
            options: keywords of the call.

        Raises:
            TypeError: an unknown key of a dict or keyword; the message names the nearest known one.
            ValueError: a value that breaks its rule.
        """
        known = {each.name for each in fields(cls)}
        given = {} if args is None else dict(args) if isinstance(args, Mapping) else dict(vars(args))
        named = {**(given if isinstance(args, Mapping) else {}), **(options or {})}
        for key in named:
            if key not in known and (isinstance(args, Mapping) and key in given and key in ELSEWHERE):
                continue
            _refuse_unknown(key, known)
        if not isinstance(args, Mapping):
            _warn_of_near_misses(given, known)
        return cls(**{key: value for key, value in {**given, **named}.items() if key in known})

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the phantom gradient as a tuple."""
        return (self.grad,) if isinstance(self.grad, int) else tuple(self.grad)

    def _check_states(self) -> None:
        steps = self.steps
        ok = len(steps) > 0 and all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in steps)
        require(ok, "grad", self.grad, "a whole number >= 1, or several of them")
        for name in ("sup_loc", "indexing"):
            places = list(getattr(self, name) or [])
            ok = all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in places)
            require(ok, name, places, "whole numbers >= 1")
        whole("sup_gap", self.sup_gap, -1)


def _refuse_unknown(key: str, known: set[str]) -> None:
    if key in known:
        return
    if key in ELSEWHERE:
        raise TypeError(f"get_deq does not read {key!r}: {ELSEWHERE[key]}")
    raise TypeError(f"get_deq got an unknown option {key!r}: {suggest(key, known)}")


def _warn_of_near_misses(given: Mapping[str, Any], known: set[str]) -> None:
    for key in given:
        near = difflib.get_close_matches(key, known - given.keys(), 1, 0.85)
        if key not in known and key not in ELSEWHERE and near:
            warnings.warn(f"get_deq does not read {key!r}; is {near[0]!r} meant?", UserWarning, stacklevel=4)
