"""The scan by the Triton kernels of the package mamba-ssm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deqlm.ops.checks import require

__all__ = ["mamba_ssm"]

CHUNK = 256
"""Tokens per chunk; the package's own default."""


def mamba_ssm(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output and final state; arguments, shapes and results are those of `deqlm.ops.ssd.scan`.

    The kernels compute in float32 and have a backward of first order only.

    Raises:
        ImportError: the package is missing.
        ValueError: tensors off CUDA, or float64 ones.
    """
    kernel = _kernel()
    where = 'on a CUDA device for impl="mamba_ssm"; impl="torch" runs everywhere'
    require(x.is_cuda, "x", str(x.device), where)
    require(x.dtype != torch.float64, "the dtype of x", x.dtype, 'float32 or less for impl="mamba_ssm"')
    y, state = kernel(
        x,
        dt.float(),
        A.float(),
        B,
        C,
        CHUNK if chunk_size is None else chunk_size,
        D=None if D is None else D.float(),
        initial_states=None if initial_state is None else initial_state.float(),
        return_final_states=True,
    )
    return y.to(x.dtype), state.float()


def _kernel() -> Any:
    try:
        from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]
            mamba_chunk_scan_combined,
        )
    except ImportError as error:
        raise ImportError(
            f'impl="mamba_ssm" needs the package mamba-ssm ({error}); pip install "deqlm[gpu]", or impl="torch"'
        ) from error
    return mamba_chunk_scan_combined
