"""When a solve ends and which point it keeps."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch

from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.norms import NORMS
from deqlm_solvers.core.options import Options, options
from deqlm_solvers.core.rule import Rule

__all__ = ["Stop"]


@options
class Stop(Options):
    """Stopping rule of a solve.

    A point z of a row passes when ``||f(z) - z|| <= atol + rtol * max(||f(z)||, s)``, with s a scale that the caller
    may give per row (default 0). This bounds the residual, not the error. The row returns the first tested point that
    passes, else the best one: the smallest residual relative to its tolerance.

    A residual that is small only beside a state that has grown is no solution: a point passes only if, besides,
    max(||z||, ||f(z)||) is at most 10 times that of the row's start, or its residual has fallen to half of the first
    one (to a tenth where the size is more than 1000 times that of the start, if the tolerance allows), or falls as far
    where the row first came within tolerance. A row that has not shown any of these at the end is DIVERGED, and
    `Solution.runaway` is True.

    ``rtol=0, atol=0`` is a *budget*: exactly ``max_iter`` evaluations and steps, no test, no freezing, no host sync;
    the row returns z_K, and the reported residual is that of z_{K-1}. Only a row whose last residual is not finite
    is marked, as NONFINITE. ``max_iter=0`` is a budget too, whatever the tolerances: f is not evaluated, the start is
    returned, its residual is unknown and told as infinite, and a start that is not finite is NONFINITE. A gradient
    method that takes steps takes them from there.

    Args:
        max_iter: largest number of evaluations of f, >= 0.
        rtol: relative tolerance, >= 0, without unit; "auto" is 1e-4, or 4 eps of the dtype that f computes in where
            that is more (bfloat16 and float16 states, autocast).
        atol: absolute tolerance, >= 0, in the unit of the norm.
        norm: "l2", "rms" (l2 divided by the root of the number of unknowns), "max" (the largest unknown), or weights
            >= 0 of a weighted l2 norm: one per leaf of the state, or one per unknown of a row.
        per: what must pass: "row" (one norm over the row), "token" (every position along ``token_dim``; a norm over a
            sequence lets late tokens pass that have not moved yet), or "leaf" (every tensor of a tree, so that a big
            one cannot hide a small one).
        token_dim: dimension of the tokens in the state as the user sees it, batch dimensions counted.
        keep: "best" as above, or "best_f": f(z) at the tested z with the smallest ||f(z) - z|| / (||f(z)|| + 1e-9),
            no row frozen, the loop ends when every row passes at once (the rule of torchdeq 0.1.0, fixed_point_iter).
        test_every: evaluations from one test of a row to the next, >= 1; "auto" predicts from each row's own rate when
            it will pass, at most 8 evaluations ahead, so a row may end up to 7 evaluations late.
        check_every: evaluations between two host reads of "is every row done", >= 0 (0: never, the loop runs to
            ``max_iter``). It changes time, never a result of an f that works row by row. Where f mixes rows, a row
            may have passed beside others that fail and return their best point, not the last one: such rows are
            looked at once more, in one evaluation of all that is returned, which counts as cost and not as a step.
            With 0 nothing is read and nobody looks: CONVERGED then holds beside the last points of the others.
        compact: rows that are done leave the batch when f can be evaluated on the rest (`deqlm.solve` with ``args``,
            `DEQ`) and, with True, when that pays; with "at_once" after the evaluation in which they were done, so that
            the rows of all evaluations are the sum of the rows' steps, of one probe, which finds out whether f mixes
            rows (then they stay), and of one evaluation of all rows at the end: a row that then no longer passes,
            because f mixes rows more weakly than a probe sees, is taken up again. Both count as cost and not as steps
            of a row. "at_once" saves arithmetic and costs calls: each row that leaves makes a gather of the inputs,
            and on a device the host waits for every test. Not where the steps carry a graph.
        trace: keep the residual of every tested evaluation in `Solution.trace`.
        patience: a row without progress for this many evaluations ends STALLED; progress is a best residual that fell
            by 10 % relative to its tolerance, or with per="token" a longer converged prefix. None never gives up
            early: causal maps can hold their residual for hundreds of evaluations and then drop to zero.
        divergence: a row ends DIVERGED when its residual exceeds this multiple of its first one; > 1, inf disables it.
            Solvers that try points and refuse them (line searches, Anderson, Broyden) go on while they have others.
        criterion: a `Rule` that says what passes in place of the tolerance, such as `ReadOut`; None is the tolerance.
        share: the solve ends when this share of the rows has passed, in (0, 1]; the others end MAX_ITER with their best
            point, if not otherwise. When a row ends then depends on the others.
        collective: the solve ends when the rows of all processes are done that torch.distributed knows (or those of
            `DEQ`'s ``process_group``), so that each makes equally many evaluations, as it must where they talk in f (a
            sharded layer). What a row returns does not change: a process that is done early waits with its rows frozen,
            none of which leaves the batch. With ``keep="best_f"`` "all rows" are those of all processes. All of them
            must solve with it, and equally often. One process alone decides by itself.
        first_tokens: factors of the tolerance of the first tokens, with per="token", such as (10.0,) for a first token
            that may be looser; the rest has 1.

    Raises:
        ValueError: a value that breaks its rule.

    Examples:
        >>> Stop(max_iter=50, rtol=1e-6).is_budget, Stop(max_iter=4, rtol=0).is_budget
        (False, True)
    """

    max_iter: int = 100
    # "auto" is a number before anything but `resolve` reads it
    rtol: float | Any = 1e-4
    atol: float = 0.0
    norm: Literal["l2", "rms", "max"] | Sequence[float] = "l2"
    per: Literal["row", "token", "leaf"] = "row"
    token_dim: int = 1
    keep: Literal["best", "best_f"] = "best"
    test_every: int | Literal["auto"] = 1
    check_every: int = 1
    compact: bool | Literal["at_once"] = True
    trace: bool = False
    patience: int | None = None
    divergence: float = 1e8
    criterion: Rule | None = None
    share: float = 1.0
    first_tokens: Sequence[float] = ()
    collective: bool = False

    def __post_init__(self) -> None:
        whole("max_iter", self.max_iter, 0, sys.maxsize)
        rule = "finite and >= 0"
        number("atol", self.atol, rule, lambda t: math.isfinite(t) and t >= 0)
        if self.rtol != "auto":
            number("rtol", self.rtol, f"{rule}, or 'auto'", lambda t: math.isfinite(t) and t >= 0)
        if isinstance(self.norm, str):
            known = ", ".join(map(repr, NORMS))
            require(self.norm in NORMS, "norm", self.norm, f"{known} or a sequence of weights")
        else:
            rule = "'l2', 'rms', 'max', or weights that are finite and >= 0, at least one of them > 0"
            require(isinstance(self.norm, Sequence) and not isinstance(self.norm, bytes), "norm", self.norm, rule)
            weights = tuple(float(w) for w in self.norm)
            require(any(weights) and all(math.isfinite(w) and w >= 0 for w in weights), "norm", self.norm, rule)
            object.__setattr__(self, "norm", weights)
        require(self.per in ("row", "token", "leaf"), "per", self.per, "'row', 'token' or 'leaf'")
        whole("token_dim", self.token_dim, 0)
        require(self.keep in ("best", "best_f"), "keep", self.keep, "'best' or 'best_f'")
        if self.test_every != "auto":
            whole("test_every", self.test_every, 1, sys.maxsize)
        whole("check_every", self.check_every, 0, sys.maxsize)
        require(isinstance(self.trace, bool), "trace", self.trace, "True or False")
        known = isinstance(self.compact, bool) or self.compact == "at_once"
        require(known, "compact", self.compact, "True, False or 'at_once'")
        if self.patience is not None:
            whole("patience", self.patience, 1, sys.maxsize)
        number("divergence", self.divergence, "> 1", lambda d: d > 1)
        require(isinstance(self.criterion, Rule | None), "criterion", self.criterion, "a Rule, such as ReadOut(head)")
        number("share", self.share, "in (0, 1]", lambda s: 0 < s <= 1)
        object.__setattr__(self, "first_tokens", _factors(self.first_tokens))
        require(isinstance(self.collective, bool), "collective", self.collective, "True or False")
        for name in ("rtol", "atol", "divergence"):
            _keep_as_double(self, name)
        self._refuse_ignored()

    @functools.cached_property
    def is_budget(self) -> bool:
        """True when nothing is tested: both tolerances are zero, or no evaluation is made."""
        return (self.rtol == 0 and self.atol == 0) or self.max_iter == 0

    def resolve(self, *dtypes: torch.dtype, rtol: float = 1e-4) -> Stop:
        """Return the rule with a number for ``rtol="auto"``; self where it has one.

        Args:
            *dtypes: what f computes in; the coarsest counts.
            rtol: what "auto" is where every dtype can resolve it.

        Examples:
            >>> import torch
            >>> Stop(rtol="auto").resolve(torch.float64).rtol, Stop(rtol="auto").resolve(torch.bfloat16).rtol
            (0.0001, 0.03125)
        """
        if self.rtol != "auto":
            return self
        return _with_rtol(self, max(rtol, *(4 * torch.finfo(dtype).eps for dtype in dtypes)))

    def _refuse_ignored(self) -> None:
        """A setting that would be ignored is an error."""
        if self.rtol == 0 and self.atol == 0:
            self._only_default(
                "is not used by a budget (rtol=0, atol=0), which tests nothing",
                *("keep", "test_every", "check_every", "compact", "patience", "divergence", "share", "first_tokens"),
            )
            require(not self.collective, "collective", True, "False for a budget, of which all processes make as much")
        if self.max_iter == 0:
            unused = ("norm", "keep", "test_every", "check_every", "compact", "trace", "patience", "divergence")
            self._only_default("is not used with max_iter=0, which evaluates nothing", *unused)
            self._only_default(
                "is not used with max_iter=0, which evaluates nothing", "criterion", "share", "first_tokens"
            )
        if self.keep == "best_f":
            unused = ("atol", "per", "test_every", "compact", "patience", "divergence", "criterion", "share")
            self._only_default("is not used with keep='best_f'", *unused)
        if self.test_every == "auto":
            self._only_default(
                "is not used with test_every='auto', which reads the device at every test", "check_every"
            )
        if self.compact == "at_once":
            self._only_default("is not used with compact='at_once', which looks at every test", "check_every")
        if self.collective:
            require(self.test_every != "auto", "test_every", "auto", "a number with collective=True: rows decide it")
            require(self.compact != "at_once", "compact", "at_once", "True with collective=True, where no row leaves")
            require(self.share == 1, "share", self.share, "1 with collective=True")
            looks = self.check_every > 0 or self.keep == "best_f"
            require(looks, "collective", True, "False with check_every=0, where nobody looks who is done")
        if self.per != "token":
            self._only_default("is not used unless per='token'", "token_dim", "first_tokens")
        if self.criterion is not None:
            self._only_default("is not used with a criterion, which says what passes", "rtol", "atol", "norm", "per")
        if self.check_every == 0 or self.test_every == "auto":
            self._only_default("needs check_every >= 1 and a number for test_every: the host must look", "share")

    def _only_default(self, why: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:  # type: ignore[attr-defined]
                raise ValueError(f"{name}={getattr(self, name)!r} {why}")


def _factors(given: Any) -> tuple[float, ...]:
    rule = "a sequence of factors > 0 of the tolerance, such as (10.0,)"
    require(isinstance(given, Sequence) and not isinstance(given, str | bytes), "first_tokens", given, rule)
    for factor in given:
        number("first_tokens", factor, rule, lambda f: 0 < f < math.inf)
    return tuple(float(factor) for factor in given)


def _keep_as_double(stop: Stop, name: str) -> None:
    """Make a number of another library, or an int that no tensor holds, a float of Python."""
    value = getattr(stop, name)
    if isinstance(value, float) or (isinstance(value, int) and value > sys.maxsize):
        object.__setattr__(stop, name, float(value))


@functools.lru_cache(maxsize=256)
def _with_rtol(stop: Stop, rtol: float) -> Stop:
    # a solve asks at every call, and to check all fields again costs as much as an evaluation of a small f
    return stop.replace(rtol=rtol)
