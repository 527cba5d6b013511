"""The documented rules once more, in plain Python over one row: which point passes, which is best, how a row ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from deqlm_solvers import Status, Stop


@dataclass
class Reading:
    """Residual, size and tolerance of each group (token, leaf, or the row) of a point, by hand."""

    residuals: list[float]
    sizes: list[float]
    tolerances: list[float]

    @property
    def residual(self) -> float:
        return max(self.residuals, default=0.0, key=lambda x: math.inf if math.isnan(x) else x)

    @property
    def size(self) -> float:
        return max(self.sizes, default=0.0)

    def within(self, slack: float = 0.0) -> bool:
        pairs = zip(self.residuals, self.tolerances, strict=True)
        return all(math.isfinite(r) and r <= t * (1 + slack) + 1e-269 for r, t in pairs)

    def clearly(self, slack: float) -> bool | None:
        """Say whether it is within tolerance, or None where rounding decides."""
        return True if self.within(-slack) else None if self.within(slack) else False


@dataclass
class Row:
    """What a row has seen, by the rules of `Stop`."""

    stop: Stop
    largest: float = 0.0
    start: float = 0.0
    seen: list[Reading] = field(default_factory=list)

    def take(self, reading: Reading) -> None:
        if not self.seen:
            self.start = reading.size
        self.largest = max(self.largest, reading.residual)
        self.seen.append(reading)

    def runs_away(self, reading: Reading) -> bool:
        return reading.residual > 0.5 * self.largest and reading.size > 10 * self.start

    def expected(self, slack: float) -> set[Status]:
        """Return the statuses that the rules allow after the points seen; several where rounding decides."""
        allowed: set[Status] = set()
        limit = self.seen[0].residual * self.stop.divergence
        row = Row(self.stop)
        for reading in self.seen:
            row.take(reading)
            passes = reading.clearly(slack)
            if passes is not False and not row.runs_away(reading):
                allowed.add(Status.CONVERGED)
                if reading.size > 10 * row.start:  # more than that is asked of rows that grew
                    allowed.add(Status.DIVERGED)
                elif passes:
                    return allowed
            elif passes is not False:
                allowed.add(Status.DIVERGED)
        last = self.seen[-1].residual
        if not math.isfinite(last):
            allowed.add(Status.NONFINITE)
        elif last > limit:
            allowed.add(Status.DIVERGED)
        else:
            allowed |= {Status.MAX_ITER, Status.STALLED}
        return allowed
