"""Whether a row mixes or takes plain steps; the reference for every line is plain_phase.py."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.numbers import larger_number, smaller_number

IDLE_GAIN = tl.constexpr(0.2)
IDLE_MIXES = tl.constexpr(3)
IDLE_RATE = tl.constexpr(0.7)
COLLAPSED = tl.constexpr(0.25)
STUCK = tl.constexpr(0.5)
GROWS = tl.constexpr(0.5)
WILD = tl.constexpr(8.0)
SLOW_RATE = tl.constexpr(0.5)
SLOW_MIXES = tl.constexpr(8)
PASSED = tl.constexpr(0.5)
LONGEST_WAY = tl.constexpr(40)
STEEPEST_WAY = tl.constexpr(1e4)
AFTER_FIFTHS = tl.constexpr(4)
"""`plain_phase.AFTER_RATE` in fifths: a float of a select would be rounded to float32."""


@triton.jit
def begin_phase(row, shared, norm):
    """Set what the phase keeps at the first point of a row."""
    tl.store(row + c.IDLE, 0.0)
    tl.store(row + c.FALL_FROM, norm)
    tl.store(row + c.START, norm)
    tl.store(row + c.PEAK, norm)
    tl.store(row + c.WAY_START, norm)
    tl.store(row + c.LAST, norm)
    tl.store(row + c.LARGEST, 0.0)
    tl.store(row + c.LEAST, float("inf"))
    tl.store(row + c.BELOW, tl.load(shared + c.PLAIN_RATE))
    tl.store(row + c.WAY, 0.0)
    tl.store(row + c.MIXES, 0.0)
    tl.store(row + c.PLAIN, 1.0)
    tl.store(row + c.AWAY, 0.0)


@triton.jit
def look(row, shared, norm, size, along, reach, idle):
    """Take a new point, before the step; return plain, back, sets out, bears, arrived and lost, as `Move` has them."""
    last = tl.load(row + c.LAST)
    was_plain = tl.load(row + c.PLAIN) > 0
    was_away = tl.load(row + c.AWAY) > 0
    fall_from = tl.load(row + c.FALL_FROM)
    way_start = tl.load(row + c.WAY_START)
    largest = tl.load(row + c.LARGEST)
    least = tl.load(row + c.LEAST)
    below = tl.load(row + c.BELOW)
    way = tl.load(row + c.WAY)
    mixes = tl.load(row + c.MIXES)
    relative = norm / size
    highest = larger_number(tl.load(row + c.PEAK), norm)
    near = tl.load(shared + c.NEAR)
    tame = norm <= tl.load(row + c.START) * WILD
    halved = relative <= least * STUCK
    young = way <= LONGEST_WAY - 1
    steady = was_plain | (norm <= fall_from * SLOW_RATE)
    outward = young & ~(along <= reach * GROWS) & ~(relative <= near)
    back = outward & ~was_plain & (size <= largest * COLLAPSED) & ~halved
    slow = outward & ~steady & ~(mixes <= SLOW_MIXES - 2) & tame
    sets_out = back | slow
    arrived = was_away & (norm <= highest * PASSED) & (relative <= least)
    bearable = norm <= way_start * STEEPEST_WAY
    lost = was_away & ~arrived & ~(bearable & (young | halved))
    away = sets_out | (was_away & ~arrived & ~lost)
    turned = ~was_plain & (idle >= IDLE_MIXES) & (norm <= last * IDLE_RATE)
    plain = away | arrived | turned | (was_plain & (norm <= below * last))
    start = tl.where(back, last, norm)
    after = tl.zeros_like(below) + AFTER_FIFTHS
    tl.debug_barrier()
    tl.store(row + c.FALL_FROM, tl.where(steady, norm, fall_from))
    tl.store(row + c.PEAK, tl.where(sets_out, start, highest))
    tl.store(row + c.WAY_START, tl.where(sets_out, start, way_start))
    tl.store(row + c.LAST, norm)
    tl.store(row + c.LARGEST, tl.where(~plain & tame, larger_number(largest, size), largest))
    tl.store(row + c.LEAST, tl.where(~plain, smaller_number(least, relative), least))
    below = tl.where(turned, tl.load(shared + c.LATER_RATE), tl.where(arrived, after / 5.0, below))
    tl.store(row + c.BELOW, below)
    tl.store(row + c.WAY, tl.where(lost, 40.0, tl.where(was_away, way + 1, way)))
    tl.store(row + c.MIXES, tl.where(steady, 0.0, mixes + 1))
    tl.store(row + c.PLAIN, plain.to(tl.float64))
    tl.store(row + c.AWAY, away.to(tl.float64))
    return plain, back, sets_out, away | arrived, arrived, lost


@triton.jit
def note_gain(row, plain, idle, gain, square):
    """Take what the mix gains, and the square of the residual that it lowers."""
    idle = tl.where(gain >= square * IDLE_GAIN, 0.0, idle + 1)
    tl.store(row + c.IDLE, tl.where(plain, 0.0, idle))
