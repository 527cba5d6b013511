"""The linear system behind the implicit gradient: products with J and J^T on the graph of one evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqlm.gradients.linear_solve import LinearSystem, solve_cotangent
from deqlm.gradients.pull_back import pull_back
from deqlm.wrap.held import Held
from deqlm_solvers import Adjoint, Cost, Layout, Map, Solution, Solve, Status
from deqlm_solvers.core.kinds import refuse_transforms
from deqlm_solvers.loop.criterion import warn_below_floor

__all__ = ["System"]

BAD = int(Status.DIVERGED)


@dataclass(eq=False)
class System:
    """(I - J^T) w = g, and (I - J) v = g, at one solved point.

    Attributes:
        how: solver and stop.
        rescue: whether rows that fail are solved again by GMRES.
        failed: what rows get that fail all the same; see `Implicit`.
        layout: leaves, batch dimensions and token mask of the rows.
        held: unknowns that are constants of the map, or None.
        narrow: whether f computes in float16.
        fz: f at the point, (B, N), with its graph.
        source: the point, where that graph starts.
        adjoint: report to fill in.
        product: w -> J^T w on rows, by what is no graph of autograd; None differentiates ``fz``.
    """

    how: Solve
    rescue: bool
    failed: str
    layout: Layout
    held: Held | None
    narrow: bool
    fz: Tensor
    source: Tensor
    adjoint: Adjoint
    product: Map | None = None

    def invert(self, g: Tensor, *, plain: bool = False, correction: bool = False) -> Tensor:
        """Solve for ``g`` (B, N); rows that fail badly get zero, rows whose g is not finite get NaN.

        Args:
            g: right-hand side.
            plain: the products are with J.
            correction: this solve continues another one, whose outcome is the one to report.
        """
        refuse_transforms(g)
        warn_below_floor(self.how.stop, g.dtype)
        rhs = g if self.held is None else torch.where(self.held.masked, 0.0, g)
        lost = ~rhs.isfinite().all(1)
        system = LinearSystem(
            product=self._plain() if plain else self.product or self._transposed,
            g=torch.where(lost[:, None], 0.0, rhs),
            layout=self.layout,
            narrow=self.narrow or g.dtype == torch.float16,
        )
        sol = solve_cotangent(self.how, system, rescue=self.rescue)
        return self._answer(g, sol, lost, plain=plain, correction=correction)

    def _answer(self, g: Tensor, sol: Solution, lost: Tensor, *, plain: bool, correction: bool) -> Tensor:
        w = sol.z
        if self.failed != "keep":
            w = torch.where(sol.failed[:, None], g if self.failed == "one_step" else 0.0, w)
        elif self.adjoint.failed_grad != "keep":
            w = torch.where(sol.status[:, None] >= BAD, 0.0, w)
        sol = sol.replace(
            status=sol.status.masked_fill(lost, int(Status.NONFINITE)),
            residual=sol.residual.masked_fill(lost, torch.inf),
        )
        products = sol.cost.evaluations + sol.cost.jvps
        cost = Cost(jvps=products) if plain else Cost(vjps=products)
        self.adjoint.record(sol, cost, report=not correction)
        w = w.masked_fill(lost[:, None], torch.nan)
        return w if self.held is None else torch.where(self.held.masked, g, w)

    def _transposed(self, w: Tensor) -> Tensor:
        """Return J^T w, (B, N)."""
        jtw = pull_back(self.fz, self.source, w)
        return torch.zeros_like(w) if jtw is None else jtw

    def _plain(self) -> Map:
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
