"""Whether a row mixes or takes plain steps, which cost nothing and are enough where a map contracts everywhere."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.methods.decision import Decision, Table, tabulate

__all__ = ["Move", "PlainPhase"]

IDLE_GAIN = 0.2
"""A mix gains little when it lowers the square of the residual by less than this share."""
IDLE_MIXES = 3
"""After so many mixes in a row that gained little, a row goes back to plain steps."""
IDLE_RATE = 0.7
"""It does so, and goes on with them, while each residual is at most this factor times the one before."""

COLLAPSED = 0.25
"""A mixed step collapses when it takes ||f(z)|| below this factor times the largest seen,"""
STUCK = 0.5
"""while ||r|| / ||f(z)|| stays above this factor times the smallest seen."""
CLOSE = 0.005
"""A row whose ||r|| / ||f(z)|| is at most this converges: its scale does not vanish with its residual."""
CLOSE_EPS = 4.0
"""Nor is there anything to leave below this factor times the eps of what f computes in, where rounding decides."""
GROWS = 0.5
"""The residual grows along a step s, and changes by y, where s . y is above this factor times ||s|| ||y||: what repels
pushes along the step, while maps that are merely not normal push to its side."""
WILD = 8.0
"""A point whose residual is above this factor times the first one says nothing of the scale."""
SLOW_RATE = 0.5
"""Mixing is slow where the residual has not fallen to this factor"""
SLOW_MIXES = 8
"""within so many mixes in a row; plain steps are tried where it also grows along the last one."""
PASSED = 0.5
"""Plain steps away from a root have arrived when the residual is below this factor times the largest on the way, and
||r|| / ||f(z)|| below the smallest seen before."""
AFTER_RATE = 0.8
"""From there on a row takes plain steps for as long as each residual is at most this factor times the one before."""
LONGEST_WAY = 40
"""Steps that a row may spend on such ways, all together, unless ||r|| / ||f(z)|| has halved there,"""
STEEPEST_WAY = 1e4
"""and the growth of its residual on each of them."""

TESTS = {
    "falls": ("norm", SLOW_RATE, "mark"),
    "tame": ("norm", WILD, "first"),
    "passed": ("norm", PASSED, "highest"),
    "bearable": ("norm", STEEPEST_WAY, "start"),
    "fast": ("norm", 1.0, "edge"),
    "small": ("size", COLLAPSED, "largest"),
    "halved": ("relative", STUCK, "least"),
    "nearest": ("relative", 1.0, "least"),
    "young": ("way", LONGEST_WAY - 1.0, "one"),
    "patient": ("since", SLOW_MIXES - 2.0, "one"),
    "aside": ("along", GROWS, "reach"),
    "close": ("relative", 1.0, "near"),
    "turned": ("one", 1.0, "turned"),
    "plain": ("one", 1.0, "plain"),
    "away": ("one", 1.0, "away"),
}
"""Left, factor and right of every comparison left <= factor right that decides; all are made in one operation."""

COUNTED = ("longer way", "more since")
"""Columns ``way`` and ``since``, one higher."""
KEPT = ("mark", "first", "peak", "start", "last", "largest", "least", "below", "way", "since", "plain", "away")
"""Columns that are kept from one point to the next: the residual that `SLOW_RATE` looks back to; the first one; the
largest and the first one of the way; the last one; the largest ||f(z)|| and the least ||r|| / ||f(z)|| of mixing rows;
the rate up to which steps are plain; steps spent on ways; mixes since ``mark``; two flags."""
SEEN = ("norm", "size", "relative", "along", "reach", "turned", "edge", "highest", "larger", "lesser", *COUNTED)
"""Columns that a new point gives: see `PlainPhase.look`; the residual up to which steps stay plain; new kept ones."""
FIXED = ("zero", "one", "later", "after", "most", "near")
COLUMNS = (*KEPT, *SEEN, *FIXED)
COUNTS = slice(KEPT.index("way"), KEPT.index("since") + 1)


class Move(NamedTuple):
    """What a row does at a new point, (B, 1) bool each.

    Attributes:
        plain: its step is plain.
        back: it takes the last step back and a plain one instead.
        sets_out: it begins a way from a root that repels.
        bears: its residual may be as large as it is, because it is on such a way, or has arrived.
        arrived: it has just left that root behind.
        lost: its way has just led nowhere; it takes no other one.
    """

    plain: Tensor
    back: Tensor
    sets_out: Tensor
    bears: Tensor
    arrived: Tensor
    lost: Tensor


class PlainPhase:
    """Per row, columns (B, 1): plain steps while the residual falls fast, or while mixing has shown to gain little.

    Mixing makes residuals small, so it runs to a root that repels, such as 0 of tanh(2 z), as gladly as to one that
    attracts. Where ||f(z)|| vanishes together with the residual no relative tolerance can pass. A row that goes there
    shows it: its scale collapses, its relative residual does not fall, and its residual grows along its step. Such a
    step is taken back, and plain steps lead away from the root until the residual has passed its peak.

    What a row does follows from the outcomes of `TESTS` by `_rules`, in a `Table`: seventy operations on columns would
    cost more than the step.

    Args:
        plain_rate: factor from one residual to the next up to which a row takes plain steps from the start.
        norm: ||r_0||, float64.
        eps: of the dtype that f computes in.

    Attributes:
        move: what rows did at the last point.
    """

    def __init__(self, plain_rate: float, norm: Tensor, eps: float) -> None:
        none = torch.zeros_like(norm, dtype=torch.bool)
        self.move = Move(~none, none, none, none, none, none)
        self.idle = torch.zeros_like(norm, dtype=torch.int64)
        zero, one = torch.zeros_like(norm), torch.ones_like(norm)
        first = dict.fromkeys(KEPT, norm) | {"largest": zero, "least": one / zero, "below": plain_rate * one}
        first |= {"way": zero, "since": zero, "plain": one, "away": zero}
        self.kept = torch.cat([first[name] for name in KEPT], dim=1)
        fixed = (0.0, 1.0, max(IDLE_RATE, plain_rate), AFTER_RATE, LONGEST_WAY, max(CLOSE, CLOSE_EPS * eps))
        self.fixed = torch.cat([value * one for value in fixed], dim=1)
        self.table = _table(norm.device)

    def look(self, norm: Tensor, size: Tensor, along: Tensor, reach: Tensor) -> Move:
        """Take a new point, before the step.

        Args:
            norm: ||r||.
            size: ||f(z)||.
            along: product of the changes of z and of r along the step to this point, in any unit > 0.
            reach: product of their norms, in the same unit.
        """
        kept = dict(zip(KEPT, self.kept.split(1, dim=1), strict=True))
        turned = (self.idle >= IDLE_MIXES) & (norm <= IDLE_RATE * kept["last"])
        relative = norm / size
        highest = torch.fmax(kept["peak"], norm)
        larger, lesser = torch.fmax(kept["largest"], size), torch.fmin(kept["least"], relative)
        edge = kept["below"] * kept["last"]
        counted = self.kept[:, COUNTS] + 1
        seen = (norm, size, relative, along, reach, turned, edge, highest, larger, lesser, counted)
        columns = torch.cat((self.kept, *seen, self.fixed), dim=1)
        flags, self.kept = self.table.decide(columns)
        self.move = Move(*flags.split(1, dim=1))
        return self.move

    def judge(self, gain: Tensor, square: Tensor) -> None:
        """Take what the mix gains, and the square of the residual that it lowers."""
        idle = (self.idle + 1).masked_fill(gain >= IDLE_GAIN * square, 0)
        self.idle = idle.masked_fill(self.move.plain, 0)


def _rules(is_: SimpleNamespace) -> Decision:
    """Decide what a row does and keeps; ``is_`` has the outcome of each of `TESTS` by its name."""
    steady = is_.plain | is_.falls
    outward = is_.young & ~is_.aside & ~is_.close
    back = outward & ~is_.plain & is_.small & ~is_.halved
    slow = outward & ~steady & ~is_.patient & is_.tame
    sets_out = back | slow
    arrived = is_.away & is_.passed & is_.nearest
    lost = is_.away & ~arrived & ~(is_.bearable & (is_.young | is_.halved))
    away = sets_out | (is_.away & ~arrived & ~lost)
    turned = ~is_.plain & is_.turned
    plain = away | arrived | turned | (is_.plain & is_.fast)
    start = (back, "last", "norm")
    kept = {
        "mark": (steady, "norm", "mark"),
        "first": "first",
        "peak": (sets_out, start, "highest"),
        "start": (sets_out, start, "start"),
        "last": "norm",
        "largest": (~plain & is_.tame, "larger", "largest"),
        "least": (~plain, "lesser", "least"),
        "below": (turned, "later", (arrived, "after", "below")),
        "way": (lost, "most", (is_.away, "longer way", "way")),
        "since": (steady, "zero", "more since"),
        "plain": (plain, "one", "zero"),
        "away": (away, "one", "zero"),
    }
    assert tuple(kept) == KEPT
    return Decision(Move(plain, back, sets_out, away | arrived, arrived, lost), kept)


@functools.cache
def _table(device: torch.device) -> Table:
    return tabulate(TESTS, _rules, COLUMNS, device)


_table(torch.device("cpu"))
