"""What a map does besides mapping: random numbers, work in place, rows that mix, tokens that see each other."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deqlm.wrap.generators import accelerators, generator_states
from deqlm_solvers import Map
from deqlm_solvers.core.agreement import ROUNDING, rows_changed
from deqlm_solvers.core.norms import row_norms

__all__ = [
    "Causality",
    "InPlace",
    "Mixing",
    "Randomness",
    "noise_floor",
    "probe_causality",
    "probe_in_place",
    "probe_mixing",
    "probe_randomness",
]

Source = Literal["torch", "numpy", "random", "state"]


@dataclass(frozen=True)
class Randomness:
    """Whether f returns the same value twice.

    Attributes:
        difference: largest ||f(z) - f(z)|| / ||f(z)|| of two evaluations of the bare map at one point; 0 if equal.
        source: which generator moved: torch's, numpy's, `random`'s; "state" when none of them did (a generator or a
            state of f's own); None when the values are equal.
        held: the solve holds it: torch's generators and the buffers are replayed, so within one call f is one map.
    """

    difference: float
    source: Source | None
    held: bool


@dataclass(frozen=True)
class InPlace:
    """Work in place inside f.

    Attributes:
        writes_argument: f changes the tensor that it is given.
        returns_buffer: f returns the same memory at every call, so an older result changes under its owner.
    """

    writes_argument: bool
    returns_buffer: bool


@dataclass(frozen=True)
class Mixing:
    """Whether a row's f(z) depends on other rows.

    Attributes:
        by_value: rows whose f changed when the values of one other row did.
        by_nan: rows whose f became NaN when one other row did.
    """

    by_value: tuple[int, ...]
    by_nan: tuple[int, ...]

    @property
    def mixes(self) -> bool:
        """A row depends on another one."""
        return bool(self.by_value or self.by_nan)


REPEATS, MANY = 4, 64
"""Evaluations at one point that look for random numbers: of any map, and of one that moves a generator."""

Causality = Literal["causal", "tokenwise", "mixing"]
"""Token t of f(z) sees earlier tokens of z only, or only itself, or later ones too."""


def probe_in_place(raw: Map, z: Tensor) -> InPlace:
    """Evaluate twice and see whether the argument or the first result changed."""
    argument = z.clone()
    version = argument._version
    first = raw(argument)
    writes = argument._version != version or not torch.equal(argument.nan_to_num(), z.nan_to_num())
    own = first.numel() > 0 and first.data_ptr() != argument.data_ptr()
    second = raw(z.clone())
    return InPlace(writes_argument=writes, returns_buffer=own and second.data_ptr() == first.data_ptr())


def probe_randomness(raw: Map, held: Map, points: list[Tensor]) -> Randomness:
    """Evaluate at each point several times, and often where a generator moves: a small mask repeats by chance.

    Args:
        raw: the bare map.
        held: the map as the solve sees it, with noise replayed where the solve does that.
        points: (B, N) each.
    """
    before = _generators(points[0])
    difference = max(_spread(raw, z, REPEATS) for z in points)
    moved: Source | None = None
    for name, state in _generators(points[0]).items():
        moved = name if moved is None and state != before[name] else moved
    if difference == 0 and moved is not None:
        difference = max(_spread(raw, z, MANY) for z in points)
    if difference == 0:
        return Randomness(0.0, None, True)
    repeats = MANY if moved is not None else REPEATS
    return Randomness(difference, moved or "state", max(_spread(held, z, repeats) for z in points) == 0)


def probe_mixing(f: Map, z: Tensor, draw: torch.Generator) -> Mixing:
    """Change, then NaN, the first and the last row, and see which others notice."""
    by_value: set[int] = set()
    by_nan: set[int] = set()
    before = f(z)
    if len(z) > 1 and z.shape[1]:
        for row in {0, len(z) - 1}:
            moved = z.clone()
            moved[row] += _shift(z, draw)[row]
            changed = rows_changed(f(moved), before)
            changed[row] = False
            by_value |= set(changed.nonzero().flatten().tolist())
            moved[row] = torch.nan
            spoiled = ~f(moved).isfinite().all(1) & before.isfinite().all(1)
            spoiled[row] = False
            by_nan |= set(spoiled.nonzero().flatten().tolist())
    return Mixing(tuple(sorted(by_value)), tuple(sorted(by_nan)))


def probe_causality(f: Map, z: Tensor, tokens: Tensor, draw: torch.Generator) -> Causality:
    """Change the tokens from one place on, or before it, and see which others notice.

    Args:
        f: map on rows.
        z: point, (B, N).
        tokens: (L, D) unknowns of each token, L >= 2.
        draw: generator on the CPU.
    """
    before = f(z)
    length = len(tokens)

    def reach(changed: Tensor, watched: Tensor) -> bool:
        moved = z.clone()
        shift = _shift(z, draw)
        moved[:, changed.flatten()] += shift[:, changed.flatten()]
        after = f(moved)
        return bool(rows_changed(after[:, watched.flatten()], before[:, watched.flatten()]).any())

    cuts = sorted({max(1, length // 2), length - 1})
    if any(reach(tokens[cut:], tokens[:cut]) for cut in cuts):
        return "mixing"
    return "causal" if any(reach(tokens[:cut], tokens[cut:]) for cut in cuts) else "tokenwise"


def noise_floor(f: Map, z: Tensor, draw: torch.Generator, repeats: int = 4) -> Tensor:
    """Return the relative residual per row (B,) below which rounding decides, float64.

    z is moved by half a unit in its last place at random; what f makes of that, and the step itself, is noise:
    (||f(z') - f(z)|| + ||z' - z||) / ||f(z)||.
    """
    eps = torch.finfo(z.dtype).eps
    before = f(z).double()
    size = row_norms(before)
    worst = torch.zeros_like(size)
    for _ in range(repeats):
        sign = torch.randint(0, 2, z.shape, generator=draw, device="cpu").to(z.device, torch.float64) * 2 - 1
        moved = (z.double() * (1 + eps * sign)).to(z.dtype)
        noise = row_norms(f(moved).double() - before)
        worst = torch.maximum(worst, noise + row_norms(moved.double() - z.double()) / 2)
    return torch.where(size > 0, worst / size.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def _spread(f: Map, z: Tensor, repeats: int) -> float:
    """Return the largest relative difference of repeated evaluations; what rounding explains counts as none."""
    first = f(z.clone()).clone()
    size = row_norms(first)
    worst = 0.0
    for _ in range(repeats - 1):
        again = f(z.clone())
        apart = row_norms(torch.where(again == first, 0.0, again - first))
        both = first.isfinite().all(1) & again.isfinite().all(1)
        quotient = apart / size.clamp_min(torch.finfo(torch.float64).tiny)
        quotient = torch.where(quotient > ROUNDING * torch.finfo(z.dtype).eps, quotient, 0.0)
        worst = max(worst, float(torch.where(both, quotient, 0.0).amax())) if len(z) else worst
    return worst


def _shift(z: Tensor, draw: torch.Generator) -> Tensor:
    scale = row_norms(z.nan_to_num(0.0, 0.0, 0.0).reshape(1, -1)) / max(1, z.numel()) ** 0.5
    scale = torch.where(scale > 0, scale, 1.0)
    noise = torch.randn(z.shape, generator=draw, dtype=torch.float64, device="cpu").to(z.device)
    return (0.5 * scale * noise).to(z.dtype)


def _generators(z: Tensor) -> dict[Source, bytes]:
    """Return the state of each global generator."""
    states = generator_states(accelerators(None, z.device))
    torch_state = b"".join(state.numpy().tobytes() for state in states)
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))
    return {"torch": torch_state, "numpy": numpy_state, "random": pickle.dumps(random.getstate())}
