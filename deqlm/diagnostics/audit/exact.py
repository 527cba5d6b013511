"""The exact gradient of a fixed point, in float64, on a copy of the user's layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.deq import DEQ
from deqlm.diagnostics.audit.inverse import Inverse, KrylovInverse, LUInverse, lengths
from deqlm.diagnostics.diagnosis.growth import Start
from deqlm.diagnostics.diagnosis.masking import masked_map, masked_unknowns
from deqlm.sequence.chunks import per_token
from deqlm.wrap.rows import RowMap
from deqlm.wrap.trees import map_tensors, tensors
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Map, Solve, Stop
from deqlm_solvers.truth import jacobians

__all__ = ["DENSE", "Exact", "Groups", "NoExactError", "Truth", "leaves_of", "masked_rows"]

DENSE = 512
"""Unknowns of a row up to which I - J^T is formed and factorised."""

SMALL = 1e-12
"""Residual, relative to f(z), at which a point counts as the fixed point."""

ATTEMPTS = (
    Solve(Anderson(memory=25), Stop(max_iter=500, rtol=1e-13)),
    Solve(Broyden(memory=40), Stop(max_iter=500, rtol=1e-13)),
    Solve(FixedPoint(damping=0.5), Stop(max_iter=3000, rtol=1e-13)),
)

Groups = dict[str, Tensor]
"""A gradient by group, "parameters" and "x", each one float64 vector."""


class NoExactError(Exception):
    """There is no exact gradient to compare with; the text says why."""


@dataclass(eq=False)
class Exact:
    """The exact gradient at one point, and what errors of an adjoint solve do to it.

    Attributes:
        groups: the gradient.
        w: (I - J^T)^-1 g, (B, N) float64, (1, B N) where f mixes rows.
        residual: ||J^T w + g - w|| / ||g||, the largest of all rows.
        kappa: ||(I - J)^-1||, the largest of all rows, from below.
        sensitivity: by group, relative change of the gradient per unit of relative residual left in the adjoint.
        gain: ||w|| / ||g||, the largest of all rows: what a residual relative to w is worth in units of g.
    """

    groups: Groups
    w: Tensor
    residual: float
    kappa: float
    sensitivity: dict[str, float]
    gain: float


class Truth:
    """The fixed point in float64, and exact gradients at it and at other points.

    Args:
        deq: what is audited; copied, never changed.
        call: x, args and kwargs of the call.
        loss: output of the call -> scalar.
        start: state near the fixed point, as the user's own solve returned it.
        token_mask: as for the call; masked tokens are held where they start.

    Attributes:
        z: the fixed point, (B, N) float64.
        residual: its largest residual relative to f(z).
        solver: what found it.
        mixes: f mixes rows, so that all of them are one system.
        dense: I - J^T is factorised; else the adjoint is solved by iteration.

    Raises:
        NoExactError: f cannot run in float64, or no solver finds the fixed point.
        NotSolvedError: the adjoint system has no solution there, or none is found.
    """

    def __init__(
        self,
        deq: DEQ,
        call: tuple[Any, tuple[Any, ...], dict[str, Any]],
        loss: Callable[[Any], Tensor],
        start: Any,
        token_mask: Tensor | None = None,
    ) -> None:
        x, args, kwargs = call
        self.loss = loss
        try:
            self.deq = copy.deepcopy(deq)._apply(_widest)  # double() leaves complex parameters as they are
            x, args, kwargs = (map_tensors(_double, each) for each in (x, args, kwargs))
            self.leaves = leaves_of(self.deq, x)
            with torch.enable_grad():
                rowmap, _ = self.deq.on_rows(x, args, kwargs)
                self.rows = rowmap.rows
                self.map = masked_rows(self.deq, rowmap, token_mask)
                near = self.rows.pack(map_tensors(_double, start))
                self.map(near)
        except Exception as error:
            raise NoExactError(f"the layer does not run in float64: {_one_line(error)}") from error
        with torch.no_grad():
            self.begun = Start.of(self.rows.z0, self.map(self.rows.z0))
            self.z, self.residual, self.solver = self._fixed_point(near)
        if not self.residual <= SMALL:
            raise NoExactError(
                f"no fixed point found in float64: the smallest relative residual is {self.residual:.1e}, "
                f"and {SMALL:.0e} is needed (is f deterministic, and does it converge? `deqlm.diagnose` tells)"
            )
        self.mixes = self._mixes()
        self.dense = (self.z.numel() if self.mixes else self.z.shape[1]) <= DENSE
        self.at_fixed_point = self.at(self.z)

    @torch.enable_grad()
    def at(self, z: Tensor) -> Exact:
        """Return what the implicit function theorem gives at the point ``z`` (B, N).

        Raises:
            NotSolvedError: the adjoint system is singular, or iteration does not solve it.
        """
        g = self._cotangent(z)
        inverse = self._inverse(z)
        w, residual = inverse.solve(self._flat(g))
        out = self._through(z, w)
        kappa, slow = inverse.slowest(w)
        # a residual of relative size 1 in every row, along the slowest direction, where iteration leaves it
        error = slow * (kappa * lengths(self._flat(g)))[:, None]
        changed = self._through(z, error)
        sensitivity = {name: (changed[name].norm() / out[name].norm()).item() for name in out}
        size = lengths(self._flat(g))
        gain = torch.where(size > 0, lengths(w) / size, 0.0).max().item()
        return Exact(out, w, residual, kappa.max().item(), sensitivity, gain)

    @torch.enable_grad()
    def series(self, terms: int, tau: float) -> tuple[float | None, float]:
        """Return ||A^k||, the largest of all rows (None where it cannot be formed), and ||A^k w|| / ||w||.

        A = (1 - tau) I + tau J^T at the fixed point, k = ``terms``: what a series cut after k terms lacks of w.
        """
        inverse = self._inverse(self.z)
        w = self.at_fixed_point.w
        left = w
        for _ in range(terms):
            left = (1 - tau) * left + tau * inverse.transposed(left)
        norm = None
        if isinstance(inverse, LUInverse):
            eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
            power = torch.linalg.matrix_power((1 - tau) * eye + tau * inverse.jacobian.mT, terms)
            norm = torch.linalg.matrix_norm(power, 2).max().item()
        return norm, (left.norm() / w.norm()).item()

    def values(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N) float64, without a graph."""
        with torch.no_grad():
            return self.map(z)

    def _fixed_point(self, near: Tensor) -> tuple[Tensor, float, str]:
        """Return the best point of several solvers and Newton's method, its relative residual and who found it."""
        best, found = near, "the layer's own solve"
        least = self._relative(best)
        for how in ATTEMPTS:
            if bool((least <= SMALL).all()):
                break
            z = how(self.map, best).z
            now = self._relative(z)
            better = now < least
            if bool(better.any()):
                best, least, found = torch.where(better[:, None], z, best), torch.minimum(now, least), how.solver.name
        if not bool((least <= SMALL).all()) and best.shape[1] <= DENSE and bool(best.isfinite().all()):
            best, least, found = self._newton(best, least, found)
        return best, least.max().item() if least.numel() else 0.0, found

    def _newton(self, z: Tensor, least: Tensor, found: str) -> tuple[Tensor, Tensor, str]:
        best = z
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        for _ in range(8):
            r = self.map(z) - z
            step, info = torch.linalg.solve_ex(eye - jacobians(self.map, z), r[:, :, None])
            if bool(info.any()) or not bool(step.isfinite().all()):
                break
            z = z + step[:, :, 0]
            now = self._relative(z)
            better = now < least
            if not bool(better.any()):
                break
            best, least, found = torch.where(better[:, None], z, best), torch.minimum(now, least), "newton"
        return best, least, found

    def _relative(self, z: Tensor) -> Tensor:
        fz = self.map(z)
        relative = lengths(fz - z) / lengths(fz).clamp_min(1e-2)
        return torch.where(relative.isfinite() & ~self.begun.no_better(z, fz), relative, torch.inf)

    def _cotangent(self, z: Tensor) -> Tensor:
        point = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.loss(self.rows.unpack(point)), point)
        return g

    def _inverse(self, z: Tensor) -> Inverse:
        source = z.detach().requires_grad_()
        fz = self.map(source)
        shape = z.shape

        def transposed(w: Tensor) -> Tensor:
            w = w.reshape(shape)
            (jtw,) = torch.autograd.grad(fz, source, w, retain_graph=True, allow_unused=True)
            return self._flat(torch.zeros_like(w) if jtw is None else jtw)

        if not self.dense:
            return KrylovInverse(transposed)
        f: Map = (lambda t: self.map(t.reshape(shape)).reshape(1, -1)) if self.mixes else self.map
        return LUInverse(jacobians(f, self._flat(z)))

    def _through(self, z: Tensor, w: Tensor) -> Groups:
        """Return the gradients that the cotangent ``w`` of f(z) gives to parameters and x."""
        fz = self.map(z)
        wanted = [leaf for group in self.leaves.values() for leaf in group]
        if not fz.requires_grad or not wanted:
            return {name: torch.zeros(0, dtype=z.dtype, device=z.device) for name in self.leaves}
        got = torch.autograd.grad(fz, wanted, w.reshape(z.shape), retain_graph=True, allow_unused=True)
        return joined(self.leaves, got)

    def _mixes(self) -> bool:
        """Look for rows that feel the cotangent of another one: the first, the middle and the last are tried."""
        rows = self.z.shape[0]
        if rows < 2:
            return False
        with torch.enable_grad():
            source = self.z.detach().requires_grad_()
            fz = self.map(source)
            draw = torch.Generator().manual_seed(0)
            for row in {0, rows // 2, rows - 1}:
                w = torch.zeros_like(fz)
                w[row] = torch.randn(fz.shape[1], generator=draw, dtype=fz.dtype, device="cpu").to(fz.device)
                (jtw,) = torch.autograd.grad(fz, source, w, retain_graph=True, allow_unused=True)
                if jtw is not None and bool((jtw[torch.arange(rows, device=jtw.device) != row] != 0).any()):
                    return True
        return False

    def _flat(self, t: Tensor) -> Tensor:
        return t.reshape(1, -1) if self.mixes else t


def masked_rows(deq: DEQ, rowmap: RowMap, token_mask: Tensor | None) -> Map:
    """Return the map of a call on rows, with the tokens that do not count held where they start."""
    rows, stop = rowmap.rows, per_token(deq.solve.stop) if deq.causal else deq.solve.stop
    if token_mask is None:
        return rowmap
    mask = token_mask.reshape(rows.count, token_mask.shape[-1])
    layout = Layout(leaves=rows.row_shapes, batch_dims=rows.batch_dims, token_mask=mask)
    return masked_map(rowmap, masked_unknowns(stop, layout, rows.z0), rows.z0)


def leaves_of(deq: DEQ, x: Any) -> dict[str, list[Tensor]]:
    """Return what is differentiated: parameters that want a gradient, and the floating tensors of x, made leaves."""
    inputs = [t for t in tensors(x) if t.is_floating_point() or t.is_complex()]
    for t in inputs:
        t.requires_grad_()
    return {"parameters": [p for p in deq.parameters() if p.requires_grad], "x": inputs}


def joined(leaves: dict[str, list[Tensor]], gradients: tuple[Tensor | None, ...]) -> Groups:
    """Return gradients, one per leaf in order, as one float64 vector per group; None counts as zero."""
    found = iter(gradients)
    groups = {}
    for name, members in leaves.items():
        parts = []
        for leaf in members:
            gradient = next(found)
            gradient = torch.zeros_like(leaf) if gradient is None else gradient.detach()
            gradient = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
            parts.append(gradient.double().flatten())
        groups[name] = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device="cpu")
    return groups


def _double(t: Tensor) -> Tensor:
    """Return a detached float64 copy of a floating tensor; others as they are."""
    wide = _widest(t.detach())
    return wide.clone() if wide.dtype == t.dtype and (t.is_floating_point() or t.is_complex()) else wide


def _widest(t: Tensor) -> Tensor:
    """Return a floating or complex tensor in float64 or complex128; others as they are."""
    if t.is_complex():
        return t.to(torch.complex128)
    return t.to(torch.float64) if t.is_floating_point() else t


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
