"""What is said of rows that failed: a warning, an error, and their words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.status import Status

__all__ = [
    "RUNAWAY",
    "ConvergenceError",
    "ConvergenceWarning",
    "FailedGrad",
    "OnFailure",
    "apply_policy",
    "check_on_failure",
    "chosen",
    "outcome",
    "user_level",
]

RUNAWAY = (
    "the state grows and the residual does not fall: a layer z + F(z), such as a pre-norm block, has no fixed point in "
    "reach; put a norm after the sum, such as DEQ(nn.Sequential(layer, nn.LayerNorm(width)))"
)
"""What to try for rows that ran away."""

OnFailure = Literal["warn", "raise", "ignore"]
FailedGrad = Literal["drop", "keep", "raise"]


class ConvergenceWarning(UserWarning):
    """Some rows of a solve did not converge; filtered by Python's own warning filters.

    Examples:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=ConvergenceWarning)  # or DEQ(on_failure="ignore")
    """


class ConvergenceError(RuntimeError):
    """Some rows of a solve did not converge, and the caller asked for an exception.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import FixedPoint, Solve
        >>> Solve(FixedPoint())(lambda z: 1 - 2 * z, torch.zeros(1, 1)).raise_if_failed()
        Traceback (most recent call last):
        deqlm_solvers.core.policy.ConvergenceError: solve: 1 DIVERGED (rows 0) of 1 rows after at most 28...
    """


def check_on_failure(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the three policies."""
    require(value in ("warn", "raise", "ignore"), "on_failure", value, "'warn', 'raise' or 'ignore'")


def apply_policy(
    policy: OnFailure,
    status: Tensor,
    relative: Tensor,
    steps: Tensor,
    what: str,
    *,
    advise: Callable[[Status], str] = lambda kind: kind.hint,
    likely: Callable[[], str] = str,
    ask: str = "",
) -> None:
    """Warn or raise when a row failed; reads one flag from the device.

    The text of a warning holds no numbers, so that Python shows it once per place and not once per call; an error tells
    everything.

    Args:
        policy: what to do.
        status: of every row.
        relative: likewise, the relative residual.
        steps: likewise, evaluations.
        what: "solve" or "backward solve".
        advise: returns what to try after a status.
        likely: called when a row failed; what is probably wrong, which is told in place of the hints of the statuses.
        ask: the call that tells more.
    """
    if policy == "ignore" or not bool((status > int(Status.BUDGET)).any()):
        return
    cause = likely()
    more = f" print({ask}) says more." if ask else ""
    if policy == "raise":
        told = f". Likely: {cause}" if cause else ""
        raise ConvergenceError(f"{outcome(what, status, relative, steps, _silent if cause else advise)}{told}.{more}")
    seen = [kind for kind in Status if kind.failed and bool((status == int(kind)).any())]
    names = ", ".join(kind.name for kind in seen)
    advice = f"Likely: {cause}." if cause else " ".join(f"{k.name}: {advise(k)}." for k in seen)
    text = f"{what}: some rows ended {names}; {_WHERE[what]} says which. {_FIRST[what]}{advice}{more}"
    warnings.warn(text, ConvergenceWarning, stacklevel=user_level())


def _silent(kind: Status) -> str:
    return ""


_WHERE = {
    "solve": "Solution.summary()",
    "backward solve": "Solution.adjoint (its tolerance is that of gradient=Implicit(solve=Solve(solver, stop)))",
}

_FIRST = {"solve": "", "backward solve": "Where the solve itself failed, mend that first. "}


def user_level() -> int:
    """Return the stacklevel of the nearest caller outside this library and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


_OURS = ("deqlm", "deqlm_solvers", "torch")


def outcome(
    what: str,
    status: Tensor,
    relative: Tensor,
    steps: Tensor,
    advise: Callable[[Status], str] = lambda kind: kind.hint,
) -> str:
    """Return rows per status, the worst residual and what to try, in one sentence; arguments as for `apply_policy`."""
    codes = status.flatten().tolist()
    if not codes:
        return f"{what}: no rows"
    parts, told = [], []
    for kind in Status:
        rows = [i for i, code in enumerate(codes) if code == kind]
        if rows:
            shown = f" (rows {_listing(rows)})" if kind.failed else ""
            parts.append(f"{len(rows)} {kind.name}{shown}")
            hint = advise(kind) if kind.failed else ""
            if hint:
                told.append(f"{kind.name}: {hint}")
    worst = relative.flatten().max().item()
    text = f"{what}: {', '.join(parts)} of {len(codes)} rows after at most {int(steps.max())} evaluations, "
    text += f"largest relative residual {worst:.2g}"
    return text + "".join(f". {hint}" for hint in told)


def chosen(picked: Tensor | None, choices: tuple[str, ...]) -> str:
    """Return "picked: 30 fixed_point, 2 anderson", in the order of ``choices``, or nothing."""
    if picked is None or not picked.numel():
        return ""
    counts = torch.bincount(picked.flatten().long(), minlength=len(choices)).tolist()
    return "picked: " + ", ".join(f"{n} {name}" for n, name in zip(counts, choices, strict=True) if n)


def _listing(rows: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, rows[:most]))
    return shown if len(rows) <= most else f"{shown}, ... {len(rows)} in all"
