"""What a diagnosis has found out, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deqlm.diagnostics.diagnosis.contraction import Contraction
from deqlm.diagnostics.diagnosis.growth import Skip
from deqlm.diagnostics.diagnosis.parts import Parts
from deqlm.diagnostics.diagnosis.probes import Causality, InPlace, Mixing, Randomness
from deqlm_solvers.loop.runaway import GROWN

__all__ = ["Backward", "Findings", "PathDependence", "Plain", "Trend"]

Trend = Literal["falling", "flat", "rising", "nonfinite"]


@dataclass(frozen=True)
class Plain:
    """Plain iteration z <- f(z) from the same start, at the same tolerance, per row.

    Attributes:
        converged: within tolerance.
        steps: evaluations.
        trace: residuals, row by row.
        trend: of the residual over the second half of the run.
        cycle: ||f(f(z)) - z|| / ||f(z) - z|| at its end: near 0 on a cycle of two, 1 + the eigenvalue elsewhere.
        size: ||f(z)|| at its end.
        largest: ||f(z0)||.
        growth: max(||z||, ||f(z)||) at its end in units of that at its start.
        fallen: the last residual is at most half of the largest one.
    """

    converged: tuple[bool, ...]
    steps: tuple[int, ...]
    trace: tuple[tuple[float, ...], ...]
    trend: tuple[Trend, ...]
    cycle: tuple[float, ...]
    size: tuple[float, ...]
    largest: tuple[float, ...]
    growth: tuple[float, ...]
    fallen: tuple[bool, ...]


@dataclass(frozen=True)
class Backward:
    """The solve (I - J^T) w = g for a random cotangent g, with the settings of the DEQ's own gradient.

    Attributes:
        status: per row that converged forward, by name.
        steps: products with J^T.
        residual: ||J^T w + g - w|| / ||g||.
    """

    status: tuple[str, ...]
    steps: tuple[int, ...]
    residual: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """Every row did."""
        return all(name in ("CONVERGED", "BUDGET") for name in self.status)


@dataclass(frozen=True)
class PathDependence:
    """Solutions from several starts.

    Attributes:
        starts: how many starts, the given one included.
        converged: rows times starts that converged.
        asked: rows times starts.
        distance: largest distance of two solutions of one row, in units of the tolerance.
        expected: what kappa explains of it; two points within tolerance may be 2 kappa tolerances apart.
    """

    starts: int
    converged: int
    asked: int
    distance: float
    expected: float

    @property
    def depends(self) -> bool:
        """Solutions are further apart than the tolerance and the conditioning explain."""
        return self.distance > 10 * self.expected


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The evidence; one entry per row where a field is a tuple.

    Attributes:
        solver: how the solve under examination was done, with its options.
        plain_solver: that is undamped plain iteration.
        dtype: of the state.
        unknowns: N, of a row.
        max_iter: evaluations allowed.
        rtol: relative tolerance that rows are judged by.
        atol: likewise, absolute.
        budget: the solve tests nothing (rtol = atol = 0) and is judged by the tolerance all the same.
        status: by name.
        passed: within the tolerance.
        steps: evaluations.
        residual: ||f(z) - z||.
        relative: residual / ||f(z)||.
        start_finite: f(z0) is finite.
        runaway: not within tolerance but for its growth: the scale of the point is above 10 times the first one, and
            its residual above half of the largest.
        solved: some attempt, this solve or another one, found a solution.
        trace: residuals of every evaluation, row by row; None where the solver keeps none.
        raised: the error that f raised during the solve, or None.
        in_place: see `InPlace`.
        randomness: see `Randomness`.
        mixing: see `Mixing`; None for one row, or where f is random.
        causality: see `Causality`; None where there are no tokens, or f is random.
        tokens: L, or None.
        skip: see `Skip`; None where f is random, or not finite at the points looked at.
        plain: see `Plain`.
        contraction: see `Contraction`; None where there is no usable derivative or point.
        adjoint: see `Backward`; None unless the gradient solves a backward system and a row converged.
        floor: relative residual below which rounding decides, of the worst row.
        path: see `PathDependence`; None where nothing converged.
        parts: see `Parts`; None where every part of the rows that passed can be seen.
    """

    solver: str
    plain_solver: bool
    dtype: str
    unknowns: int
    max_iter: int
    rtol: float
    atol: float
    budget: bool
    status: tuple[str, ...]
    passed: tuple[bool, ...]
    steps: tuple[int, ...]
    residual: tuple[float, ...]
    relative: tuple[float, ...]
    trace: tuple[tuple[float, ...], ...] | None
    start_finite: tuple[bool, ...]
    runaway: tuple[bool, ...]
    solved: tuple[bool, ...]
    raised: str | None
    in_place: InPlace
    randomness: Randomness | None = None
    mixing: Mixing | None = None
    causality: Causality | None = None
    tokens: int | None = None
    skip: Skip | None = None
    plain: Plain | None = None
    contraction: Contraction | None = None
    adjoint: Backward | None = None
    floor: float | None = None
    path: PathDependence | None = None
    parts: Parts | None = None

    @property
    def converged(self) -> bool:
        """Every row is within tolerance."""
        return self.raised is None and all(self.passed)

    @property
    def nonfinite(self) -> tuple[int, ...]:
        """Rows in which f returned NaN or infinity."""
        return tuple(i for i, name in enumerate(self.status) if name == "NONFINITE")

    @property
    def runs_away(self) -> bool:
        """A row that nothing solved grows and gets no better, and f is a residual layer, z + F(z)."""
        if self.skip is None or not self.skip.residual_layer:
            return False
        failed = [i for i, ok in enumerate(self.passed) if not ok and not self.solved[i]]
        return any(self.runaway[i] or self._plainly_grown(i) for i in failed)

    def _plainly_grown(self, row: int) -> bool:
        plain = self.plain
        return plain is not None and not plain.fallen[row] and plain.growth[row] > GROWN

    @property
    def worst(self) -> int:
        """The row with the largest relative residual among those that failed, or among all."""
        rows = [i for i, ok in enumerate(self.passed) if not ok] or list(range(len(self.passed)))
        return max(rows, key=lambda i: self.relative[i] if math.isfinite(self.relative[i]) else -1.0, default=0)

    @property
    def telling(self) -> int:
        """The worst row where some failed, else the examined one with the largest spectral radius."""
        c = self.contraction
        if c is None or not all(self.passed):
            return self.worst
        return c.rows[c.radius.index(max(c.radius))]
