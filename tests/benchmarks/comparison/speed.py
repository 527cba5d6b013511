"""Time to an equal true residual, against the best of torchdeq's three solvers, map by map."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.comparison.contenders import DEFAULT, PEERS, Contender, Outcome, contenders, ours, outcome_of
from benchmarks.comparison.maps import HARD, SpeedMap, bad_rows, speed_maps, symmetric
from benchmarks.comparison.timing import interleaved, per_call
from deqlm_solvers import Anderson, Broyden, FixedPoint

__all__ = ["fitted", "measure_overhead", "measure_rows", "measure_speed"]

LENGTHS = (12, 24, 40, 60, 80, 100)
"""Evaluations of the solves through whose times a line is laid: its slope is the cost of an evaluation. All are longer
than a history, so that the first evaluations, which are cheaper while one grows, are in every one of them."""


def measure_speed(
    maps: Iterable[SpeedMap] | None = None,
    rounds: int = 9,
    step: Callable[[str], None] = lambda name: None,
    labels: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Return a record per map: cost of f, and per contender evaluations, time, true residual.

    Args:
        maps: what to solve; None takes `speed_maps` in float32.
        rounds: interleaved timed rounds.
        step: told the name of each map before it is measured.
        labels: contenders to time; None takes all.
    """
    chosen = None if labels is None else set(labels)
    records = []
    for m in speed_maps() if maps is None else maps:
        step(m.name)
        everybody = [who for who in contenders() if chosen is None or who.label in chosen]
        outcomes = [outcome_of(who, m) for who in everybody]
        ready = [i for i, outcome in enumerate(outcomes) if not outcome.message]
        f, z0, args = m.f, m.z0, m.args
        calls: list[Callable[[], Any]] = [_call(everybody[i], m, outcomes[i]) for i in ready]
        with torch.no_grad():
            *taken, bare = interleaved([*calls, lambda f=f, z0=z0, args=args: f(z0, *args)], rounds)
        for i, seconds in zip(ready, taken, strict=True):
            outcomes[i].seconds = seconds
        records.append(
            {
                "map": m.name,
                "group": m.group,
                "rows": m.z0.shape[0],
                "unknowns": m.z0.shape[1],
                "dtype": str(m.z0.dtype).removeprefix("torch."),
                "tol": m.tol,
                "max_iter": m.max_iter,
                "f_seconds": statistics.median(bare),
                "entries": [entry(outcome) for outcome in outcomes],
            }
        )
    return records


def measure_rows(rounds: int = 9, step: Callable[[str], None] = lambda name: None) -> list[dict[str, Any]]:
    """Return what one hard, diverging or NaN row of 32 costs the default, and what it costs alone.

    Each record has the seconds of all 32 rows together, of the 31 good ones, of the bad one alone, and of the best peer
    on all 32; the good rows' true residual is verified.
    """
    records = []
    for what, m, bad in bad_rows():
        step(m.name)
        others = torch.tensor([i for i in range(m.z0.shape[0]) if i != bad])
        unsolvable = torch.zeros(m.z0.shape[0], dtype=torch.bool)
        unsolvable[bad] = not what.startswith("hard")
        parts = {"together": m, "others": m.take(others), "alone": m.take(torch.tensor([bad]))}
        us = ours(DEFAULT)
        outcome = outcome_of(us, m, unsolvable)
        rivals = [(who, outcome_of(who, m, unsolvable)) for who in contenders() if who.label in PEERS]
        running = [(who, found) for who, found in rivals if not found.message]
        calls = [_call(us, part, outcome) for part in parts.values()]
        calls += [_call(who, m, found) for who, found in running]
        taken = interleaved(calls, rounds)
        for (_, found), seconds in zip(running, taken[3:], strict=True):
            found.seconds = seconds
        medians = {name: statistics.median(seconds) for name, seconds in zip(parts, taken[:3], strict=True)}
        records.append(
            {"row": what, "entry": entry(outcome), **medians, "peers": [entry(found) for _, found in rivals]}
        )
    return records


def measure_overhead(step: Callable[[str], None] = lambda name: None) -> list[dict[str, Any]]:
    """Return microseconds beyond f per evaluation and per solve, at B=32 N=64 in float32.

    A slow map (radius .999) is given several numbers of evaluations; the slope of the line through their times is the
    cost of an evaluation, the rest that of a solve. Tests, best point and safeguards are on; nothing converges.
    """
    g = torch.Generator().manual_seed(0)
    a = symmetric(torch.randn(64, 64, generator=g, dtype=torch.float64), 0.999).float()
    b = torch.randn(32, 64, generator=g)
    z0 = torch.zeros(32, 64)
    m = SpeedMap("symmetric .999, N=64 B=32", HARD, "linear", (a,), (b,), z0)
    f = m.f
    records = []
    with torch.no_grad():
        bare = per_call(lambda: f(z0, b), 21)
    for label, solver, extra in (
        ("fixed_point", FixedPoint(), {}),
        ("fixed_point, test_every=auto", FixedPoint(), {"test_every": "auto"}),
        ("anderson", Anderson(), {}),
        ("anderson, test_every=auto", Anderson(), {"test_every": "auto"}),
        ("broyden", Broyden(), {}),
    ):
        step(f"overhead of {label}")
        calls = []
        for length in LENGTHS:
            budget = SpeedMap(m.name, m.group, m.kind, m.shared, m.args, m.z0, length)
            who = ours(label, solver, atol=1e-30, **extra)
            calls.append(_call(who, budget, Outcome(label, tol=1e-30)))
        medians = [statistics.median(seconds) for seconds in interleaved(calls, 15)]
        line = fitted(LENGTHS, medians)
        records.append(
            {
                "solver": label,
                "f_us": 1e6 * bare,
                "lengths": LENGTHS,
                "solve_us": [1e6 * seconds for seconds in medians],
                "per_evaluation_us": 1e6 * (line.slope - bare),
                "per_evaluation_error_us": 1e6 * line.slope_error,
                "per_solve_us": 1e6 * line.rest,
                "per_solve_error_us": 1e6 * line.rest_error,
            }
        )
    return records


class Line(NamedTuple):
    """A line through measured points by least squares, with the standard errors that their distances from it show."""

    slope: float
    rest: float
    slope_error: float
    rest_error: float


def fitted(x: Sequence[float], y: Sequence[float]) -> Line:
    """Return the line through three points or more.

    Examples:
        >>> fitted((1, 2, 3), (5, 7, 9))
        Line(slope=2.0, rest=3.0, slope_error=0.0, rest_error=0.0)
    """
    middle, mean = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / spread
    rest = mean - slope * middle
    left = sum((b - rest - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (len(x) - 2)
    return Line(slope, rest, math.sqrt(left / spread), math.sqrt(left * (1 / len(x) + middle**2 / spread)))


def entry(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data, with the median of its times."""
    seconds = outcome.seconds
    return {
        "solver": outcome.label,
        "solved": outcome.solved,
        "residual": outcome.residual if outcome.residual < float("inf") else None,
        "evaluations": outcome.evaluations,
        "tol": outcome.tol,
        "ms": None if not seconds else 1e3 * statistics.median(seconds),
        "fastest_ms": None if not seconds else 1e3 * min(seconds),
        "samples": 0 if not seconds else len(seconds),
        "picked": outcome.picked,
        "message": outcome.message,
    }


def _call(who: Contender, m: SpeedMap, outcome: Outcome) -> Callable[[], Any]:
    solve, tol = who.solve, outcome.tol
    return lambda: solve(m, tol)
