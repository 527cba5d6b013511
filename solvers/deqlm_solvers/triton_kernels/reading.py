"""Norms of rows that are longer than what one program holds."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels.numbers import root, squares

AT_ONCE = tl.constexpr(64)


@triton.jit
def here(index, INDEXED: tl.constexpr):
    """Return the row of the state, and the row of the batch, of this program."""
    place = tl.program_id(0).to(tl.int64)
    if INDEXED:
        row = tl.load(index + place)
    else:
        row = place
    return row, place


@triton.jit
def norm_of_lanes(low, usual, high, WIDE: tl.constexpr):
    """Return the root of what lanes have summed of `squares`."""
    if WIDE:
        return root(tl.sum(low, axis=0), tl.sum(usual, axis=0), tl.sum(high, axis=0))
    else:
        return tl.sqrt(tl.sum(usual, axis=0))


@triton.jit
def norm_of_parts(at, parts, stride):
    """Return the norm of a row of which ``at`` has the norms of all parts, added in their order."""
    lane = tl.arange(0, AT_ONCE)
    zero = tl.zeros([AT_ONCE], tl.float64)
    low, usual, high = zero, zero, zero
    for first in range(0, parts, AT_ONCE):
        part = first + lane
        a, b, d = squares(tl.load(at + part * stride, mask=part < parts, other=0.0), True)
        low += a
        usual += b
        high += d
    return norm_of_lanes(low, usual, high, True)


@triton.jit
def group_norms(at, parts, G: tl.constexpr, TOKENS: tl.constexpr):
    """Return the norms of f(z) - z, f(z) and z of every group, (G,), of which ``at`` has (parts, 3)."""
    group = tl.arange(0, G)
    if TOKENS:
        inside = group < parts
        residual = tl.load(at + group * 3, mask=inside, other=0.0)
        image = tl.load(at + group * 3 + 1, mask=inside, other=0.0)
        point = tl.load(at + group * 3 + 2, mask=inside, other=0.0)
    else:
        zero = tl.zeros([G], tl.float64)
        residual = norm_of_parts(at, parts, 3) + zero
        image = norm_of_parts(at + 1, parts, 3) + zero
        point = norm_of_parts(at + 2, parts, 3) + zero
    return residual, image, point


@triton.jit(do_not_specialize=["parts"])
def part_norms(
    z,
    fz,
    sums,
    unknowns,
    parts,
    outer,
    inner,
    length,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write the norms of f(z) - z, f(z) and z over one part of a row: a token, or a run of unknowns.

    Where tokens are read apart, a row is (outer, length, inner) unknowns, ``length`` of which are tokens.
    """
    place = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    zero = tl.zeros([BLOCK], tl.float64)
    rl, ru, rh = zero, zero, zero
    il, iu, ih = zero, zero, zero
    pl, pu, ph = zero, zero, zero
    if TOKENS:
        end = outer * inner
        turns = tl.cdiv(end, BLOCK)
        first = 0
    else:
        end = unknowns
        turns = STEPS
        first = part * (STEPS * BLOCK)
    for turn in range(turns):
        n = first + turn * BLOCK + tl.arange(0, BLOCK)
        inside = n < end
        if TOKENS:
            at = (n // inner) * (length * inner) + part * inner + n % inner
        else:
            at = n
        x = tl.load(z + place * unknowns + at, mask=inside, other=0.0)
        y = tl.load(fz + place * unknowns + at, mask=inside, other=0.0)
        low, usual, high = squares(y - x, WIDE)
        rl += low
        ru += usual
        rh += high
        low, usual, high = squares(y, WIDE)
        il += low
        iu += usual
        ih += high
        low, usual, high = squares(x, WIDE)
        pl += low
        pu += usual
        ph += high
    to = sums + (place * parts + part) * 3
    tl.store(to, norm_of_lanes(rl, ru, rh, WIDE))
    tl.store(to + 1, norm_of_lanes(il, iu, ih, WIDE))
    tl.store(to + 2, norm_of_lanes(pl, pu, ph, WIDE))
