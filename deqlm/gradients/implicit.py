"""The gradient of the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm.gradients.base import Gradient, register_gradient
from deqlm_solvers import Adjoint, Anderson, Map, Solve, Status, Stop, options
from deqlm_solvers.checks import require
from deqlm_solvers.driver import warn_below_floor

__all__ = ["Implicit"]

BAD = int(Status.DIVERGED)


@register_gradient("implicit", "ift")
@options
class Implicit(Gradient):
    """Solve (I - J^T) w = g for the incoming gradient g and backpropagate w through one evaluation of f.

    Exact at a converged point whatever the forward solver did, with the memory of one evaluation. Gradients reach
    parameters, inputs and captured tensors through the graph of that evaluation; f is not called again in backward.
    The gradient with respect to the start is zero.

    The backward solve runs per row until ||J^T w + g - w|| <= rtol ||g||: the scale of the loss cannot change it, and
    g = 0 gives w = 0. Its outcome is in `Solution.adjoint` after backward; a row of it that ends NONFINITE or DIVERGED
    adds zero to every gradient.

    Args:
        solve: solver and `Stop` of the backward solve (an object or a dict); ``atol`` must be 0.
        second_order: make second derivatives right, at the price of one more evaluation of f in the graph and a second
            backward solve. Without it a second derivative raises.

    Raises:
        ValueError: a ``Stop`` with ``atol``, per-token or best_f settings.

    Reference:
        S. Bai, J. Z. Kolter, V. Koltun (2019), Deep equilibrium models, NeurIPS, theorem 1. Second order: two chord
        Newton steps from the fixed point, whose error is of third order in a change of the parameters.

    Example:
        >>> import deqlm, torch
        >>> w = torch.tensor([[0.5]], requires_grad=True)
        >>> sol = deqlm.solve(lambda z: w * z + 1, torch.zeros(1, 1), gradient=deqlm.Implicit())
        >>> sol.z.sum().backward()
        >>> round(w.grad.item(), 2)
        4.0
    """

    solve: Solve = Solve(Anderson(), Stop(max_iter=200, rtol=1e-6))
    second_order: bool = False

    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.solve, dict):
            object.__setattr__(self, "solve", Solve.from_dict(self.solve))
        require(isinstance(self.solve, Solve), "solve", self.solve, "a Solve(solver, stop)")
        require(isinstance(self.second_order, bool), "second_order", self.second_order, "True or False")
        stop = self.solve.stop  # pyright: ignore[reportAttributeAccessIssue]
        require(stop.atol == 0, "solve.stop.atol", stop.atol, "0, lest gradients depend on the scale of the loss")
        require(stop.keep == "best", "solve.stop.keep", stop.keep, "'best'")
        require(stop.per == "row", "solve.stop.per", stop.per, "'row'")
        require(stop.norm == "l2", "solve.stop.norm", stop.norm, "'l2', the norm of the tolerance rtol ||g||")
        self.unit_solve()

    def unit_solve(self) -> Solve:
        """Return the solve for a cotangent of length 1, whose absolute tolerance is the relative one."""
        solver, stop = self.solve.solver, self.solve.stop
        if stop.is_budget:
            return Solve(solver, stop)
        require("atol" in solver.honours, "solve.solver", solver.name, "a solver that honours Stop(atol=...)")
        return Solve(solver, stop.replace(rtol=0.0, atol=stop.rtol))

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        source = _Source.apply(z.detach().requires_grad_())
        fz = f(source)
        if not _reaches_leaf(fz, beyond=source):
            return z
        system = _System(self, fz, source, adjoint)
        y = _Chord.apply(fz, None, z, system)
        if not self.second_order:
            return y
        return _Chord.apply(f(y), y, z, system)


@dataclass(eq=False)
class _System:
    """The linear system of one solved point: products with J and J^T on the graph of one evaluation."""

    method: Implicit
    fz: Tensor
    source: Tensor
    adjoint: Adjoint

    def transposed(self, w: Tensor) -> Tensor:
        """Return J^T w, (B, N)."""
        (jtw,) = torch.autograd.grad(self.fz, self.source, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if jtw is None else jtw

    def plain(self) -> Callable[[Tensor], Tensor]:
        """Return v -> J v, by differentiating the transposed product."""
        with torch.enable_grad():
            w = torch.zeros_like(self.fz, requires_grad=True)
            (jtw,) = torch.autograd.grad(self.fz, self.source, w, create_graph=True, allow_unused=True)

        def product(v: Tensor) -> Tensor:
            if jtw is None or not jtw.requires_grad:
                return torch.zeros_like(v)
            (jv,) = torch.autograd.grad(jtw, w, v, retain_graph=True, allow_unused=True)
            return torch.zeros_like(v) if jv is None else jv

        return product

    def invert(self, product: Map, g: Tensor) -> Tensor:
        """Solve w = product(w) + g, (B, N); rows that fail badly get zero."""
        unit, scale = _unit(g)
        warn_below_floor(self.method.solve.stop, g.dtype)
        sol = self.method.unit_solve()(lambda w: product(w) + unit, unit)
        self.adjoint.record(sol, vjps=sol.cost.evaluations)
        w = sol.z * scale[1] * scale[0]
        return w if self.adjoint.failed_grad == "keep" else torch.where(sol.status[:, None] >= BAD, 0.0, w)


def _unit(g: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return g / ||g|| per row and the two factors of ||g||, taken apart so that no square over- or underflows."""
    if g.numel() == 0:
        one = torch.ones_like(g[:, :1])
        return g, (one, one)
    largest = g.abs().amax(1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    scaled = g / largest
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=torch.float64).to(g.dtype)
    norm = torch.where(norm == 0, 1.0, norm)
    return scaled / norm, (largest, norm)


class _Source(torch.autograd.Function):
    """Identity that ends the graph: f's graph starts here and leaves no gradient on a leaf."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None]:
        return (None,)


class _Chord(torch.autograd.Function):
    """y + (I - J)^-1 (f(y) - y) with J held fixed; the value is the solved point z."""

    @staticmethod
    def forward(ctx: Any, fy: Tensor, y: Tensor | None, z: Tensor, system: _System) -> Tensor:
        ctx.system = system
        ctx.from_start = y is None
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (g,) = grads
        system: _System = ctx.system
        if system.method.second_order:
            w = _Transposed.apply(g, system.fz, system)
        else:
            w = system.invert(system.transposed, g)
            if torch.is_grad_enabled():
                w = _Refused.apply(w, system.fz, "a second derivative needs Implicit(second_order=True)")
        return w, None if ctx.from_start else g - w, None, None  # type: ignore[return-value]


class _Transposed(torch.autograd.Function):
    """g -> (I - J^T)^-1 g, linear in g, differentiable once.

    It takes f(z) too, without a gradient to it, so that a third derivative meets the error that backward leaves there.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, fz: Tensor, system: _System) -> Tensor:
        ctx.system = system
        return system.invert(system.transposed, g)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        system: _System = ctx.system
        v = system.invert(system.plain(), grads[0])
        if not torch.is_grad_enabled():
            return v, None, None
        why = "third derivatives are not available through Implicit; use Unrolled"
        return _Refused.apply(v, system.fz, why), _Refused.apply(torch.zeros_like(v), system.fz, why), None


class _Refused(torch.autograd.Function):
    """Identity with an error for whoever differentiates it.

    It takes f(z) too, so that every path of a further derivative to a parameter leads through the error.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, fz: Tensor, why: str) -> Tensor:
        ctx.why = why
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.why)


def _reaches_leaf(fz: Tensor, beyond: Tensor) -> bool:
    """Say whether the graph of ``fz`` leads to a leaf that wants a gradient, other than through ``beyond``."""
    seen, todo = {beyond.grad_fn, None}, [fz.grad_fn]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        assert node is not None
        if type(node).__name__ == "AccumulateGrad":
            return True
        todo.extend(following for following, _ in node.next_functions)
    return False
