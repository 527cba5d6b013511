"""The scan by the Triton kernels of the package mamba-ssm."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from deqlm.ops.checks import require

__all__ = ["give_up", "mamba_ssm", "why_not"]

CHUNK = 256
"""Tokens per chunk; the package's own default."""
MISSING = "the package mamba-ssm is not installed"
_FOUND: list[tuple[Any, str]] = []
"""The kernels, or None and why not; empty until they are first asked for, because a failed import is slow."""
_GIVEN_UP: list[str] = []
"""Why "auto" leaves them out although they are installed, as it was said; empty where it takes them."""


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
        ImportError: the package is missing, or what is installed cannot be used.
        ValueError: tensors off CUDA, or float64 ones.
    """
    kernel, why = _found()
    if why:
        raise ImportError(
            f'impl="mamba_ssm" needs the package mamba-ssm ({why}); pip install "deqlm[gpu]", or impl="torch"'
        )
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


def why_not() -> str:
    """Return why "auto" cannot take the kernels on a CUDA device; empty where it can.

    The package is imported once; one that is there and fails is said once.
    """
    _, why = _found()
    if why and why != MISSING:
        give_up(why)
    return why or "".join(_GIVEN_UP)


def give_up(why: str) -> None:
    """Let "auto" take the kernels no more in this process, and say so once.

    Args:
        why: what they failed with.
    """
    if not _GIVEN_UP:
        _GIVEN_UP.append(why)
        told = f'the kernels of mamba-ssm are left out, impl="auto" takes "torch": {why}'
        warnings.warn(told, RuntimeWarning, stacklevel=4)


def _found() -> tuple[Any, str]:
    """Return the kernels and "", or None and why they cannot be had."""
    if not _FOUND:
        _FOUND.append(_imported())
    return _FOUND[0]


def _imported() -> tuple[Any, str]:
    try:
        import mamba_ssm  # noqa: F401  # pyright: ignore[reportMissingImports]  # its name tells that it is absent
        from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]
            mamba_chunk_scan_combined,
        )
    except ModuleNotFoundError as error:
        absent = error.name == "mamba_ssm"
        return None, MISSING if absent else f"mamba-ssm is installed and cannot be imported: {error}"
    except Exception as error:
        # extensions that were built for another torch or without CUDA raise whatever their loader does
        return None, f"mamba-ssm is installed and cannot be imported: {type(error).__name__}: {error}"
    why = _no_driver()
    return (None if why else mamba_chunk_scan_combined), why


def _no_driver() -> str:
    """Return why Triton compiles for no device here; empty where it does, or where it interprets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    try:
        from triton.runtime import driver  # pyright: ignore[reportMissingImports]

        driver.active.get_current_target()
    except Exception as error:
        return f"triton finds no device to compile for: {type(error).__name__}: {error}"
    return ""
