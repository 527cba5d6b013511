"""Numbers that are right at every magnitude, and that keep what is not a number."""

# triton types the call of a kernel as one that never returns
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LARGE = tl.constexpr(2.0**500)
SMALL = tl.constexpr(2.0**-500)
UP = tl.constexpr(2.0**600)
DOWN = tl.constexpr(2.0**-600)


@triton.jit
def larger(a, b):
    """Return the larger one, NaN where one is NaN; hardware's own maximum drops it."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def larger_number(a, b):
    """Return the larger one, or the one that is a number."""
    return tl.where((a >= b) | (b != b), a, b)


@triton.jit
def smaller_number(a, b):
    """Return the smaller one, or the one that is a number."""
    return tl.where((a <= b) | (b != b), a, b)


@triton.jit
def at_least(a, least):
    """Return ``a``, but ``least`` where it is smaller; NaN stays."""
    return tl.where(a < least, least, a)


@triton.jit
def worst(x):
    """Return the largest of a vector, NaN where one is NaN."""
    bad = tl.max((x != x).to(tl.int32), axis=0) > 0
    top = tl.max(tl.where(x != x, float("-inf"), x), axis=0)
    return tl.where(bad, float("nan"), top)


@triton.jit
def squares(x, WIDE: tl.constexpr):
    """Return float64 squares of small, usual and large numbers, of which two are zero, the first and last rescaled.

    Of float32 numbers none leaves the range of float64: all are usual.
    """
    x = x.to(tl.float64)
    if WIDE:
        size = tl.abs(x)
        big = size > LARGE
        tiny = size < SMALL
        y = tl.where(big, x * DOWN, tl.where(tiny, x * UP, x))
        y = y * y
        usual = tl.where(big | tiny, 0.0, y)
        low = tl.where(tiny, y, 0.0)
        high = tl.where(big, y, 0.0)
    else:
        usual = x * x
        low = usual * 0.0
        high = low
    return low, usual, high


@triton.jit
def root(low, usual, high):
    """Return the root of the sum of squares of which `squares` were summed."""
    above = tl.sqrt(high + usual * DOWN * DOWN) * UP
    here = tl.sqrt(usual + low * DOWN * DOWN)
    below = tl.sqrt(low) * DOWN
    return tl.where(high > 0, above, tl.where(usual == 0, below, here))


@triton.jit
def norms(x, WIDE: tl.constexpr):
    """Return the norms of the lines of ``x`` (G, W), (G,) float64."""
    low, usual, high = squares(x, WIDE)
    if WIDE:
        return root(tl.sum(low, axis=1), tl.sum(usual, axis=1), tl.sum(high, axis=1))
    else:
        return tl.sqrt(tl.sum(usual, axis=1))


@triton.jit
def power_of_two_near_inverse(norm, WIDE: tl.constexpr):
    """Return 2^-e for norm = m 2^e with m in [.5, 1), 1 where the norm is zero or not finite."""
    most = 1000 if WIDE else 120
    exponent = ((norm.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1022
    exponent = tl.where(exponent > most, most, tl.where(exponent < -most, -most, exponent))
    power = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    return tl.where((norm > 0) & (norm < float("inf")), power, 1.0)


@triton.jit
def rounded(x, like):
    """Return float64 ``x`` as the dtype of ``like`` holds it, in float64."""
    return x.to(like.dtype.element_ty).to(tl.float64)
