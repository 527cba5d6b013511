"""The scan: one meaning, `impl` says how it is computed."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from deqlm.ops.checks import require, whole
from deqlm.ops.ssd.chunked import chunked
from deqlm.ops.ssd.kernel import give_up, mamba_ssm, why_not
from deqlm.ops.ssd.naive import naive

__all__ = ["IMPLS", "Impl", "pick", "scan"]

Impl = Literal["auto", "torch", "mamba_ssm", "naive"]
"""How a scan is computed."""

IMPLS: tuple[str, ...] = get_args(Impl)
"""The names of `Impl`."""


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Return output and final state of S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t.

    Args:
        x: input, (B, L, H, P), L >= 1; without rows, B = 0, all results are empty.
        dt: step sizes after softplus and limits, (B, L, H), not negative; 0 makes a token that changes no state.
        A: decay rate of each head, (H,), not positive.
        B: input map, (B, L, G, N); G divides H, and heads g H/G to (g+1) H/G - 1 share group g.
        C: output map, (B, L, G, N).
        D: skip, (H,) or (H, P), or None.
        initial_state: S before the first token, (B, H, P, N); None is zero.
        chunk_size: tokens that are computed as one matrix product; changes time and rounding only. None takes what
            suits ``impl``; "naive" has no chunks and takes None only.
        impl: "torch" (any device, float32 or float64 inside, differentiable twice), "mamba_ssm" (that package's Triton
            kernels, CUDA, float32 inside), "naive" (float64 recurrence) or "auto": what `pick` says, and for a single
            token or no row, which give the kernels nothing to do, "torch". Where the kernels fail, "auto" warns once
            and takes "torch" from then on.

    Returns:
        y (B, L, H, P) in the dtype of ``x`` (float64 for "naive"), and the state after the last token (B, H, P, N) in
        float32 or wider.

    Raises:
        ValueError: shapes that do not fit, an unknown ``impl``, or tensors that the kernels cannot take.
        ImportError: ``impl="mamba_ssm"`` and the package is missing, or cannot be imported, or finds no device.

    Reference:
        Dao and Gu (2024), Transformers are SSMs, ICML.

    Examples:
        >>> from deqlm.ops import ssd
        >>> x, dt, A = torch.randn(2, 5, 4, 8), torch.rand(2, 5, 4), -torch.rand(4)
        >>> B, C = torch.randn(2, 2, 5, 1, 16)
        >>> y, state = ssd.scan(x, dt, A, B, C)
        >>> begun = ssd.scan(x[:, :3], dt[:, :3], A, B[:, :3], C[:, :3])[1]
        >>> rest = ssd.scan(x[:, 3:], dt[:, 3:], A, B[:, 3:], C[:, 3:], initial_state=begun)
        >>> torch.allclose(rest[0], y[:, 3:], atol=1e-5), torch.allclose(rest[1], state, atol=1e-5)
        (True, True)
    """
    _check(x, dt, A, B, C, D, initial_state)
    require(impl in IMPLS, "impl", impl, f"one of {', '.join(IMPLS)}")
    if chunk_size is not None:
        whole("chunk_size", chunk_size, 1)
    options: dict[str, Any] = {"D": D, "initial_state": initial_state, "chunk_size": chunk_size}
    if impl == "auto":
        impl = "torch" if x.shape[0] == 0 or x.shape[1] == 1 else pick(x.device, x.dtype)
        if impl == "mamba_ssm":
            return _by_kernels_or_torch((x, dt, A, B, C), options)
    if impl == "naive":
        require(chunk_size is None, "chunk_size", chunk_size, 'None for impl="naive", which has no chunks')
        return naive(x, dt, A, B, C, D=D, initial_state=initial_state)
    run = mamba_ssm if impl == "mamba_ssm" else chunked
    return run(x, dt, A, B, C, **options)


def pick(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Impl:
    """Return what "auto" takes: "mamba_ssm" on CUDA where it can be used, except for float64; else "torch".

    The package is imported when this is first asked of a CUDA device; one that is there and fails warns once.

    Examples:
        >>> pick("cpu")
        'torch'
    """
    fast = torch.device(device).type == "cuda" and dtype != torch.float64 and not why_not()
    return "mamba_ssm" if fast else "torch"


def _by_kernels_or_torch(given: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what the kernels make; where they fail, which nobody asked for by name, what torch does."""
    try:
        return mamba_ssm(*given, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        give_up(f"{type(error).__name__}: {error}")
        return chunked(*given, **options)


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial_state: Tensor | None
) -> None:
    require(x.dim() == 4, "x", tuple(x.shape), "of shape (B, L, H, P)")
    batch, length, heads, width = x.shape
    require(length >= 1, "the length of x", length, ">= 1")
    require(dt.shape == x.shape[:3], "dt", tuple(dt.shape), f"of shape (B, L, H), {tuple(x.shape[:3])}")
    require(A.shape == (heads,), "A", tuple(A.shape), f"of shape (H,), {(heads,)}")
    require(B.dim() == 4 and B.shape[:2] == (batch, length), "B", tuple(B.shape), f"({batch}, {length}, G, N)")
    require(C.shape == B.shape, "C", tuple(C.shape), f"of the shape of B, {tuple(B.shape)}")
    groups, size = B.shape[2:]
    require(groups >= 1 and heads % groups == 0, "the groups of B", groups, f"a divisor of the {heads} heads")
    if D is not None:
        require(D.shape in ((heads,), (heads, width)), "D", tuple(D.shape), f"({heads},) or ({heads}, {width})")
    if initial_state is not None:
        want = (batch, heads, width, size)
        require(initial_state.shape == want, "initial_state", tuple(initial_state.shape), f"of shape {want}")
