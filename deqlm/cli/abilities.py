"""What this machine can do beside torch operations on a CPU, and why not."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch

from deqlm.ops.ssd.kernel import why_not
from deqlm.reporting.environment import version_of
from deqlm.wrap.captured import GRAPHS

__all__ = ["abilities", "cuda", "graphs", "mamba_kernels", "triton"]


def abilities() -> dict[str, str]:
    """Return by its name what each piece can do here: "yes" with what it is, or "no" with the reason."""
    return {
        "cuda": cuda(),
        "triton": triton(),
        "mamba_ssm": mamba_kernels(),
        "causal_conv1d": conv_kernels(),
        "graph=True": graphs(),
    }


def cuda() -> str:
    """Return whether torch has a CUDA or ROCm device."""
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return f"yes: {names}"
    if torch.version.cuda is None and torch.version.hip is None:
        return "no: this torch is built without CUDA and ROCm"
    return "no: torch is built for it and finds no device or no driver"


def triton() -> str:
    """Return whether Triton is there and has a device to compile for."""
    if find_spec("triton") is None:
        return 'no: the package triton is not installed; pip install "deqlm[gpu]"'
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"no: triton is installed and cannot be imported: {type(error).__name__}: {error}"
    version = version_of("triton") or "of unknown version"
    if not torch.cuda.is_available():
        return f"no: triton {version} is installed and has no device to compile for"
    return f"yes: triton {version}"


def mamba_kernels() -> str:
    """Return whether Mamba2's scan can take the kernels of mamba-ssm; imports them on a machine with a device."""
    if find_spec("mamba_ssm") is None:
        return 'no: the package mamba-ssm is not installed; pip install "deqlm[gpu]"'
    version = version_of("mamba-ssm") or "of unknown version"
    if not torch.cuda.is_available():
        return f"no: mamba-ssm {version} is installed and needs a CUDA device"
    why = why_not()
    return f"no: {why}" if why else f"yes: mamba-ssm {version}"


def conv_kernels() -> str:
    """Return whether causal-conv1d is there, which nothing here calls."""
    there = "installed" if find_spec("causal_conv1d") is not None else "not installed"
    return f"no: {there}, and not used: the convolution is torch's"


def graphs() -> str:
    """Return whether calls can be captured."""
    if torch.cuda.is_available() and "cuda" in GRAPHS:
        return "yes: budgets and Stop(check_every=0) without grad"
    return "no: a call is captured on a CUDA device only"
