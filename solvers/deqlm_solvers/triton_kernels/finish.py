"""What a solve tells of every row at its end; the reference is `RowTracker.finish`."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.record import STILL_PASSES


@triton.jit(do_not_specialize=["count"])
def finish(
    rows,
    shared,
    numbers,
    steps,
    status,
    runaway,
    picked,
    count,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    VANISHING: tl.constexpr,
):
    """Write residual, relative residual, and residual and size of the first point, (4, count), steps and statuses."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = rows + i * WIDTH
    best = tl.load(row + c.BEST_RATIO, mask=inside, other=0.0)
    lost = (best <= 1) & (tl.load(row + c.NOW_RATIO, mask=inside, other=0.0) > STILL_PASSES)
    now_residual = tl.load(row + c.NOW_RESIDUAL, mask=inside, other=0.0)
    now_relative = tl.load(row + c.NOW_RELATIVE, mask=inside, other=0.0)
    residual = tl.where(lost, now_residual, tl.load(row + c.RESIDUAL, mask=inside, other=0.0))
    relative = tl.where(lost, now_relative, tl.load(row + c.RELATIVE, mask=inside, other=0.0))
    best_residual = tl.where(lost, now_residual, tl.load(row + c.BEST_RESIDUAL, mask=inside, other=0.0))
    best_relative = tl.where(lost, now_relative, tl.load(row + c.BEST_RELATIVE, mask=inside, other=0.0))
    best = tl.where(lost, float("inf"), best)
    # later lines win; the numbers are those of Status
    code = tl.zeros([BLOCK], tl.int32) + 2
    if VANISHING:
        halfway = tl.load(row + c.HALF_RESIDUAL, mask=inside, other=0.0)
        relative_then = tl.load(row + c.HALF_RELATIVE, mask=inside, other=0.0)
        noted = tl.load(row + c.HALF, mask=inside, other=0.0) > 0
        code = tl.where(noted & (residual <= halfway * 0.75) & (relative >= relative_then * 0.9), 3, code)
    code = tl.where(tl.load(row + c.STALLED, mask=inside, other=0.0) > 0, 3, code)
    ran = best == tl.load(shared + c.BEYOND)
    code = tl.where((residual > tl.load(row + c.LIMIT, mask=inside, other=0.0)) | ran, 4, code)
    code = tl.where(tl.abs(residual) < float("inf"), code, 5)
    code = tl.where(best <= 1, 0, code)
    tl.store(numbers + i, best_residual, mask=inside)
    tl.store(numbers + count + i, best_relative, mask=inside)
    tl.store(numbers + 2 * count + i, tl.load(row + c.FIRST_RESIDUAL, mask=inside, other=0.0), mask=inside)
    tl.store(numbers + 3 * count + i, tl.load(row + c.FIRST_SIZE, mask=inside, other=0.0), mask=inside)
    tl.store(steps + i, tl.load(row + c.STEPS, mask=inside, other=0.0).to(tl.int64), mask=inside)
    tl.store(status + i, code.to(tl.int8), mask=inside)
    tl.store(runaway + i, (ran & (code == 4)).to(tl.int8), mask=inside)
    tl.store(picked + i, tl.load(row + c.PICKED, mask=inside, other=0.0).to(tl.int8), mask=inside)
