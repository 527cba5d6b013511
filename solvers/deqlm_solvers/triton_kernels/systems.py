"""The small system of one row in float64, in the registers of one program; a bad one gives zeros."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def finite(x):
    """Return ``x`` with zeros for what is not a finite number."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def scaled(system, squares, used):
    """Return the system scaled by the roots of ``squares`` (M,) on both sides, zero where not used, and the scale."""
    scale = tl.where(used & (squares > 0), 1.0 / tl.sqrt(tl.where(squares > 0, squares, 1.0)), 0.0)
    return system * (scale[:, None] * scale[None, :]), scale


@triton.jit
def solve_leading(a, b, least_pivot, size, M: tl.constexpr):
    """Solve the leading part of a scaled Gram system: unknowns up to the first that depends on those before it.

    Gauss-Jordan elimination from the first pivot on: a pivot is the squared sine of the angle between a column and the
    span of those before it, and before each pivot ``b`` holds the solution of the part before it. See small_systems.py.
    """
    line = tl.arange(0, M)
    whole = tl.sum(tl.sum(a, axis=1), axis=0)
    if ~(tl.abs(whole) < float("inf")):
        a = tl.where(line[:, None] == line[None, :], 1.0, tl.zeros_like(a))
    good = size >= 0
    solved = line < 0
    for j in range(0, size):
        top = tl.sum(tl.where(line[:, None] == j, a, 0.0), axis=0)
        side = tl.sum(tl.where(line[None, :] == j, a, 0.0), axis=1)
        right = tl.sum(tl.where(line == j, b, 0.0), axis=0)
        pivot = tl.sum(tl.where(line == j, top, 0.0), axis=0)
        good = good & (pivot > least_pivot)
        inverse = 1.0 / tl.where(good, pivot, 1.0)
        factor = tl.where(line == j, 1.0 - inverse, side * inverse)
        factor = tl.where(good, factor, 0.0)
        a = a - factor[:, None] * top[None, :]
        b = b - factor * right
        solved = solved | ((line == j) & good)
    return finite(tl.where(solved, b, 0.0))


@triton.jit
def solve_general(a, b, size, M: tl.constexpr):
    """Solve a square system by elimination with partial pivoting; zeros where it is singular or not finite."""
    line = tl.arange(0, M)
    good = tl.abs(tl.sum(tl.sum(a, axis=1), axis=0)) < float("inf")
    unknown = tl.zeros([M], tl.int32) - 1
    for j in range(0, size):
        side = tl.sum(tl.where(line[None, :] == j, a, 0.0), axis=1)
        heights = tl.where((unknown < 0) & (line < size), tl.abs(side), -1.0)
        height = tl.max(heights, axis=0)
        p = tl.min(tl.where(heights == height, line, M), axis=0)
        good = good & (height > 0)
        top = tl.sum(tl.where(line[:, None] == p, a, 0.0), axis=0)
        right = tl.sum(tl.where(line == p, b, 0.0), axis=0)
        pivot = tl.sum(tl.where(line == p, side, 0.0), axis=0)
        inverse = 1.0 / tl.where(good, pivot, 1.0)
        factor = tl.where(line == p, 1.0 - inverse, side * inverse)
        factor = tl.where(good, factor, 0.0)
        a = a - factor[:, None] * top[None, :]
        b = b - factor * right
        unknown = tl.where(line == p, j, unknown)
    # line p holds unknown number unknown[p]
    x = tl.sum(tl.where(unknown[:, None] == line[None, :], b[:, None], 0.0), axis=0)
    return tl.where(good, finite(x), 0.0)
