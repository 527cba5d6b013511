"""Test and books of one row; the reference for every line is tracker.py, criterion.py and runaway.py."""

# triton types the call of a kernel as one that never returns
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.numbers import at_least, larger, worst

STILL_PASSES = tl.constexpr(1.05)
FALLEN = tl.constexpr(0.5)
FAR = tl.constexpr(1000.0)
GROWN = tl.constexpr(10.0)
NEAR = tl.constexpr(0.5)


@triton.jit
def read_groups(row, shared, residual, image, point, counted):
    """Return residual, relative residual and ratio of the worst group, size of the largest, and ratios of all groups.

    residual, image, point: norms of f(z) - z, f(z) and z, (G,) float64; counted: groups that count.
    """
    divisor = tl.load(shared + c.ROOT)
    smallest = tl.load(shared + c.SMALLEST)
    residual = residual / divisor
    image = image / divisor
    size = larger(image, point / divisor)
    image = larger(image, tl.load(row + c.SCALE) + tl.zeros_like(image))
    tolerance = at_least(image * tl.load(shared + c.RTOL) + tl.load(row + c.ATOL), smallest)
    ratios = tl.where(counted, residual / tolerance, 0.0)
    relative = worst(tl.where(counted, residual / at_least(image, smallest), 0.0))
    return worst(tl.where(counted, residual, 0.0)), relative, worst(ratios), worst(tl.where(counted, size, 0.0)), ratios


@triton.jit
def converged_prefix(ratios, groups, G: tl.constexpr):
    """Return how many groups pass before the first one that does not."""
    group = tl.arange(0, G)
    fails = (group < groups) & ~(ratios <= 1)
    return tl.min(tl.where(fails, group, groups), axis=0).to(tl.float64)


@triton.jit
def note_tokens(token_steps, ratios, groups, k, tested, G: tl.constexpr):
    """Note of tokens that fail now that they settle later than evaluation ``k``."""
    group = tl.arange(0, G)
    late = (group < tl.where(tested, groups, 0)) & ~(ratios <= 1)
    tl.store(token_steps + group, tl.zeros_like(group).to(tl.int64) + k + 2, mask=late)


@triton.jit
def runs_away(shared, within, residual, size, first_residual, first_size, before, near):
    """Return whether a row within tolerance is so by its size only, and the mark that it leaves."""
    residual = larger(residual, tl.load(shared + c.HIDDEN) * size)
    share = tl.where(size > first_size * FAR, tl.load(shared + c.SHARE), 0.5)
    doubtful = within & (size > first_size * GROWN) & (residual > share * first_residual)
    fresh = doubtful & (tl.abs(size - near) > size * NEAR)
    runs = fresh | (doubtful & (residual > share * (tl.load(shared + c.SURE) * before)))
    return runs, tl.where(fresh, residual, before), tl.where(fresh, size, near)


@triton.jit
def report(out, active, best, first_ratio, ratio, k):
    """Tell the host of a row what it reads, two numbers.

    1 where it goes on, plus 2 where it has passed and no longer does; evaluations that it still needs at its mean rate.
    """
    lost = (best <= 1) & (ratio > STILL_PASSES)
    fallen = tl.log(first_ratio / ratio)
    need = tl.where(fallen > 0, tl.log(ratio) / fallen * k.to(tl.float64), float("inf"))
    need = tl.where(need != need, float("inf"), need)
    tl.store(out, active.to(tl.float64) + lost.to(tl.float64) * 2.0)
    tl.store(out + 1, tl.where(active, need, 0.0))


@triton.jit
def record(
    row,
    shared,
    out,
    residual,
    relative,
    ratio,
    size,
    prefix,
    final,
    k,
    half,
    TOKENS: tl.constexpr,
    GIVEN: tl.constexpr,
    PATIENT: tl.constexpr,
):
    """Take what evaluation ``k`` shows of one row; return whether the row goes on, and whether its point is the best.

    Everything is loaded before the barrier and stored behind it, because the threads of a program do not wait for each
    other. final: whether a bad point ends the row; half: whether this is in the second half of all evaluations.
    """
    step = k.to(tl.float64)
    start = k == 0
    tested = tl.load(row + c.ACTIVE) > 0
    limit = tl.where(start, residual * tl.load(shared + c.DIVERGENCE), tl.load(row + c.LIMIT))
    first_ratio = tl.where(start, ratio, tl.load(row + c.FIRST_RATIO))
    first_residual = tl.load(row + c.FIRST_RESIDUAL)
    first_size = tl.load(row + c.FIRST_SIZE)
    if not GIVEN:
        first_residual = tl.where(start, residual, first_residual)
        first_size = tl.where(start, size, first_size)
    steps = tl.where(tested, step + 1, tl.load(row + c.STEPS))
    bounded = residual <= limit
    counts = tested & (bounded | final)
    last_residual = tl.where(counts, residual, tl.load(row + c.RESIDUAL))
    last_relative = tl.where(counts, relative, tl.load(row + c.RELATIVE))
    runs, mark_residual, mark_size = runs_away(
        shared,
        counts & (ratio <= 1),
        residual,
        size,
        first_residual,
        first_size,
        tl.load(row + c.MARK_RESIDUAL),
        tl.load(row + c.MARK_SIZE),
    )
    shown = tl.where(runs, tl.load(shared + c.BEYOND), ratio)
    best = tl.load(row + c.BEST_RATIO)
    better = counts & (shown < best)
    grown = start & (k < 0)
    longest = tl.load(row + c.PREFIX)
    if TOKENS:
        grown = tested & (tl.abs(ratio) < float("inf")) & (prefix > longest)
        better = grown | (better & (prefix == longest))
        longest = tl.where(grown, prefix, longest)
    best = tl.where(better, shown, best)
    best_residual = tl.where(better, residual, tl.load(row + c.BEST_RESIDUAL))
    best_relative = tl.where(better, relative, tl.load(row + c.BEST_RELATIVE))
    stays = ((shown > 1) & bounded) | (tested & ~counts)
    mark = tl.load(row + c.PROGRESS)
    since = tl.load(row + c.SINCE)
    stalled = tl.load(row + c.STALLED)
    if PATIENT:
        progress = counts & (ratio < mark * 0.9)
        mark = tl.where(progress, ratio, mark)
        since = tl.where(progress | grown, step, since)
        patient = step - since < tl.load(shared + c.PATIENCE)
        stalled = tl.where(tested & ~patient, 1.0, stalled)
        stays = stays & patient
    active = tested & stays
    noted = tl.load(row + c.HALF)
    notes = (half != 0) & (noted == 0)
    half_residual = tl.where(notes, last_residual, tl.load(row + c.HALF_RESIDUAL))
    half_relative = tl.where(notes, last_relative, tl.load(row + c.HALF_RELATIVE))
    tl.debug_barrier()
    tl.store(row + c.ACTIVE, active.to(tl.float64))
    tl.store(row + c.BETTER, better.to(tl.float64))
    tl.store(row + c.BEST_RATIO, best)
    tl.store(row + c.BEST_RESIDUAL, best_residual)
    tl.store(row + c.BEST_RELATIVE, best_relative)
    tl.store(row + c.RESIDUAL, last_residual)
    tl.store(row + c.RELATIVE, last_relative)
    tl.store(row + c.NOW_RESIDUAL, residual)
    tl.store(row + c.NOW_RELATIVE, relative)
    tl.store(row + c.NOW_RATIO, ratio)
    tl.store(row + c.LIMIT, limit)
    tl.store(row + c.FIRST_RATIO, first_ratio)
    tl.store(row + c.FIRST_RESIDUAL, first_residual)
    tl.store(row + c.FIRST_SIZE, first_size)
    tl.store(row + c.MARK_RESIDUAL, mark_residual)
    tl.store(row + c.MARK_SIZE, mark_size)
    tl.store(row + c.HALF, tl.where(notes, 1.0, noted))
    tl.store(row + c.HALF_RESIDUAL, half_residual)
    tl.store(row + c.HALF_RELATIVE, half_relative)
    tl.store(row + c.STEPS, steps)
    tl.store(row + c.STALLED, stalled)
    tl.store(row + c.PROGRESS, mark)
    tl.store(row + c.SINCE, since)
    tl.store(row + c.PREFIX, longest)
    report(out, active, best, first_ratio, ratio, k)
    return active, better


@triton.jit
def judge(
    row,
    shared,
    out,
    token_steps,
    mask,
    residual,
    image,
    point,
    groups,
    final,
    k,
    half,
    G: tl.constexpr,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    GIVEN: tl.constexpr,
    PATIENT: tl.constexpr,
):
    """Test one row by the norms of its groups, (G,); return whether it goes on, and whether its point is the best."""
    group = tl.arange(0, G)
    counted = group < groups
    if MASKED:
        counted = counted & (tl.load(mask + group, mask=counted, other=0) != 0)
    residual, relative, ratio, size, ratios = read_groups(row, shared, residual, image, point, counted)
    prefix = ratio * 0.0
    if TOKENS:
        tested = tl.load(row + c.ACTIVE) > 0
        prefix = converged_prefix(ratios, groups, G)
        note_tokens(token_steps, ratios, groups, k, tested, G)
    return record(row, shared, out, residual, relative, ratio, size, prefix, final, k, half, TOKENS, GIVEN, PATIENT)
