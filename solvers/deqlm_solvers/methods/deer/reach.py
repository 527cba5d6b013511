"""How far a token of a map sees: itself, the one before, others; found out by moving some and looking at the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.dtypes import rounding_slack
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.deer.grid import Grid

__all__ = ["Reach", "check_causal", "mixed_groups", "move_some", "moved_tokens", "reach_of"]


class Reach(NamedTuple):
    """What a token sees.

    Attributes:
        own: itself.
        before: the one before it.
        further: any other one.
        example: (row, token) of one that sees another one, or None.
    """

    own: bool
    before: bool
    further: bool
    example: tuple[int, int] | None = None


def moved_tokens(tokens: int) -> Tensor:
    """Return which tokens are moved, (L,) bool on the CPU: about half of them, without a pattern, always the same ones.

    The first four show to three tokens already what each is asked: 1 its last one, 2 the one before that, 3 itself.
    """
    bits = torch.rand(tokens, generator=torch.Generator().manual_seed(0), device="cpu") < 0.5
    bits[:4] = torch.tensor([True, False, False, True], device="cpu")[:tokens]
    return bits


def reach_of(changed: Tensor, moved: Tensor, counts: Tensor) -> Reach:
    """Return what tokens see, by what changed when some were moved; a question that no token answers has yes for one.

    Args:
        changed: (B, L) bool, tokens whose value did.
        moved: (B, L) bool.
        counts: (B, L) bool, tokens that count.
    """
    last = moved.roll(1, dims=1)
    last[:, 0] = False
    asked = (counts & moved & ~last, counts & ~moved & last, counts & ~moved & ~last)
    saw = [bool((who & changed).any()) or not bool(who.any()) for who in asked]
    others = asked[2] & changed
    if not bool(others.any()):
        # two tokens are too few for a third one
        return Reach(saw[0], saw[1], saw[2] and counts.shape[1] > 2)
    row, token = others.nonzero()[0].tolist()
    return Reach(saw[0], saw[1], True, (row, token))


def move_some(f: Evaluator, at: Evaluation, grid: Grid, mask: Tensor | None) -> Reach:
    """Return what tokens of f see, by one evaluation with some of them moved; rows that are not finite are not asked.

    Args:
        f: the map.
        at: an evaluation.
        grid: its tokens.
        mask: (B, L) bool, True where a token counts, or None.
    """
    counts = _counts(at, grid, mask)
    moved = moved_tokens(grid.tokens).to(at.z.device) & counts
    changed = _changed(f, at, grid, moved, counts)
    sound = torch.where(counts[..., None], _tokens(at.fz, grid), 0.0).isfinite().all(2).all(1, keepdim=True)
    if not bool(sound.any()):
        return Reach(own=True, before=True, further=grid.tokens > 2)
    return reach_of(changed, moved, counts & sound)


def check_causal(f: Evaluator, at: Evaluation, grid: Grid, mask: Tensor | None) -> None:
    """Raise unless the tokens before the last one keep their values when the last one is moved; one evaluation.

    Args:
        f: the map.
        at: an evaluation.
        grid: its tokens.
        mask: (B, L) bool, True where a token counts, or None; the last token that counts is moved.

    Raises:
        ValueError: one does not; the message names it.
    """
    counts = _counts(at, grid, mask)
    place = torch.arange(grid.tokens, device=at.z.device)
    last = torch.where(counts, place, 0).amax(1, keepdim=True)
    # a token of NaN tells nothing
    leaks = _changed(f, at, grid, place == last, counts, lost=False) & counts & (place < last)
    if bool(leaks.any()):
        row, token = leaks.nonzero()[0].tolist()
        raise ValueError(
            f"'deer' needs a causal map, in which token t sees no later one: token {token} of row {row} changes with "
            f"token {int(last[row])}"
        )


def mixed_groups(f: Evaluator, at: Evaluation, grid: Grid, mask: Tensor | None) -> Tensor:
    """Return the rows whose groups see each other, (B,) bool, by one evaluation with about half of the groups moved.

    Args:
        f: the map.
        at: an evaluation.
        grid: its tokens and groups.
        mask: (B, L) bool, True where a token counts, or None.
    """
    z, want = (t.reshape(t.shape[0], *grid) for t in (at.z, at.fz))
    moved = moved_tokens(grid.groups).to(z.device)[:, None]
    counts = _counts(at, grid, mask)[..., None, None]
    fz = f.aside(torch.where(moved & counts, z + 1 + z.abs(), z).reshape(at.z.shape)).to(at.fz.dtype)
    size = torch.where(counts, want, 0.0).abs().amax((1, 2, 3), keepdim=True)
    changed = ~((fz.reshape(want.shape) - want).abs() <= rounding_slack(f.dtype) * size)
    return (changed & ~moved & counts).flatten(1).any(1)


def _counts(at: Evaluation, grid: Grid, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask.to(at.z.device)
    return torch.ones(at.z.shape[0], grid.tokens, dtype=torch.bool, device=at.z.device)


def _tokens(t: Tensor, grid: Grid) -> Tensor:
    return t.reshape(t.shape[0], grid.tokens, grid.numbers)


def _changed(f: Evaluator, at: Evaluation, grid: Grid, moved: Tensor, counts: Tensor, lost: bool = True) -> Tensor:
    """Return which tokens change when ``moved`` ones do, (B, L) bool; with ``lost``, also by no longer being finite."""
    z, want = _tokens(at.z, grid), _tokens(at.fz, grid)
    other = torch.where(moved[..., None], z + 1 + z.abs(), z)
    fz = _tokens(f.aside(other.reshape(at.z.shape)).to(at.fz.dtype), grid)
    size = torch.where(counts[..., None], want, 0.0).abs().amax((1, 2), keepdim=True)
    slack, apart = rounding_slack(f.dtype) * size, (fz - want).abs()
    return (~(apart <= slack) if lost else apart > slack).any(2)
