"""What a solve keeps of every row, one float64 number each, and the numbers that all rows share.

Each is the place of a number in a row of the state, (B, `WIDTH`), or of the shared vector, (`SHARED`,). Flags are 0
or 1.
"""

from __future__ import annotations

import triton.language as tl  # pyright: ignore[reportMissingImports]

# what the books keep: see tracker.py and runaway.py
(
    ACTIVE,
    BETTER,  # whether the point of the last test is the best one
    BEST_RATIO,
    BEST_RESIDUAL,
    BEST_RELATIVE,
    RESIDUAL,  # of the last point that counts
    RELATIVE,
    NOW_RESIDUAL,  # of the last point
    NOW_RELATIVE,
    NOW_RATIO,
    LIMIT,
    FIRST_RATIO,
    FIRST_RESIDUAL,
    FIRST_SIZE,
    MARK_RESIDUAL,
    MARK_SIZE,
    HALF,
    HALF_RESIDUAL,
    HALF_RELATIVE,
    STEPS,
    STALLED,
    PROGRESS,
    SINCE,
    PREFIX,
    SCALE,
    ATOL,
    PICKED,
    # what a step that mixes keeps: see secant.py and damping.py
    TAKEN,
    NORM,
    FIRST_NORM,
    BEST_NORM,
    UNIT,
    NEWEST,  # slot of the newest pair
    PUSHES,  # whether this step stores a pair
    KEEPS,  # whether its point is where restarts begin
    MODE,
    SOUND,
    PENDING,
    # as the decision leaves them, and as the acceptance of the step does
    COUNT_BEFORE,
    BETA_BEFORE,
    MOST_BEFORE,
    ABOVE_BEFORE,
    RESTARTED_BEFORE,
    COUNT,
    BETA,
    MOST,
    ABOVE,
    RESTARTED,
    SPENT,
    # see plain_phase.py
    IDLE,
    FALL_FROM,
    START,
    PEAK,
    WAY_START,
    LAST,
    LARGEST,
    LEAST,
    BELOW,
    WAY,
    MIXES,
    PLAIN,
    AWAY,
) = (tl.constexpr(i) for i in range(62))
WIDTH = 64

(
    RTOL,
    DIVERGENCE,
    BEYOND,
    SMALLEST,
    SHARE,
    HIDDEN,
    SURE,
    ROOT,  # divisor of a norm
    DAMPING,
    FIRST_DAMPING,
    GROWTH,
    RIDGE,
    LEAST_PIVOT,
    PLAIN_RATE,
    LATER_RATE,
    NEAR,
    PLAIN_FIRST,
    FITS,
    PATIENCE,
) = (tl.constexpr(i) for i in range(19))
SHARED = 20

# what a row does at a point
HELD, FIRST, TRIES, BACK = (tl.constexpr(i) for i in range(4))
