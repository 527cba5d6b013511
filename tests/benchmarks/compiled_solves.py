"""Eager and compiled solves on the maps of the comparison: per evaluation, per solve, beside jitted peers.

    PYTHONPATH=.:solvers:tests OMP_NUM_THREADS=1 python -m benchmarks.compiled_solves \\
        --out docs/records/compiled_solves.json [--jax PYTHON] [--maps 4] [--rounds 9]

Time is process CPU time, contenders interleaved, medians. What an evaluation and a solve cost is the line through
budgets of seven lengths, fitted by least squares; its residual says what cannot be told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deqlm
from benchmarks.comparison.jax_peers import measure_jax
from benchmarks.comparison.maps import SpeedMap, speed_maps, true_residual
from benchmarks.comparison.timing import interleaved
from deqlm import Stop
from deqlm.reporting.environment import environment

LENGTHS = (1, 2, 4, 8, 16, 32, 64)
SOLVERS = ("fixed_point", "anderson", "broyden")


def line(seconds: list[float]) -> dict[str, float]:
    """Return the line through times of `LENGTHS`, and its largest residual, in seconds."""
    x = torch.tensor(LENGTHS, dtype=torch.float64)
    a = torch.stack([x, torch.ones_like(x)], 1)
    y = torch.tensor(seconds, dtype=torch.float64)
    # relative errors: a long solve must not hide a short one
    weight = (1 / y)[:, None]
    fit = torch.linalg.lstsq(a * weight, (y * weight[:, 0])[:, None]).solution[:, 0]
    return {"evaluation": fit[0].item(), "solve": fit[1].item(), "unresolved": (a @ fit - y).abs().max().item()}


def fitted(solve: Callable[..., Any], start: Tensor, args: tuple[Tensor, ...], rounds: int) -> dict[str, float]:
    """Return what an evaluation and a solve cost, by budgets of several lengths."""
    stops = [Stop(max_iter=length, rtol=0) for length in LENGTHS]
    calls = [lambda stop=stop: solve(start, *args, stop=stop) for stop in stops]
    for call in calls:
        call()
    return line([statistics.median(taken) for taken in interleaved(calls, rounds)])


def contenders(m: SpeedMap) -> dict[str, Callable[..., Any]]:
    """Return eager and compiled solves of a map, by solver, called with a start and its arguments."""
    settings: dict[str, Any] = {"stop": Stop(max_iter=m.max_iter, rtol=m.tol), "on_failure": "ignore"}
    kinds = {"eager": partial(deqlm.Equilibrium(**settings), m.f), "compiled": deqlm.compile(m.f, **settings)}
    return {f"{kind} {solver}": partial(solve, solver=solver) for solver in SOLVERS for kind, solve in kinds.items()}


def adjoint(m: SpeedMap, rounds: int) -> dict[str, Any]:
    """Return seconds of a backward solve, eager and compiled, and how far their gradients are apart."""
    args = [a.clone().requires_grad_() for a in m.args]
    settings: dict[str, Any] = {"stop": Stop(max_iter=m.max_iter, rtol=m.tol), "on_failure": "ignore"}
    values = [deqlm.Equilibrium(**settings)(m.f, m.z0, *args), deqlm.compile(m.f, **settings)(m.z0, *args)]
    g = torch.randn(m.z0.shape, generator=torch.Generator().manual_seed(0))
    calls = [lambda y=y: torch.autograd.grad(y, args, g, retain_graph=True) for y in values]
    grads = [torch.cat([t.flatten() for t in call()]) for call in calls]
    eager, compiled = (statistics.median(taken) for taken in interleaved(calls, rounds))
    apart = ((grads[0] - grads[1]).norm() / grads[0].norm()).item()
    return {"eager": eager, "compiled": compiled, "apart": apart}


def measure(m: SpeedMap, rounds: int) -> dict[str, Any]:
    """Return the record of one map."""
    solves = contenders(m)
    with torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {"f": lambda: m.closed(m.z0)}
        calls |= {name: lambda solve=solve: solve(m.z0, *m.args) for name, solve in solves.items()}
        for call in calls.values():
            call()
        times = interleaved(list(calls.values()), rounds)
        seconds = {name: statistics.median(taken) for name, taken in zip(calls, times, strict=True)}
        told: dict[str, Any] = {"map": m.name, "group": m.group, "rows": m.z0.shape[0], "unknowns": m.z0.shape[1]}
        told["f"] = seconds.pop("f")
        told["solvers"] = {}
        for name, solve in solves.items():
            z, sol = solve(m.z0, *m.args, with_stats=True)
            worst = true_residual(m.exact(), z).max().item()
            told["solvers"][name] = {
                "seconds": seconds[name],
                "evaluations": sol.cost.evaluations,
                "residual": worst,
                "solved": worst <= 1.05 * m.tol,
            }
        for kind in ("eager", "compiled"):
            told[f"{kind} line"] = fitted(solves[f"{kind} fixed_point"], m.z0, m.args, rounds)
    told["adjoint"] = adjoint(m, rounds) if m.kind != "transformer" else None
    return told


def table(record: dict[str, Any]) -> str:
    """Return the record as a table in markdown: microseconds, and how many times faster."""
    lines = [
        "| map | f alone | evaluation, eager | compiled | solve, eager | compiled | whole solve | adjoint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for told in record["maps"]:
        best = {kind: _best(told, kind) for kind in ("eager", "compiled")}
        ratio = "-" if None in best.values() else f"{best['eager'] / best['compiled']:.1f}"
        back = told["adjoint"]
        cells = [told["map"], f"{told['f'] * 1e6:.1f}"]
        for what in ("evaluation", "solve"):
            cells += [_microseconds(told[f"{kind} line"], what) for kind in ("eager", "compiled")]
        cells += [ratio, f"{back['eager'] / back['compiled']:.1f}" if back else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _microseconds(fit: dict[str, float], what: str) -> str:
    """Return a part of a line, or that it cannot be told from what the line leaves over."""
    value, noise = fit[what], fit["unresolved"] if what == "solve" else 0.0
    return f"{value * 1e6:.1f}" if value > noise else f"below {max(noise, abs(value)) * 1e6:.0f}"


def _best(told: dict[str, Any], kind: str) -> float | None:
    times = [s["seconds"] for name, s in told["solvers"].items() if name.startswith(kind) and s["solved"]]
    return min(times, default=None)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jax", metavar="PYTHON", help="interpreter with jax, jaxopt and optimistix")
    parser.add_argument("--maps", type=int, help="how many of the maps; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {"environment": environment(), "command": " ".join(sys.argv[1:]), "maps": []}
    for m in list(speed_maps())[: given.maps]:
        record["maps"].append(measure(m, given.rounds))
        print(m.name, file=sys.stderr, flush=True)
    if given.jax:
        record["jax"] = measure_jax(given.jax, list(speed_maps())[: given.maps], given.rounds)
    record["table"] = table(record).splitlines()
    print(table(record))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
