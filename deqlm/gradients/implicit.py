"""The gradient of the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm.gradients.base import Gradient, register_gradient
from deqlm.gradients.pull_back import pull_back
from deqlm_solvers import Adjoint, Anderson, Cost, Frame, Map, Solution, Solve, Status, StepSolver, Stop, options
from deqlm_solvers.checks import require
from deqlm_solvers.driver import warn_below_floor
from deqlm_solvers.transforms import refuse_transforms

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
    g = 0 gives w = 0 (where f keeps rows apart). Its outcome is in `Solution.adjoint` after backward. A row of it that
    ends NONFINITE or DIVERGED is given w = 0, so it adds zero to every gradient unless the Jacobian of f itself is not
    finite there, which no cotangent can mend.

    Args:
        solve: solver and `Stop` of the backward solve (an object or a dict); ``atol`` must be 0.
        second_order: make second derivatives right, at the price of one more evaluation of f in the graph and a second
            backward solve. Without it a second derivative raises.

    Raises:
        ValueError: a ``Stop`` with ``atol``, per-token or best_f settings.

    Reference:
        S. Bai, J. Z. Kolter, V. Koltun (2019), Deep equilibrium models, NeurIPS, theorem 1. Second order: two chord
        Newton steps from the fixed point, whose error is of third order in a change of the parameters.

    Examples:
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
        require(stop.norm == "l2", "solve.stop.norm", stop.norm, "'l2', the norm of the tolerance rtol ||g||")
        self.unit_solve()

    def unit_solve(self) -> Solve:
        """Return the solve for a cotangent of length 1, whose absolute tolerance is the relative one."""
        solver, stop = self.solve.solver, self.solve.stop
        if stop.is_budget:
            return Solve(solver, stop)
        require("atol" in solver.honours, "solve.solver", solver.name, "a solver that honours Stop(atol=...)")
        return Solve(solver, stop.replace(rtol=0.0, atol=stop.rtol))

    def graphs(self, stop: Stop) -> int:
        return 2 if self.second_order else 1

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
        jtw = pull_back(self.fz, self.source, w)
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

    def invert(self, product: Map, g: Tensor, *, plain: bool = False, correction: bool = False) -> Tensor:
        """Solve w = product(w) + g, (B, N); rows that fail badly get zero.

        Args:
            product: w -> J^T w, or w -> J w.
            g: right-hand side, (B, N).
            plain: the products are with J.
            correction: g is the residual of a solve before, whose outcome is the one to report.
        """
        refuse_transforms(g)
        warn_below_floor(self.method.solve.stop, g.dtype)
        solve = self.method.unit_solve()
        sol, w = (_by_steps if isinstance(solve.solver, StepSolver) else _in_units)(solve, product, g)
        products = sol.cost.evaluations + sol.cost.jvps
        cost = Cost(jvps=products) if plain else Cost(vjps=products)
        self.adjoint.record(sol, cost, report=not (plain or correction))
        return w if self.adjoint.failed_grad == "keep" else torch.where(sol.status[:, None] >= BAD, 0.0, w)


def _by_steps(solve: Solve, product: Map, g: Tensor) -> tuple[Solution, Tensor]:
    """Solve w = product(w) + g to the tolerance times ||g|| of each row; the residual is relative to ||g||."""
    largest = g.detach().abs().amax().double() if g.numel() else g.new_ones((), dtype=torch.float64)
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent
    # by a power of two, and only where squares or small rows would leave the range of float32
    power = torch.where((exponent > 80) | (exponent < -40), exponent, 0)
    scaled = torch.ldexp(g, -power)
    norm = torch.linalg.vector_norm(scaled, dim=1, dtype=torch.float64)
    if norm.numel():
        # a row of zeros is measured in the unit of the largest row
        norm = torch.where(norm == 0, torch.where(norm.isfinite(), norm, 0.0).amax(), norm)
    unit = torch.where(norm == 0, 1.0, norm)
    sol = solve(lambda w: product(w) + scaled, scaled, Frame(unit=unit))
    return sol.replace(residual=sol.residual / unit), torch.ldexp(sol.z, power)


def _in_units(solve: Solve, product: Map, g: Tensor) -> tuple[Solution, Tensor]:
    """The same for solvers that know one tolerance for all rows: each row in its own unit.

    A map that mixes rows needs the products in the units of g.
    """
    unit, norm = _unit(g)
    sol = solve(lambda w: norm.divide(product(norm.times(w))) + unit, unit)
    return sol, norm.times(sol.z)


@dataclass(frozen=True, eq=False)
class _Norm:
    """||g|| per row as a product of two factors (B, 1), taken apart so that no square over- or underflows."""

    largest: Tensor
    rest: Tensor

    def times(self, t: Tensor) -> Tensor:
        return t * self.rest * self.largest

    def divide(self, t: Tensor) -> Tensor:
        return t / self.largest / self.rest


def _unit(g: Tensor) -> tuple[Tensor, _Norm]:
    """Return g / ||g|| per row, (B, N), and ||g||; a row of zeros is measured in the unit of the largest row."""
    if g.numel() == 0:
        one = torch.ones_like(g[:, :1])
        return g, _Norm(one, one)
    largest = g.abs().amax(1, keepdim=True)
    common = torch.where(largest.isfinite(), largest, 0.0).max()
    largest = torch.where(largest == 0, torch.where(common == 0, 1.0, common), largest)
    scaled = g / largest
    rest = torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=torch.float64).to(g.dtype)
    norm = _Norm(largest, torch.where(rest == 0, 1.0, rest))
    return scaled / norm.rest, norm


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
            w = _Transposed.apply(g, system.fz, system, ctx.from_start)
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
    def forward(ctx: Any, g: Tensor, fz: Tensor, system: _System, correction: bool) -> Tensor:
        ctx.system = system
        return system.invert(system.transposed, g, correction=correction)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        system: _System = ctx.system
        v = system.invert(system.plain(), grads[0], plain=True)
        if not torch.is_grad_enabled():
            return v, None, None, None
        why = "third derivatives are not available through Implicit; use Unrolled"
        return _Refused.apply(v, system.fz, why), _Refused.apply(torch.zeros_like(v), system.fz, why), None, None


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
