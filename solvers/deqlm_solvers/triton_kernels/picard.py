"""Plain iteration: one launch for rows that fit into the registers of a program, three for longer ones."""

# triton types the call of a kernel as one that never returns
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.numbers import norms
from deqlm_solvers.triton_kernels.reading import group_norms, here
from deqlm_solvers.triton_kernels.record import judge


@triton.jit
def damped(z, fz, shared, k, DAMPED: tl.constexpr):
    """Return the point after a plain step."""
    if DAMPED:
        beta = tl.where(k == 0, tl.load(shared + c.FIRST_DAMPING), tl.load(shared + c.DAMPING)).to(z.dtype)
        step = z + beta * (fz - z)
        full = beta == 1
        return tl.where(full, fz, step)
    else:
        return fz


@triton.jit(do_not_specialize=["k", "half", "groups"])
def picard_row(
    z,
    fz,
    z_next,
    best_z,
    rows,
    shared,
    out,
    index,
    token_steps,
    mask,
    k,
    half,
    unknowns,
    groups,
    width,
    WIDTH: tl.constexpr,
    G: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
    TEST: tl.constexpr,
    STEP: tl.constexpr,
    DAMPED: tl.constexpr,
    INDEXED: tl.constexpr,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    GIVEN: tl.constexpr,
    PATIENT: tl.constexpr,
):
    """Test a row, keep its best point and take its step; one program per row, whose unknowns are (groups, width)."""
    i, place = here(index, INDEXED)
    row = rows + i * WIDTH
    group = tl.arange(0, G)[:, None]
    column = tl.arange(0, W)[None, :]
    inside = (group < groups) & (column < width)
    at = group * width + column
    x = tl.load(z + place * unknowns + at, mask=inside, other=0.0)
    y = tl.load(fz + place * unknowns + at, mask=inside, other=0.0)
    if TEST:
        residual = norms(y - x, WIDE)
        image = norms(y, WIDE)
        point = norms(x, WIDE)
        active, better = judge(
            row,
            shared,
            out + i * 2,
            token_steps + i * groups,
            mask + i * groups,
            residual,
            image,
            point,
            groups,
            k >= 0,
            k,
            half,
            G,
            TOKENS,
            MASKED,
            GIVEN,
            PATIENT,
        )
        if better:
            tl.store(best_z + i * unknowns + at, x, mask=inside)
    else:
        active = tl.load(row + c.ACTIVE) > 0
    if STEP:
        stepped = damped(x, y, shared, k, DAMPED)
        tl.store(z_next + place * unknowns + at, tl.where(active, stepped, x), mask=inside)


@triton.jit(do_not_specialize=["k", "half", "groups", "parts"])
def picard_decide(
    sums,
    rows,
    shared,
    out,
    index,
    token_steps,
    mask,
    k,
    half,
    groups,
    parts,
    WIDTH: tl.constexpr,
    G: tl.constexpr,
    INDEXED: tl.constexpr,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    GIVEN: tl.constexpr,
    PATIENT: tl.constexpr,
):
    """Test a row by the norms of its parts; one program per row."""
    i, place = here(index, INDEXED)
    residual, image, point = group_norms(sums + place * parts * 3, parts, G, TOKENS)
    judge(
        rows + i * WIDTH,
        shared,
        out + i * 2,
        token_steps + i * groups,
        mask + i * groups,
        residual,
        image,
        point,
        groups,
        k >= 0,
        k,
        half,
        G,
        TOKENS,
        MASKED,
        GIVEN,
        PATIENT,
    )


@triton.jit(do_not_specialize=["k"])
def picard_apply(
    z,
    fz,
    z_next,
    best_z,
    rows,
    shared,
    index,
    k,
    unknowns,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    TEST: tl.constexpr,
    STEP: tl.constexpr,
    DAMPED: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """Keep the best points and take the step; one program per row and run of unknowns."""
    i, place = here(index, INDEXED)
    active = tl.load(rows + i * WIDTH + c.ACTIVE) > 0
    better = tl.load(rows + i * WIDTH + c.BETTER) > 0
    first = tl.program_id(1) * (STEPS * BLOCK)
    for turn in range(STEPS):
        n = first + turn * BLOCK + tl.arange(0, BLOCK)
        inside = n < unknowns
        x = tl.load(z + place * unknowns + n, mask=inside, other=0.0)
        if TEST:
            if better:
                tl.store(best_z + i * unknowns + n, x, mask=inside)
        if STEP:
            y = tl.load(fz + place * unknowns + n, mask=inside & active, other=0.0)
            stepped = damped(x, y, shared, k, DAMPED)
            tl.store(z_next + place * unknowns + n, tl.where(active, stepped, x), mask=inside)
