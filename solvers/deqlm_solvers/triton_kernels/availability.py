"""Whether the kernels can run here, and why not."""

from __future__ import annotations

import functools
import importlib
import re

import torch

__all__ = ["interpreted", "why_not"]

OLDEST, NEWEST = (3, 6), (4, 0)
"""Versions of triton that the kernels are written for, the last one not included."""


def interpreted() -> bool:
    """Say whether TRITON_INTERPRET=1 was set: the kernels then run on CPU tensors, slowly, for tests."""
    knobs = importlib.import_module("triton").knobs
    return bool(knobs.runtime.interpret)


def why_not(device: torch.device) -> str:
    """Return why the kernels cannot run on ``device``, in words; empty where they can."""
    why = _missing()
    if why or interpreted():
        return why
    if device.type != "cuda":
        return (
            f"it runs on CUDA and ROCm devices, and the state is on {device}; TRITON_INTERPRET=1 in the environment "
            "runs it on a CPU, for tests"
        )
    return _without_driver()


@functools.cache
def _missing() -> str:
    try:
        triton = importlib.import_module("triton")
        version = str(triton.__version__)
    except (ImportError, AttributeError) as error:
        return f'it needs the package triton ({error}); pip install "deqlm[gpu]"'
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not OLDEST <= found < NEWEST:
        wanted = f">={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, NEWEST))}"
        return f"it is written for triton{wanted}, and triton {version} is installed"
    return ""


@functools.cache
def _without_driver() -> str:
    """Return why triton has no backend for the device, in words; empty where it has one."""
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever a backend raises that does not find its driver
        return f"triton has no backend for this device ({error})"
    return ""
