"""Solves w = A w + g on rows for products with A: by the steps of a solver, by LU, by a scan, or by GMRES."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqlm.gradients.along import Along, Inverse
from deqlm_solvers import Cost, Deer, Layout, Map, Newton, NewtonKrylov, Solution, Solve, Status, StepSolver, Stop
from deqlm_solvers.core.at_hand import at_hand
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.kept import Kept
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.linalg.gmres import BatchedGMRES
from deqlm_solvers.linalg.small_systems import solve_general
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["LinearSystem", "solve_cotangent"]

SMALL = 256
"""Unknowns of a row up to which GMRES keeps a space of all of them."""
LOST = 1e-3
"""Rounding of a residual, relative to ||g||, up to which a direct method answers."""
SPACE = 40
"""Largest space of GMRES for more unknowns."""


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """w = A w + g on rows (B, N).

    Attributes:
        product: w -> A w, linear, in the dtype of g. One with a method ``plus`` makes of g the map w -> A w + g.
        g: right-hand side, finite.
        layout: what rows stand for.
        narrow: whether products are computed in float16, whose range is small.
        along: A as a map along a sequence, for a scan; None where it is none.
    """

    product: Map
    g: Tensor
    layout: Layout
    narrow: bool = False
    along: Along | None = None

    def matrix(self) -> Tensor:
        """Return A of every row, (B, N, N), by N products, where rows do not depend on each other."""
        rows, unknowns = self.g.shape
        eye = torch.eye(unknowns, dtype=self.g.dtype, device=self.g.device)
        matrix = self.g.new_empty(rows, unknowns, unknowns)
        for i in range(unknowns):
            matrix[:, :, i] = self.product(eye[i].expand(rows, unknowns).contiguous())
        return matrix


def solve_cotangent(how: Solve, system: LinearSystem, *, rescue: bool) -> Solution:
    """Solve to the tolerance rtol ||g|| of each row, or rtol ||A w + g|| of each token or leaf.

    Args:
        how: solver and stop. Newton's method on a linear system is LU, with GMRES it is GMRES, along a sequence it is a
            scan: those solvers stand for the three here.
        system: to solve.
        rescue: rows that do not converge are solved again by GMRES.

    Returns:
        The solution, with ``residual`` relative to ||g|| (worst token or leaf: to ||A w + g||), and products counted as
        evaluations.
    """
    sol = _attempt(how, system).replace(picked=None, choices=())
    if system.layout.together is None:
        done = sol.worst() <= int(Status.BUDGET)
    else:
        done = not _anywhere(sol.failed, system.layout)
    if done:
        return sol
    sol = sol if system.narrow else _in_range(how, system, sol)
    return _rescued(how, system, sol) if rescue else sol


def _in_range(how: Solve, system: LinearSystem, sol: Solution) -> Solution:
    """Return ``sol`` with rows that are not finite solved once more with the largest cotangent of length one.

    float16 inside f overflows at cotangents that float32 holds.
    """
    lost = sol.status == int(Status.NONFINITE)
    if not _anywhere(lost, system.layout):
        return sol
    again = _attempt(how, replace(system, narrow=True))
    return _merged(sol, again, lost).replace(cost=sol.cost + again.cost)


def _anywhere(rows: Tensor, layout: Layout) -> bool:
    """Say whether one of ``rows`` (B,) is True, here or in a process that must make the same products."""
    here = bool(rows.any())
    return here if layout.together is None else layout.together.any(here, rows.device)


def _attempt(how: Solve, system: LinearSystem) -> Solution:
    solver, stop = how.solver, how.stop
    if isinstance(solver, Newton):
        return _by_lu(stop, system)
    if isinstance(solver, NewtonKrylov):
        return _by_gmres(stop, system, solver.krylov)
    if isinstance(solver, Deer) and system.along is not None:
        return _by_scan(stop, system, system.along)
    steps = isinstance(solver, StepSolver) or stop.per != "row"
    return _by_steps(how, system) if steps else _in_units(how, system)


def _rescued(how: Solve, system: LinearSystem, sol: Solution) -> Solution:
    """Return ``sol`` with rows that did not converge solved by GMRES, where that is better.

    Rows that do not depend on each other are solved each in a space of its own; where that fails, all are one system.
    """
    failed = sol.failed
    if not bool(failed.any()):
        return sol
    again = _by_gmres(how.stop, replace(system, g=torch.where(failed[:, None], system.g, 0.0), narrow=True))
    cost = sol.cost + again.cost
    use = failed & (again.residual < sol.residual.nan_to_num(nan=torch.inf))
    if bool((failed & again.failed).any()) and system.g.shape[0] > 1:
        joined = _joined(how.stop, system)
        cost = cost + joined.cost
        if bool(joined.converged.all()):
            again, use = joined, torch.ones_like(failed)
    return _merged(sol, again, use).replace(cost=cost, picked=use.to(torch.int8), choices=(how.solver.name, "gmres"))


def _by_gmres(stop: Stop, system: LinearSystem, size: int = SPACE) -> Solution:
    """Solve by GMRES of at most ``stop.max_iter`` products, each row in a space of its own, restarted when full.

    Args:
        stop: tolerance and number of products.
        system: to solve.
        size: largest space of rows that are not small.
    """
    scaled = _Scaled.of(system)
    g, limit = scaled.g.to(inner_dtype(scaled.g.dtype)), stop.max_iter
    unknowns = g.shape[1]
    size = min(size if unknowns > SMALL else max(1, unknowns), limit)
    goal = (stop.rtol * scaled.unit if stop.per == "row" else torch.zeros_like(scaled.unit))[:, None]
    x, r, norm = torch.zeros_like(g), g, _norm(g)[:, None]
    active, steps, spent = norm > goal, torch.zeros_like(norm, dtype=torch.int64), 0
    while spent < limit and bool(active.any()):
        space = BatchedGMRES(size, g)
        space.start(active, r)
        growing = active & ~space.exhausted
        while spent < limit and bool(growing.any()):
            v = torch.where(growing, space.newest(), 0.0)
            space.extend(growing, v - scaled.product(v))
            spent, steps = spent + 1, steps + growing
            growing = growing & ~space.exhausted & (space.estimate() > 0.5 * goal)
        tried = torch.where(active, x + space.correction(r)[0], x)
        left = scaled.product(tried) + g - tried
        after = _norm(left)[:, None]
        spent += 1
        better = active & ((after < norm) | ~after.isfinite())
        x, r = torch.where(better, tried, x), torch.where(better, left, r)
        active = better & (after > goal) & (after < 0.9 * norm)
        norm = torch.where(better, after, norm)
    return scaled.judge(stop, x, r, steps[:, 0].clamp_min(1), spent)


def _by_steps(solve: Solve, system: LinearSystem) -> Solution:
    """Solve by the steps of a solver; the tolerance of a row is absolute, in units of ||g||."""
    scaled, stop = _Scaled.of(system), solve.stop
    g = scaled.g
    layout = system.layout
    if stop.per == "row":
        layout = Layout(atol_scale=scaled.unit, together=layout.together)
    plus = getattr(system.product, "plus", None)
    f = (lambda w: system.product(w) + g) if plus is None else plus(g)
    sol = _absolute(solve)(f, g, layout)
    residual = sol.residual / scaled.unit if stop.per == "row" else sol.relative
    return sol.replace(residual=residual, z=sol.z if scaled.power is None else torch.ldexp(sol.z, scaled.power))


def _absolute(solve: Solve) -> Solve:
    """Return a solve whose tolerance of a row is absolute."""
    if solve.stop.per != "row" or solve.stop.is_budget:
        return solve
    made = _ABSOLUTE.get((id(solve),))
    if made is None:
        stop = solve.stop.replace(rtol=0.0, atol=solve.stop.rtol)
        made = _ABSOLUTE.keep((solve,), Solve(solve.solver, stop))
    return made


_ABSOLUTE: Kept[Solve] = Kept()


def _in_units(solve: Solve, system: LinearSystem) -> Solution:
    """The same for solvers that know one tolerance for all rows: each row in its own unit.

    A map that mixes rows needs the products in the units of g.
    """
    unit, norm = _unit(system.g)
    sol = _absolute(solve)(lambda w: norm.divide(system.product(norm.times(w))) + unit, unit)
    return sol.replace(z=norm.times(sol.z))


def _by_lu(stop: Stop, system: LinearSystem) -> Solution:
    """Solve with the matrix of every row, in float64; one product more tells the true residual."""
    scaled = _Scaled.of(system)
    matrix, products = system.matrix(), system.g.shape[1]
    matrix = torch.eye(matrix.shape[1], dtype=torch.float64, device=matrix.device) - matrix.double()
    unit = scaled.unit[:, None]
    w = (solve_general(matrix, scaled.g.double() / unit) * unit).to(inner_dtype(scaled.g.dtype))
    r = scaled.product(w) + scaled.g - w
    steps = torch.full((w.shape[0],), products + 1, dtype=torch.int64, device=w.device)
    # what the dtype of the products can resolve of I - A; the w of a singular one is no answer
    floor = 64 * torch.finfo(scaled.g.dtype).eps * torch.linalg.matrix_norm(matrix) * _norm(w)
    return scaled.judge(stop, w, r, steps, products + 1, torch.minimum(floor, LOST * scaled.unit))


def _by_scan(stop: Stop, system: LinearSystem, along: Along) -> Solution:
    """Solve by a scan along the sequence, in float64, and correct while that helps; products tell the true residual.

    One scan is exact where the blocks are A. Blocks that are only its diagonal are refined by further scans, and where
    those do not arrive, replaced by full ones.
    """
    scaled = _Scaled.of(system)
    g = scaled.g.double()
    at = _Refined(w=torch.zeros_like(g), r=g, norm=_norm(g), goal=torch.zeros_like(scaled.unit), spent=1)
    tried: Along | None = along
    open_rows = torch.ones_like(at.norm, dtype=torch.bool)
    while tried is not None:
        at = _refined(stop, scaled, tried.inverse(), at, open_rows)
        open_rows = at.norm > at.goal
        tried = tried.dense() if bool(open_rows.any()) else None
    steps = torch.full_like(at.norm, at.spent, dtype=torch.int64)
    return scaled.judge(stop, at.w.to(scaled.g.dtype), at.r.to(scaled.g.dtype), steps, at.spent, at.goal)


@dataclass(frozen=True, eq=False)
class _Refined:
    """Where a solve by scans stands: w and its residual r (B, N), ||r|| and what it must reach (B,), products."""

    w: Tensor
    r: Tensor
    norm: Tensor
    goal: Tensor
    spent: int


def _refined(stop: Stop, scaled: _Scaled, inverse: Inverse, at: _Refined, rows: Tensor) -> _Refined:
    """Correct the ``rows`` (B,) by scans while each halves their residual and they have not arrived."""
    w, r, norm, goal, spent = at.w, at.r, at.norm, at.goal, at.spent + inverse.products
    first, limit, g = spent, stop.max_iter, scaled.g.double()
    while bool(rows.any()) and (spent == first or spent < limit):
        new = w + inverse(r)
        left = scaled.product(new.to(scaled.g.dtype)).double() + g - new
        spent, after = spent + 1, _norm(left)
        # what the dtype of the products can resolve of I - A
        floor = 64 * torch.finfo(scaled.g.dtype).eps * (1 + inverse.size) * _norm(new)
        goal = torch.where(rows, torch.minimum(floor, LOST * scaled.unit).maximum(stop.rtol * scaled.unit), goal)
        better = rows & ((after < norm) | ~after.isfinite())
        w, r = torch.where(better[:, None], new, w), torch.where(better[:, None], left, r)
        rows = better & (after > goal) & (after < 0.5 * norm)
        norm = torch.where(better, after, norm)
    return _Refined(w, r, norm, goal, spent)


def _joined(stop: Stop, system: LinearSystem) -> Solution:
    """Solve all rows as one system by GMRES; every row is judged on its own."""
    shape = system.g.shape
    one = LinearSystem(
        product=lambda w: system.product(w.reshape(shape)).reshape(1, -1),
        g=system.g.reshape(1, -1),
        layout=Layout(),
    )
    row = _by_gmres(stop.replace(per="row", token_dim=1), one)
    scaled = _Scaled.of(system)
    w = row.z.reshape(shape)
    w = (w if scaled.power is None else torch.ldexp(w, -scaled.power)).to(inner_dtype(scaled.g.dtype))
    r = scaled.product(w) + scaled.g - w
    return scaled.judge(stop, w, r, row.steps.expand(shape[0]), row.cost.evaluations + 1)


def _merged(one: Solution, other: Solution, use: Tensor) -> Solution:
    """Return ``one`` with the rows ``use`` (B,) of ``other``."""
    names = ("residual", "relative", "steps", "status")
    parts = {name: torch.where(use, getattr(other, name), getattr(one, name)) for name in names}
    return one.replace(z=torch.where(use[:, None], other.z, one.z), **parts)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """A system in units in which no square over- or underflows.

    Attributes:
        system: as it was.
        g: its right-hand side times 2^-power.
        power: one for all rows, which may mix; a power of two changes no digit. None is 0.
        unit: ||g|| of each row, (B,) float64; a row of zeros is measured in the unit of the largest row.
    """

    system: LinearSystem
    g: Tensor
    power: Tensor | None
    unit: Tensor

    @classmethod
    def of(cls, system: LinearSystem) -> _Scaled:
        g = system.g.detach()
        if (norm := _in_middle(g, system.narrow)) is not None:
            return cls(system, g, None, norm)
        largest = g.abs().amax().double() if g.numel() else g.new_ones((), dtype=torch.float64)
        exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent
        # only where squares or small rows would leave the range of float32, or products that of float16
        leaves = (exponent > 80) | (exponent < -40)
        power = exponent if system.narrow else torch.where(leaves, exponent, 0)
        scaled = torch.ldexp(g, -power)
        norm = _norm(scaled)
        if norm.numel():
            norm = torch.where(norm == 0, torch.where(norm.isfinite(), norm, 0.0).amax(), norm)
        return cls(system, scaled, power, torch.where(norm == 0, 1.0, norm))

    def product(self, w: Tensor) -> Tensor:
        """Return A w in the dtype of ``w``; computed in that of g."""
        return self.system.product(w.to(self.g.dtype)).to(w.dtype)

    def judge(
        self, stop: Stop, w: Tensor, r: Tensor, steps: Tensor, spent: int, floor: Tensor | float = 0.0
    ) -> Solution:
        """Return the solution of a direct method: w, its residual A w + g - w, steps per row, products in all.

        Args:
            stop: the rule.
            w: (B, N), in units of this.
            r: (B, N), likewise.
            steps: (B,).
            spent: products.
            floor: residual that no row need fall below, (B,).
        """
        # beside a w of that length g is lost in rounding, as in a singular system: a residual of it means nothing
        eps = torch.finfo(self.g.dtype).eps
        lost = ~(eps * _norm(w) <= max(LOST, 64 * eps) * self.unit) & w.isfinite().all(1)
        w, r = torch.where(lost[:, None], 0.0, w), torch.where(lost[:, None], self.g.to(r.dtype), r)
        residual = _norm(r)
        relative = residual / self.unit
        passed = residual <= torch.clamp_min(stop.rtol * self.unit, floor)
        if stop.per != "row":
            reading = Criterion(stop, self.system.layout, w)(Evaluation(w, w + r))
            relative, passed = reading.relative, reading.ratio <= 1
        status = torch.where(passed, int(Status.CONVERGED), int(Status.STALLED))
        if stop.is_budget:
            status = torch.full_like(status, int(Status.BUDGET))
        status = torch.where(relative.isfinite(), status, int(Status.NONFINITE)).to(torch.int8)
        z = (w if self.power is None else torch.ldexp(w, self.power)).to(self.g.dtype)
        return Solution(z=z, residual=relative, relative=relative, steps=steps, status=status, cost=Cost(spent))


def _in_middle(g: Tensor, narrow: bool) -> Tensor | None:
    """Return ||g|| of rows where all lie in a range that needs no scaling, none is zero and to look costs no sync."""
    if narrow or not at_hand(g) or not g.numel():
        return None
    norm = _norm(g)
    least, most = (each.item() for each in torch.aminmax(norm))
    # the largest unknown is at least ||g|| / sqrt(N) of the largest row
    return norm if least > 0 and 2.0**-40 * math.sqrt(g.shape[1]) <= most <= 2.0**79 else None


def _norm(t: Tensor) -> Tensor:
    return lengths(t)


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
    rest = lengths(scaled)[:, None].to(g.dtype)
    norm = _Norm(largest, torch.where(rest == 0, 1.0, rest))
    return scaled / norm.rest, norm
