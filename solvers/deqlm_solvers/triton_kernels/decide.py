"""What a row does at a new point of a step that mixes; the reference is secant.py of the methods, `Secant._advance`."""

# triton types the call of a kernel as one that never returns
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.numbers import power_of_two_near_inverse, rounded
from deqlm_solvers.triton_kernels.phase import begin_phase, look, note_gain
from deqlm_solvers.triton_kernels.reading import AT_ONCE, group_norms, here, norm_of_parts
from deqlm_solvers.triton_kernels.record import judge
from deqlm_solvers.triton_kernels.secant import SUMS
from deqlm_solvers.triton_kernels.systems import scaled, solve_general, solve_leading

TOO_LONG = tl.constexpr(8.0)
SHORTEST = tl.constexpr(2.0**-60)

LINES_AT_ONCE = tl.constexpr(16)
"""Parts whose products are added side by side, so that a program does not wait for each."""

ANDERSON, GOOD, BAD = (tl.constexpr(i) for i in range(3))


@triton.jit
def sum_of_parts(at, parts, stride):
    """Return the sum over parts of one number each; the order of the sum depends on their number alone."""
    lane = tl.arange(0, AT_ONCE)
    total = tl.zeros([AT_ONCE], tl.float64)
    for first in range(0, parts, AT_ONCE):
        part = first + lane
        total += tl.load(at + part * stride, mask=part < parts, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def products_by_age(at, newest, parts, stride, R: tl.constexpr, MP: tl.constexpr):
    """Return products with the kept pairs, (MP,), by the age that they have once another pair is stored; none has 0."""
    ages = tl.arange(0, MP)
    inside = (ages > 0) & (ages < R - 1)
    slots = tl.where(inside, (newest - ages + 1 + R) % R, 0)
    line = tl.arange(0, LINES_AT_ONCE)[:, None]
    total = tl.zeros([LINES_AT_ONCE, MP], tl.float64)
    for first in range(0, parts, LINES_AT_ONCE):
        part = first + line
        total += tl.load(at + part * stride + slots[None, :], mask=(part < parts) & inside[None, :], other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def gram_by_age(gram, newest, head, side, R: tl.constexpr, MP: tl.constexpr):
    """Return products of all pairs with each other, (MP, MP), by age; ``head`` and ``side`` are those of the newest."""
    ages = tl.arange(0, MP)
    line, column = ages[:, None], ages[None, :]
    inside = (line > 0) & (column > 0) & (line < R - 1) & (column < R - 1)
    from_slot = tl.where(inside, (newest - line + 1 + R) % R, 0)
    to_slot = tl.where(inside, (newest - column + 1 + R) % R, 0)
    old = tl.load(gram + from_slot * R + to_slot, mask=inside, other=0.0)
    old = tl.where(column == 0, side[:, None], old)
    return tl.where(line == 0, head[None, :], old)


@triton.jit
def store_gram(gram, newest, head, side, R: tl.constexpr, MP: tl.constexpr):
    """Store the products of the pair that is about to be the newest one."""
    ages = tl.arange(0, MP)
    slot = (newest + 1) % R
    slots = (slot - tl.where(ages < R - 1, ages, 0) + R) % R
    tl.store(gram + slot * R + slots, head, mask=ages < R - 1)
    tl.store(gram + slots * R + slot, side, mask=(ages < R - 1) & (ages > 0))


@triton.jit
def weigh(
    row,
    shared,
    gram,
    weights,
    at,
    newest,
    parts,
    stride,
    beta,
    pairs,
    dead,
    stores,
    R: tl.constexpr,
    MP: tl.constexpr,
    KIND: tl.constexpr,
):
    """Store the weights of the mix, by age, and the products of the newest pair; return what Anderson's mix gains.

    pairs: how many pairs are used, the newest included; dead: the newest is not to be used.
    """
    ages = tl.arange(0, MP)
    used = (ages < pairs) & (ages < R - 1) & ((ages > 0) | ~dead)
    size = tl.where(pairs < R - 1, pairs, R - 1)
    new_r = sum_of_parts(at + 6, parts, stride)
    right = tl.where(ages == 0, new_r, products_by_age(at + SUMS + MP, newest, parts, stride, R, MP))
    right = tl.where(used, right, 0.0)
    if KIND == GOOD:
        along = sum_of_parts(at + 5, parts, stride)
        moved = norm_of_parts(at + 3, parts, stride)
        ss = tl.where(ages == 0, moved * moved, products_by_age(at + SUMS, newest, parts, stride, R, MP))
        down = tl.where(ages == 0, along, products_by_age(at + SUMS + 2 * MP, newest, parts, stride, R, MP))
        over = tl.where(ages == 0, along, products_by_age(at + SUMS + 3 * MP, newest, parts, stride, R, MP))
        both = gram_by_age(gram, newest, ss, ss, R, MP)
        cross = gram_by_age(gram + R * R, newest, over, down, R, MP)
        system = tl.where(ages[None, :] > ages[:, None], both, 0.0) + cross * beta
        right = right * beta
        tl.debug_barrier()
        if stores:
            store_gram(gram, newest, ss, ss, R, MP)
            store_gram(gram + R * R, newest, over, down, R, MP)
    else:
        changed = norm_of_parts(at + 4, parts, stride)
        yy = tl.where(ages == 0, changed * changed, products_by_age(at + SUMS, newest, parts, stride, R, MP))
        both = gram_by_age(gram, newest, yy, yy, R, MP)
        system = both
        if KIND == BAD:
            system = tl.where(ages[None, :] <= ages[:, None], both, 0.0)
        tl.debug_barrier()
        if stores:
            store_gram(gram, newest, yy, yy, R, MP)
    diagonal = ages[:, None] == ages[None, :]
    squares = tl.sum(tl.where(diagonal, both, 0.0), axis=1)
    system, scale = scaled(system, squares, used)
    right = right * scale
    if KIND == ANDERSON:
        system = tl.where(diagonal, tl.load(shared + c.RIDGE) + 1.0, system)
        x = solve_leading(system, right, tl.load(shared + c.LEAST_PIVOT), size, MP)
    else:
        system = tl.where(diagonal & (scale == 0)[:, None], 1.0, system)
        x = solve_general(system, right, size, MP)
    tl.store(weights + ages, x * scale)
    return tl.sum(x * right, axis=0)


@triton.jit
def first_step(row, shared, norm, WIDE: tl.constexpr):
    """Set what a row keeps at its first point."""
    beta = tl.load(row + c.BETA)
    tl.debug_barrier()
    tl.store(row + c.NORM, norm)
    tl.store(row + c.FIRST_NORM, norm)
    tl.store(row + c.BEST_NORM, norm)
    tl.store(row + c.UNIT, power_of_two_near_inverse(norm, WIDE))
    begin_phase(row, shared, norm)
    tl.store(row + c.TAKEN, 1.0)
    tl.store(row + c.KEEPS, 1.0)
    tl.store(row + c.PUSHES, 0.0)
    tl.store(row + c.SOUND, 1.0)
    tl.store(row + c.MODE, 1.0)
    tl.store(row + c.BETA_BEFORE, beta)
    tl.store(row + c.PICKED, 0.0)


@triton.jit
def next_step(
    z,
    row,
    shared,
    gram,
    weights,
    at,
    norm,
    image,
    parts,
    stride,
    R: tl.constexpr,
    MP: tl.constexpr,
    KIND: tl.constexpr,
    PHASED: tl.constexpr,
    FITS: tl.constexpr,
):
    """Decide what a row does at a later point, and the weights of its mix."""
    taken = tl.load(row + c.TAKEN)
    newest = tl.load(row + c.NEWEST).to(tl.int32)
    first_norm = tl.load(row + c.FIRST_NORM)
    best_norm = tl.load(row + c.BEST_NORM)
    unit = tl.load(row + c.UNIT)
    beta = tl.load(row + c.BETA)
    most = tl.load(row + c.MOST)
    restarted = tl.load(row + c.RESTARTED)
    above = tl.load(row + c.ABOVE)
    idle = tl.load(row + c.IDLE)
    moved = norm_of_parts(at + 3, parts, stride)
    changed = norm_of_parts(at + 4, parts, stride)
    sound = norm <= first_norm * (tl.load(shared + c.GROWTH) * tl.exp(tl.log(taken + 1.0) * -1.1))
    left_out = ~sound
    better = norm < best_norm
    pairs = tl.load(row + c.COUNT) + 1.0
    back = sound & left_out
    plain = back
    if PHASED:
        along = tl.where(left_out, 0.0, sum_of_parts(at + 5, parts, stride))
        reach = tl.where(left_out, 0.0, moved * changed)
        plain, back, sets_out, bears, arrived, lost = look(row, shared, norm, image, along, reach, idle)
        sound = (sound | bears) & ~lost
        first_norm = tl.where(arrived & (norm > first_norm), norm, first_norm)
        beta = tl.where(sets_out, tl.load(shared + c.DAMPING), beta)
        better = (better & ~back) | arrived
        pairs = tl.where(plain, 0.0, pairs)
        tl.store(row + c.PICKED, (~plain).to(tl.float64))
    pending = tl.where(restarted > 0, beta, most)
    fitted = most
    if FITS:
        scale = moved / changed
        longer = tl.where(scale < SHORTEST, SHORTEST, scale)
        fitted = tl.where(scale * TOO_LONG <= most, rounded(longer, z), most)
    beta = tl.where((pairs == 1) & ~left_out, fitted, beta)
    pushes = sound & ~plain & ~left_out
    dead = left_out | ~(moved > 0)
    gain = weigh(
        row,
        shared,
        gram,
        weights,
        at,
        newest,
        parts,
        stride,
        beta,
        pairs.to(tl.int32),
        dead,
        pushes,
        R,
        MP,
        KIND,
    )
    if PHASED:
        length = unit * norm
        note_gain(row, plain, idle, gain, length * length)
    tl.debug_barrier()
    tl.store(row + c.NORM, norm)
    tl.store(row + c.FIRST_NORM, first_norm)
    tl.store(row + c.BEST_NORM, tl.where(better, norm, best_norm))
    tl.store(row + c.KEEPS, better.to(tl.float64))
    tl.store(row + c.PUSHES, pushes.to(tl.float64))
    tl.store(row + c.NEWEST, tl.where(pushes, (newest + 1) % R, newest).to(tl.float64))
    tl.store(row + c.SOUND, sound.to(tl.float64))
    tl.store(row + c.MODE, tl.where(back, 3.0, 2.0).to(tl.float64))
    tl.store(row + c.TAKEN, taken + 1.0)
    tl.store(row + c.PENDING, pending)
    tl.store(row + c.COUNT_BEFORE, pairs)
    tl.store(row + c.BETA_BEFORE, beta)
    tl.store(row + c.MOST_BEFORE, most)
    tl.store(row + c.ABOVE_BEFORE, above)
    tl.store(row + c.RESTARTED_BEFORE, restarted)


@triton.jit(do_not_specialize=["k", "half", "groups", "parts"])
def secant_decide(
    z,
    partial,
    sums,
    rows,
    shared,
    out,
    gram,
    weights,
    index,
    token_steps,
    mask,
    k,
    half,
    groups,
    parts,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    MP: tl.constexpr,
    G: tl.constexpr,
    KIND: tl.constexpr,
    PHASED: tl.constexpr,
    FITS: tl.constexpr,
    WIDE: tl.constexpr,
    TEST: tl.constexpr,
    STEP: tl.constexpr,
    INDEXED: tl.constexpr,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    GIVEN: tl.constexpr,
    PATIENT: tl.constexpr,
):
    """Test a row and decide what it does; one program per row."""
    i, place = here(index, INDEXED)
    row = rows + i * WIDTH
    LINES: tl.constexpr = 4 if KIND == GOOD else 2
    stride = SUMS + LINES * MP
    at = partial + place * parts * stride
    norm = norm_of_parts(at, parts, stride)
    image = norm_of_parts(at + 1, parts, stride)
    taken = tl.load(row + c.TAKEN)
    if TEST:
        if TOKENS:
            residual, size, point = group_norms(sums + place * groups * 3, groups, G, TOKENS)
        else:
            zero = tl.zeros([G], tl.float64)
            residual, size, point = norm + zero, image + zero, norm_of_parts(at + 2, parts, stride) + zero
        final = (taken == 0) | (tl.load(row + c.SPENT) > 0)
        active, _better = judge(
            row,
            shared,
            out + i * 2,
            token_steps + i * groups,
            mask + i * groups,
            residual,
            size,
            point,
            groups,
            final,
            k,
            half,
            G,
            TOKENS,
            MASKED,
            GIVEN,
            PATIENT,
        )
    else:
        active = tl.load(row + c.ACTIVE) > 0
    if STEP:
        if active:
            if taken == 0:
                first_step(row, shared, norm, WIDE)
            else:
                LAYERS: tl.constexpr = 2 if KIND == GOOD else 1
                next_step(
                    z,
                    row,
                    shared,
                    gram + i * (LAYERS * R * R),
                    weights + i * MP,
                    at,
                    norm,
                    image,
                    parts,
                    stride,
                    R,
                    MP,
                    KIND,
                    PHASED,
                    FITS,
                )
        else:
            tl.store(row + c.MODE, 0.0)
            tl.store(row + c.KEEPS, 0.0)
            tl.store(row + c.PUSHES, 0.0)
