"""The map as the driver calls it: checked, counted, and cast to the inner dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.checks import require
from deqlm_solvers.solution import Cost
from deqlm_solvers.solver import Evaluation, Map

__all__ = ["HALF", "CountedMap", "check_start", "inner_dtype"]

HALF = (torch.bfloat16, torch.float16)


def inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of iterates and algebra for a state of ``dtype``: at least float32."""
    return torch.float32 if dtype in HALF else dtype


def check_start(z0: Tensor) -> None:
    """Raise unless ``z0`` is a (B, N) floating-point tensor.

    Raises:
        TypeError: no tensor.
        ValueError: wrong number of dimensions, or an integer or complex dtype.
    """
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be a tensor, got {type(z0).__name__}")
    require(z0.dim() == 2, "z0", tuple(z0.shape), "of shape (B, N), rows by unknowns")
    require(z0.is_floating_point(), "z0", z0.dtype, "floating point (z0.float()); complex as pairs of reals")


class CountedMap:
    """Evaluates f: checks what it returns, counts calls, and does half precision in float32.

    A bfloat16 or float16 state lives on its own grid: f sees the rounded point, and the residual is that of the rounded
    point, so what is returned has the residual that is reported. Autocast is left to f: the driver turns it off for
    its own algebra, and it is on again inside f.

    Args:
        f: the map.
        z0: start, (B, N).
        snap: see `Frame`.
    """

    def __init__(self, f: Map, z0: Tensor, snap: Map | None = None) -> None:
        self.f = f
        self.snap = snap
        self.autocast = _autocast(z0.device.type)
        self.dtype = z0.dtype
        self.inner = inner_dtype(z0.dtype)
        self.shape = z0.shape
        self.device = z0.device
        self.calls = 0

    @property
    def cost(self) -> Cost:
        """Evaluations so far."""
        return Cost(evaluations=self.calls, row_evaluations=self.calls * self.shape[0])

    def __call__(self, z: Tensor) -> Evaluation:
        """Evaluate at ``z`` (B, N), inner dtype.

        Raises:
            TypeError: f returned no tensor.
            ValueError: f changed shape, dtype or device, or wrote into its argument.
        """
        if self.snap is not None:
            z = self.snap(z)
        point = z.to(self.dtype)
        version = _version(point)
        fz = self.call(point)
        if _version(point) != version:
            raise ValueError("f wrote into its argument in place; return a new tensor (z.clone() first, or z + 1)")
        if not isinstance(fz, Tensor):
            raise TypeError(f"f must return a tensor, got {type(fz).__name__}")
        if fz.shape != self.shape or fz.dtype != self.dtype or fz.device != self.device:
            self._explain(fz)
        if fz.requires_grad and not torch.is_grad_enabled():
            fz = fz.detach()
        if self.dtype != self.inner:
            z, fz = point.to(self.inner), fz.to(self.inner)
        return Evaluation(z, fz)

    def call(self, z: Tensor) -> Tensor:
        """Return f(z), state dtype, counted and otherwise as it is."""
        self.calls += 1
        if self.autocast is None:
            return self.f(z)
        with torch.autocast(self.device.type, dtype=self.autocast):
            return self.f(z)

    def _explain(self, fz: Tensor) -> None:
        for what, got, want in (
            ("shape", tuple(fz.shape), tuple(self.shape)),
            ("dtype", fz.dtype, self.dtype),
            ("device", fz.device, self.device),
        ):
            require(got == want, f"the {what} of f(z)", got, f"that of z, {want}")


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
