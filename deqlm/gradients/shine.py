"""The inverse Jacobian that the forward solve has learnt, shared with the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.gradients.base import register_gradient
from deqlm.gradients.inverse_estimate import Watched, inverse_estimate
from deqlm.gradients.linear_solve import LinearSystem, solve_cotangent
from deqlm.gradients.one_graph import Linearised, OneGraph
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Adjoint, Cost, Layout, Map, NewtonKrylov, Solution, Solve, Status, Stop, options
from deqlm_solvers.core.checks import require, whole
from deqlm_solvers.core.norms import lengths

__all__ = ["Shine"]

RTOL = 1e-6
"""Relative residual at which refinement ends, that of `Implicit`."""


@register_gradient("shine")
@options
class Shine(OneGraph):
    """Estimate w = (I - J^T)^-1 g from the points that the forward solve has seen: a backward without a solve.

    Every two evaluations in a row give a secant pair (s, y), changes of z and of f(z) - z, and H is the matrix nearest
    to -I with H y = s for the last ``memory`` of them; then w = -H^T g. It is not the implicit gradient, and nothing
    tells how far it is from it: on a linear map H^T is exact once N pairs were independent, and where there are fewer,
    or the map bends, it is right only as far as g lies in what the pairs span. The solves of a DEQ make few evaluations
    and need few directions, those of z and not of g. Where that is too little, each of ``refine`` steps of GMRES, from
    this w or from 0 where that is nearer, is one product with J^T (and two tell the residual before and after); with
    enough of them it reaches the tolerance of `Implicit`. `Adjoint.residual` tells, with ``refine`` > 0, ||J^T w + g -
    w|| / ||g|| of the returned w; a row beyond 1e-6 is BUDGET, which is no failure.

    Works with any solver; rows stay in the batch until all are done. Memory: 4 ``memory`` + 2 states.

    Args:
        memory: last pairs that are used, >= 1.
        refine: most steps of GMRES, >= 0, that improve the estimate; 0 takes it as it is.

    Raises:
        ValueError: an option outside its range.

    Reference:
        Z. Ramzi, F. Mannel, S. Bai, J.-L. Starck, P. Ciuciu, T. Moreau (2022), SHINE: SHaring the INverse Estimate from
        the forward pass for bi-level optimization and implicit models, ICLR (SHINE, and its refinement). Deviates: the
        estimate fulfils all kept secant equations at once, as type-II Anderson's does, and is made of the evaluations
        themselves, so that it does not depend on the solver; it is the newest pairs that it keeps.

    Examples:
        >>> import deqlm, torch
        >>> w = torch.tensor([[0.5]], requires_grad=True)
        >>> sol = deqlm.solve(lambda z: w * z + 1, torch.zeros(1, 1), gradient=deqlm.Shine())
        >>> sol.z.sum().backward()
        >>> round(w.grad.item(), 2)  # one unknown, so one pair is enough
        4.0
    """

    memory: int = 20
    refine: int = 0

    def __post_init__(self) -> None:
        whole("memory", self.memory, 1)
        whole("refine", self.refine, 0)

    def solves(self, solve: Solve) -> list[Solve]:
        return [self._refinement()] if self.refine else []

    def _refinement(self) -> Solve:
        return Solve(NewtonKrylov(krylov=self.refine), Stop(max_iter=self.refine, rtol=RTOL))

    def check(self, solve: Solve) -> None:
        rule = "True or False with gradient 'shine', which watches all rows"
        require(solve.stop.compact != "at_once", "compact", solve.stop.compact, rule)

    def reports(self) -> bool:
        return self.refine > 0

    def forward(self, solve: Solve, f: RowMap, z0: Tensor, layout: Layout) -> tuple[Solution, SolvedBy]:
        watched = Watched(f, self.memory)
        sol = solve(watched, z0, layout)
        changes = watched.changes()
        return sol, SolvedBy(solve, layout, None if changes is None else inverse_estimate(*changes))

    def cotangent(self, f: Map, system: Linearised, adjoint: Adjoint) -> Map:
        by = f.solved_by if isinstance(f, RowMap) else None

        def w_of(g: Tensor) -> Tensor:
            w = g
            if by is not None and by.inverse is not None:
                q, p = (t.to(g.dtype) for t in by.inverse)
                w = g - (q * (p * g[:, None]).sum(2, keepdim=True)).sum(1)
            return self._refined(w, g, system, adjoint) if self.refine else w

        return w_of

    def _refined(self, w: Tensor, g: Tensor, system: Linearised, adjoint: Adjoint) -> Tensor:
        """Return ``w`` after the steps of GMRES on what it leaves of the equation."""
        left, size = system.product(w) + g - w, _length(g)
        worse = ~(_length(left) <= size)
        w, left = torch.where(worse[:, None], 0.0, w), torch.where(worse[:, None], g, left)
        more = solve_cotangent(self._refinement(), LinearSystem(system.product, left, Layout()), rescue=False)
        residual = more.residual * _length(left) / torch.where(size > 0, size, 1.0)
        status = torch.where(residual <= RTOL, int(Status.CONVERGED), int(Status.BUDGET)).to(torch.int8)
        sol = more.replace(residual=residual, relative=residual, status=status)
        adjoint.record(sol, Cost(vjps=1 + more.cost.evaluations))
        return w + more.z


def _length(t: Tensor) -> Tensor:
    return lengths(t)
