"""The gradient of the implicit function theorem."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm.gradients.adjoint import System
from deqlm.gradients.base import Gradient, register_gradient
from deqlm.gradients.refused import refusing
from deqlm.gradients.transformable import Inverse, Point, chord
from deqlm.wrap.graph import begin, depends, reaches_leaf
from deqlm.wrap.held import Held
from deqlm.wrap.left_behind import left_by
from deqlm.wrap.levels import bare, outside
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import (
    Adjoint,
    Anderson,
    Deer,
    Layout,
    Map,
    Newton,
    NewtonKrylov,
    Solve,
    Solver,
    StepSolver,
    Stop,
    options,
)
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import evaluated_dtype
from deqlm_solvers.core.kept import Kept
from deqlm_solvers.methods.deer.grid import Grid
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["Implicit"]


@register_gradient("implicit", "ift")
@options
class Implicit(Gradient):
    """Solve (I - J^T) w = g for the incoming gradient g and backpropagate w through one evaluation of f.

    Exact at a converged point whatever the forward solver did, with the memory of one evaluation. Gradients reach
    parameters, inputs and captured tensors through the graph of that evaluation; f is not called again in backward.
    The gradient with respect to the start is zero.

    The backward solve runs per row until ||J^T w + g - w|| <= rtol ||g||: the scale of the loss cannot change it, and
    g = 0 gives w = 0 (where f keeps rows apart). With ``Stop(per="token")`` or ``per="leaf"`` every token or leaf must
    pass, relative to ||J^T w + g|| of its own, so that big parts of a row cannot hide small ones. The outcome is in
    `Solution.adjoint` after backward. A row that ends NONFINITE or DIVERGED is given w = 0, so it adds zero to every
    gradient unless the Jacobian of f itself is not finite there, which no cotangent can mend. A row whose g is not
    finite, as where a scaled loss overflows, has gradients that are not finite, which a gradient scaler wants to see.

    In forward mode (`torch.autograd.forward_ad`) the point gets its tangent by one solve of (I - J) v = t, where t is
    the tangent of f at the point; products with J are two reverse passes each, over the graph of one evaluation.

    Unknowns of masked tokens are constants of the map (they stay at the start), so gradients are those of that map.

    A tensor that the layer leaves somewhere (on itself, in a container, by a hook), such as an auxiliary loss, is that
    of one more evaluation, at the point that is returned and tied to it, so its gradient is the whole one. That
    evaluation is made only where such a tensor is found from the layer.

    Args:
        solve: solver and `Stop` of the backward solve (an object or a dict); ``atol`` must be 0. Newton's method on a
            linear system is LU, with GMRES it is GMRES, along a sequence (`Deer`) it is one scan from the last token to
            the first, exact for maps whose token t sees no others than itself and token t - 1, and refused on others.
            "auto" goes by the forward solver: LU after `Newton` and `Dogleg`, GMRES after `NewtonKrylov`, the scan
            after `Deer` where it is exact, else Anderson, each with ``Stop(max_iter=200, rtol="auto")``, where "auto"
            is 1e-6, or 4 eps of the dtype that f computes in; rows that fail are solved again by GMRES, and
            `Adjoint.picked` says which. After a solve with ``Stop(collective=True)`` it is Anderson's with that, and
            nothing is solved again. A solve that is given stays as it is.
        second_order: make second derivatives right, at the price of one more evaluation of f in the graph and a second
            backward solve. Without it a second derivative raises, but for one in the incoming gradient alone.
        failed: what a row gets whose backward solve does not converge: "keep" (the w that it has come to, zero where it
            ended NONFINITE or DIVERGED), "one_step" (w = g, the gradient of `OneStep`: biased, and never large), or
            "zero" (it adds nothing). `Solution.adjoint` tells which rows, and ``on_failure`` of the call warns or
            raises.

    Raises:
        ValueError: a ``Stop`` with ``atol``, other norms than "l2", or best_f settings.

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

    solve: Solve | Literal["auto"] = "auto"
    second_order: bool = False
    failed: Literal["keep", "one_step", "zero"] = "keep"

    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.solve, dict):
            object.__setattr__(self, "solve", Solve.from_dict(self.solve))
        require(isinstance(self.second_order, bool), "second_order", self.second_order, "True or False")
        known = self.failed in ("keep", "one_step", "zero")
        require(known, "failed", self.failed, "'keep', 'one_step' or 'zero'")
        if self.solve == "auto":
            return
        require(isinstance(self.solve, Solve), "solve", self.solve, "a Solve(solver, stop), or 'auto'")
        _check(self.solve)  # type: ignore[arg-type]

    def for_solve(self, solve: Solve) -> Implicit:
        return self if self.solve != "auto" else self.replace(solve=self._after(solve))

    def backward(self, forward: Solver | None = None, *, collective: bool = False) -> Solve:
        """Return the solve of a cotangent.

        Args:
            forward: solver of the point, by which "auto" goes; None is any but Newton's.
            collective: "auto" ends in all processes together.
        """
        if isinstance(self.solve, Solve):
            return self.solve
        if collective:
            return Solve(Anderson(), IN_STEP)
        if isinstance(forward, DenseSolver):
            return DENSE
        if isinstance(forward, Deer):
            return Solve(Deer(structure=forward.structure), AUTO)
        products = isinstance(forward, StepSolver) and forward.differentiates
        return PRODUCTS if products else STEPS

    def _after(self, solve: Solve) -> Solve:
        return self.backward(solve.solver, collective=solve.stop.collective)

    def reports(self) -> bool:
        return True

    def graphs(self, stop: Stop) -> int:
        return 2 if self.second_order else 1

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        if (tie := getattr(f, "tie", None)) is not None and not self.second_order:
            return tie(z, self._system(f.solved_by, f.held, z, z, adjoint))  # type: ignore[attr-defined,no-any-return]
        source = begin(z)
        fz = f(source)
        if not reaches_leaf(fz, beyond=source):
            return z
        rowmap = f if isinstance(f, RowMap) else None
        by, held = (None, None) if rowmap is None else (rowmap.solved_by, rowmap.held)
        system = self._system(by, held, fz, source, adjoint)
        y = _Chord.apply(fz, None, z, system, self.second_order)
        if self.second_order:
            return _Chord.apply(f(y), y, z, system, True)  # type: ignore[no-any-return]
        if isinstance(f, RowMap) and any(depends(t, source) for t in left_by(f.owner)):
            f(y)  # what it leaves is tied to y now, and not to a source where gradients end
        return y  # type: ignore[no-any-return]

    def push_forward(self, f: RowMap, z: Tensor, adjoint: Adjoint) -> Tensor | None:
        with torch.no_grad():
            moved = forward_ad.unpack_dual(f(z)).tangent
        if moved is None:
            return None
        with forward_ad._set_fwd_grad_enabled(False), torch.enable_grad():
            source = begin(z)
            fz = f(source)
            with torch.no_grad():
                system = self._system(f.solved_by, f.held, fz, source, adjoint)
                v = system.invert(moved, plain=True) if fz.requires_grad else moved
        return refusing(v, "the tangent of a solve has no reverse mode", fz)

    def transform(self, at: Point) -> Tensor:
        given = at.f.given(at.z)
        fz = at.f.f(given)
        outer = 1 + self.second_order if bare(fz).requires_grad else 0
        steps = at.f.levels.orders + outer
        if not steps:
            return given
        with outside(), torch.enable_grad():
            source = begin(at.z)
            system = self._system(at.by, at.f.held, at.f(source), source, at.adjoint)
        why = THIRD if self.second_order else SECOND
        return chord(at, _Solved(system), fz, steps=steps, outer=outer, why=why)

    def _system(self, by: SolvedBy | None, held: Held | None, fz: Tensor, source: Tensor, adjoint: Adjoint) -> System:
        layout = Layout() if by is None else by.layout
        computed = evaluated_dtype(source)
        how = self.backward() if by is None else self._after(by.solve)
        grid = None
        if isinstance(how.solver, Deer):
            stop = how.stop if by is None else by.solve.stop
            grid = Grid.of(layout, stop, source.shape[1], how.solver.structure)
        return System(
            how=_resolved(how, computed),
            # GMRES makes as many products as the rows of one process need
            rescue=self.solve == "auto" and not how.stop.collective,
            failed=self.failed,
            layout=Layout(
                leaves=layout.leaves,
                batch_dims=layout.batch_dims,
                token_mask=layout.token_mask,
                together=layout.together,
            ),
            held=held,
            narrow=computed == torch.float16,
            fz=fz,
            source=source,
            adjoint=adjoint,
            grid=grid,
        )


class _Solved(Inverse):
    """The inverses by a solve of their own for every right-hand side."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __call__(self, g: Tensor, *, plain: bool, correction: bool) -> Tensor:
        rows = g.reshape(g.shape[0] * g.shape[1], g.shape[2])
        return self.system.times(g.shape[0]).invert(rows, plain=plain, correction=correction).reshape(g.shape)


AUTO = Stop(max_iter=200, rtol="auto")
IN_STEP = AUTO.replace(collective=True)
DENSE, PRODUCTS, STEPS = Solve(Newton(), AUTO), Solve(NewtonKrylov(), AUTO), Solve(Anderson(), AUTO)


def _resolved(how: Solve, computed: torch.dtype) -> Solve:
    """Return the solve of a cotangent with a number for ``rtol="auto"``, by what f computes in."""
    if how.stop.rtol != "auto":
        return how
    made = _RESOLVED.get((id(how), computed))
    if made is None:
        made = _RESOLVED.keep((how,), Solve(how.solver, how.stop.resolve(computed, rtol=1e-6)), computed)
    return made


_RESOLVED: Kept[Solve] = Kept()


def _check(solve: Solve) -> None:
    """Raise unless a solve can be one for a cotangent, whose length must not matter."""
    solver, stop = solve.solver, solve.stop
    require(stop.max_iter > 0, "solve.stop.max_iter", stop.max_iter, ">= 1")
    require(stop.atol == 0, "solve.stop.atol", stop.atol, "0, lest gradients depend on the scale of the loss")
    require(stop.keep == "best", "solve.stop.keep", stop.keep, "'best'")
    require(stop.criterion is None, "solve.stop.criterion", stop.criterion, "None: a cotangent is no state")
    require(stop.share == 1, "solve.stop.share", stop.share, "1: every row needs its gradient")
    require(stop.norm == "l2", "solve.stop.norm", stop.norm, "'l2', the norm of the tolerance rtol ||g||")
    if isinstance(solver, Deer):
        plain = solver == Deer(structure=solver.structure)
        require(plain, "solve.solver", solver, "a Deer with no option but structure: the scan has its blocks from J^T")
    if stop.per == "row" and not stop.is_budget:
        require("atol" in solver.honours, "solve.solver", solver.name, "a solver that honours Stop(atol=...)")


class _Chord(torch.autograd.Function):
    """y + (I - J)^-1 (f(y) - y) with J held fixed; the value is the solved point z."""

    @staticmethod
    def forward(ctx: Any, fy: Tensor, y: Tensor | None, z: Tensor, system: System, second_order: bool) -> Tensor:
        ctx.system, ctx.second_order = system, second_order
        ctx.from_start = y is None
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (g,) = grads
        system: System = ctx.system
        if ctx.second_order:
            w = _Transposed.apply(g, system.fz, system, ctx.from_start)
        else:
            w = refusing(_Inverse.apply(g, system, False, False), SECOND, system.fz)
        return w, None if ctx.from_start else g - w, None, None, None  # type: ignore[operator]


SECOND = "a second derivative needs Implicit(second_order=True)"
THIRD = "third derivatives are not available through Implicit; use Unrolled"


class _Inverse(torch.autograd.Function):
    """g -> (I - J^T)^-1 g, or (I - J)^-1 g with ``plain``; linear in g, so its derivative is the other one."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, system: System, plain: bool, correction: bool) -> Tensor:
        ctx.system, ctx.plain = system, plain
        return system.invert(g, plain=plain, correction=correction)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Inverse.apply(grads[0], ctx.system, not ctx.plain, True), None, None, None  # type: ignore[return-value]


class _Transposed(torch.autograd.Function):
    """g -> (I - J^T)^-1 g, differentiable once, and as often as one likes in g.

    It takes f(z) too, without a gradient to it, so that a third derivative meets the error that backward leaves there.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, fz: Tensor, system: System, correction: bool) -> Tensor:
        ctx.system = system
        return system.invert(g, correction=correction)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        system: System = ctx.system
        v = refusing(_Inverse.apply(grads[0], system, True, True), THIRD, system.fz)
        left = refusing(torch.zeros_like(v), THIRD, system.fz) if torch.is_grad_enabled() else None
        return v, left, None, None
