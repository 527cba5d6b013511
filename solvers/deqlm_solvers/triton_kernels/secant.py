"""What Anderson's and Broyden's steps read and write of whole rows; the reference is secant.py of the methods.

An evaluation is four launches: `secant_sums` reads the point and the history, `secant_decide` decides per row,
`secant_mix` makes the step and stores the pair, `secant_settle` accepts it or restarts. It is one more where tokens are
read apart. The history of a row is (2, R, N), R = M + 1 slots: for Broyden's good method s and y, else s + beta y and
y, because beta is fixed while pairs last. The slot behind the newest pair, which no pair is in, holds the point and the
residual that the pending step starts from.
"""

# triton types the call of a kernel as one that never returns
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.numbers import squares
from deqlm_solvers.triton_kernels.reading import here, norm_of_lanes, norm_of_parts

LONGEST = tl.constexpr(1e6)
FLOOR = tl.constexpr(1 / 16)
LEAST = tl.constexpr(2.0**-20)
FALLS = tl.constexpr(0.75)
SUMS = tl.constexpr(8)
"""Numbers of a part before the products: norms of f(z) - z, f(z), z, s and y; s . y, and the newest pair times r."""


@triton.jit
def pending_slot(row, R: tl.constexpr):
    """Return the slot of the pair that this step stores, if it stores one, and the slot of the next starting point."""
    newest = tl.load(row + c.NEWEST).to(tl.int32)
    pushes = tl.load(row + c.PUSHES) > 0
    behind = (newest + 1) % R
    return tl.where(pushes, newest, behind), behind


@triton.jit
def secant_sums(
    z,
    fz,
    ring,
    rows,
    partial,
    index,
    unknowns,
    parts,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    MP: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    GOOD: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """Write what one part of a row adds to all norms and products; one program per row and part."""
    i, place = here(index, INDEXED)
    row = rows + i * WIDTH
    moves = (tl.load(row + c.ACTIVE) > 0) & (tl.load(row + c.TAKEN) > 0)
    newest = tl.load(row + c.NEWEST).to(tl.int32)
    pairs = tl.load(row + c.COUNT).to(tl.int32)
    slot = (newest + 1) % R
    lane = tl.arange(0, BLOCK)
    slots = tl.arange(0, MP)
    age = (newest - slots + R) % R
    kept = (slots < R) & (age < pairs) & (age < R - 2) & moves
    history = ring + i * (2 * R * unknowns)
    unit = tl.load(row + c.UNIT).to(z.dtype.element_ty)
    zero = tl.zeros([BLOCK], tl.float64)
    rl, ru, rh = zero, zero, zero
    il, iu, ih = zero, zero, zero
    pl, pu, ph = zero, zero, zero
    sl, su, sh = zero, zero, zero
    yl, yu, yh = zero, zero, zero
    along, newest_r = zero, zero
    blank = tl.zeros([MP, BLOCK], z.dtype.element_ty)
    first, second, third, fourth = blank, blank, blank, blank
    for turn in range(STEPS):
        n = (tl.program_id(1) * STEPS + turn) * BLOCK + lane
        inside = n < unknowns
        x = tl.load(z + place * unknowns + n, mask=inside, other=0.0)
        f = tl.load(fz + place * unknowns + n, mask=inside, other=0.0)
        r = f - x
        low, usual, high = squares(r, WIDE)
        rl += low
        ru += usual
        rh += high
        low, usual, high = squares(f, WIDE)
        il += low
        iu += usual
        ih += high
        low, usual, high = squares(x, WIDE)
        pl += low
        pu += usual
        ph += high
        if moves:
            s = (x - tl.load(history + slot * unknowns + n, mask=inside, other=0.0)) * unit
            y = (r - tl.load(history + (R + slot) * unknowns + n, mask=inside, other=0.0)) * unit
            r = r * unit
            low, usual, high = squares(s, WIDE)
            sl += low
            su += usual
            sh += high
            low, usual, high = squares(y, WIDE)
            yl += low
            yu += usual
            yh += high
            along += s.to(tl.float64) * y.to(tl.float64)
            old_y = tl.load(
                history + (R + slots[:, None]) * unknowns + n[None, :],
                mask=kept[:, None] & inside[None, :],
                other=0.0,
            )
            if GOOD:
                old_s = tl.load(
                    history + slots[:, None] * unknowns + n[None, :],
                    mask=kept[:, None] & inside[None, :],
                    other=0.0,
                )
                first += old_s * s[None, :]
                second += old_s * r[None, :]
                third += old_s * y[None, :]
                fourth += old_y * s[None, :]
                newest_r += s.to(tl.float64) * r.to(tl.float64)
            else:
                first += old_y * y[None, :]
                second += old_y * r[None, :]
                newest_r += y.to(tl.float64) * r.to(tl.float64)
    LINES: tl.constexpr = 4 if GOOD else 2
    to = partial + (place * parts + tl.program_id(1)) * (SUMS + LINES * MP)
    tl.store(to, norm_of_lanes(rl, ru, rh, WIDE))
    tl.store(to + 1, norm_of_lanes(il, iu, ih, WIDE))
    tl.store(to + 2, norm_of_lanes(pl, pu, ph, WIDE))
    tl.store(to + 3, norm_of_lanes(sl, su, sh, WIDE))
    tl.store(to + 4, norm_of_lanes(yl, yu, yh, WIDE))
    tl.store(to + 5, tl.sum(along, axis=0))
    tl.store(to + 6, tl.sum(newest_r, axis=0))
    tl.store(to + SUMS + slots, tl.sum(first.to(tl.float64), axis=1))
    tl.store(to + SUMS + MP + slots, tl.sum(second.to(tl.float64), axis=1))
    if GOOD:
        tl.store(to + SUMS + 2 * MP + slots, tl.sum(third.to(tl.float64), axis=1))
        tl.store(to + SUMS + 3 * MP + slots, tl.sum(fourth.to(tl.float64), axis=1))


@triton.jit
def secant_mix(
    z,
    fz,
    z_next,
    best_z,
    ring,
    restart,
    rows,
    weights,
    lengths,
    index,
    unknowns,
    parts,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    MP: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    GOOD: tl.constexpr,
    TEST: tl.constexpr,
    STEP: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """Keep points, store the newest pair, write the next point if the step is accepted, and the norm of the step."""
    i, place = here(index, INDEXED)
    row = rows + i * WIDTH
    better = tl.load(row + c.BETTER) > 0
    keeps = tl.load(row + c.KEEPS) > 0
    pushes = tl.load(row + c.PUSHES) > 0
    sound = tl.load(row + c.SOUND) > 0
    mode = tl.load(row + c.MODE)
    unit = tl.load(row + c.UNIT).to(z.dtype.element_ty)
    beta = tl.load(row + c.BETA_BEFORE).to(z.dtype.element_ty)
    slot, behind = pending_slot(row, R)
    lane = tl.arange(0, BLOCK)
    ages = tl.arange(0, MP)
    history = ring + i * (2 * R * unknowns)
    own = restart + i * (2 * unknowns)
    used = (ages > 0) & (ages < R - 1) & (ages < tl.load(row + c.COUNT_BEFORE).to(tl.int32)) & pushes
    weight = tl.load(weights + i * MP + ages, mask=used, other=0.0)
    weight = weight.to(z.dtype.element_ty)
    used = used & (weight != 0)
    newest_weight = tl.load(weights + i * MP).to(z.dtype.element_ty)
    slots = tl.where(used, (slot - ages + R) % R, 0)
    zero = tl.zeros([BLOCK], tl.float64)
    low, usual, high = zero, zero, zero
    for turn in range(STEPS):
        n = (tl.program_id(1) * STEPS + turn) * BLOCK + lane
        inside = n < unknowns
        x = tl.load(z + place * unknowns + n, mask=inside, other=0.0)
        if TEST:
            if better:
                tl.store(best_z + i * unknowns + n, x, mask=inside)
        if STEP:
            if mode == c.HELD:
                tl.store(z_next + place * unknowns + n, x, mask=inside)
            else:
                f = tl.load(fz + place * unknowns + n, mask=inside, other=0.0)
                r = f - x
                if keeps:
                    tl.store(own + n, x, mask=inside)
                    tl.store(own + unknowns + n, r, mask=inside)
                step = r * beta
                if pushes:
                    base = tl.load(history + slot * unknowns + n, mask=inside, other=0.0)
                    base_r = tl.load(history + (R + slot) * unknowns + n, mask=inside, other=0.0)
                    y = (r - base_r) * unit
                    s = (x - base) * unit
                    mixed = s + y * beta
                    tl.store(history + (R + slot) * unknowns + n, y, mask=inside)
                    at = history + slots[:, None] * unknowns + n[None, :]
                    old = tl.load(at, mask=used[:, None] & inside[None, :], other=0.0)
                    if GOOD:
                        tl.store(history + slot * unknowns + n, s, mask=inside)
                        old += beta * tl.load(at + R * unknowns, mask=used[:, None] & inside[None, :], other=0.0)
                    else:
                        tl.store(history + slot * unknowns + n, mixed, mask=inside)
                    total = tl.sum(old * weight[:, None], axis=0) + mixed * newest_weight
                    step -= total / unit
                if mode == c.BACK:
                    base = tl.load(history + slot * unknowns + n, mask=inside, other=0.0)
                    base_r = tl.load(history + (R + slot) * unknowns + n, mask=inside, other=0.0)
                    tl.store(z_next + place * unknowns + n, base + base_r * beta, mask=inside)
                else:
                    if sound:
                        tl.store(z_next + place * unknowns + n, x + step, mask=inside)
                        tl.store(history + behind * unknowns + n, x, mask=inside)
                        tl.store(history + (R + behind) * unknowns + n, r, mask=inside)
                a, b, d = squares(step, WIDE)
                low += a
                usual += b
                high += d
    if STEP:
        tl.store(lengths + place * parts + tl.program_id(1), norm_of_lanes(low, usual, high, WIDE))


@triton.jit
def settle(row, accepted):
    """Return beta of the next step, and what else is kept of it, after a step was accepted or not: `Damping.settle`."""
    refused = ~accepted
    norm = tl.load(row + c.NORM)
    pending = tl.load(row + c.PENDING)
    most = tl.load(row + c.MOST_BEFORE)
    above = tl.load(row + c.ABOVE_BEFORE)
    again = refused & (tl.load(row + c.RESTARTED_BEFORE) > 0)
    deeper = again & ~(norm >= above)
    quarter = tl.where(pending * 0.25 < LEAST, LEAST, pending * 0.25)
    below = tl.where(deeper & (quarter < pending), quarter, pending)
    half = tl.where(pending * 0.5 < FLOOR, FLOOR, pending * 0.5)
    lower = tl.where(pending > FLOOR, half, below)
    beta = tl.where(refused, lower, tl.load(row + c.BETA_BEFORE))
    shortened = tl.where(lower < FLOOR, FLOOR, lower)
    most = tl.where(refused & (shortened < most), shortened, most)
    above = tl.where(again & (norm < float("inf")), norm * FALLS, float("nan"))
    spent = again & (lower == pending)
    return beta, most, above, spent


@triton.jit(do_not_specialize=["parts"])
def secant_settle(
    z_next,
    ring,
    restart,
    rows,
    lengths,
    index,
    unknowns,
    parts,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """Accept the step, or go to where restarts begin and take a shorter one; one program per row and part."""
    i, place = here(index, INDEXED)
    row = rows + i * WIDTH
    mode = tl.load(row + c.MODE)
    if mode >= c.TRIES:
        length = norm_of_parts(lengths + place * parts, parts, 1)
        accepted = (tl.load(row + c.SOUND) > 0) & (length <= tl.load(row + c.NORM) * LONGEST)
        tries = mode == c.TRIES
        beta, most, above, spent = settle(row, accepted | ~tries)
        _slot, behind = pending_slot(row, R)
        if tl.program_id(1) == 0:
            kept = tl.where(accepted & tries, tl.load(row + c.COUNT_BEFORE), 0.0)
            tl.store(row + c.COUNT, kept)
            tl.store(row + c.BETA, beta)
            tl.store(row + c.MOST, most)
            tl.store(row + c.ABOVE, above)
            tl.store(row + c.RESTARTED, (tries & ~accepted).to(tl.float64))
            tl.store(row + c.SPENT, spent.to(tl.float64))
        if tries & ~accepted:
            history = ring + i * (2 * R * unknowns)
            own = restart + i * (2 * unknowns)
            for turn in range(STEPS):
                n = (tl.program_id(1) * STEPS + turn) * BLOCK + tl.arange(0, BLOCK)
                inside = n < unknowns
                x = tl.load(own + n, mask=inside, other=0.0)
                r = tl.load(own + unknowns + n, mask=inside, other=0.0)
                tl.store(z_next + place * unknowns + n, x + r * beta.to(x.dtype), mask=inside)
                tl.store(history + behind * unknowns + n, x, mask=inside)
                tl.store(history + (R + behind) * unknowns + n, r, mask=inside)
