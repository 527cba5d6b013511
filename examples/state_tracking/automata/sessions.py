"""State tracking in code: sessions of a read-eval-print loop, by the implicit layer, its explicit twin and an LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm_solvers.core.checks import whole
from examples.loop.results import write_json
from examples.state_tracking.automata.recipe import baseline, implicit
from examples.state_tracking.automata.table import SEARCH_SEED, TRIED, run_all, seconds_of
from examples.state_tracking.automata.tasks import contract
from examples.state_tracking.report import table

__all__ = ["BESIDE", "TASK", "compare", "describe"]

TASK = "repl_traces"
BESIDE = ("Mamba2, 2 layers", "LSTM")
"""The explicit twin of the implicit layer, with one layer more, and torch's LSTM."""
SEARCHING = 3
"""A search of rates gives each of them this part of the time."""
SHOWN = (0, 8, 16, 24)
"""Which of the tested lengths a table has a column for."""

Data = dict[str, Any]


def compare(out: Path, *, seeds: int = 1, workers: int = 2, progress: bool | None = None, quick: bool = False) -> Data:
    """Train the implicit layer, then the others for as long at the best of three rates, and store ``out``/traces.json.

    Rates are chosen by validation sequences, with a seed that is not shown, in a third of the time each.

    Args:
        out: folder.
        seeds: 0 to ``seeds`` - 1.
        workers: processes.
        progress: as for `run_jobs`.
        quick: three steps of each, to see that it runs.

    Raises:
        ValueError: seeds below 1.
    """
    whole("seeds", seeds, 1)
    how = {"quick": quick, "workers": workers, "progress": progress}
    results = run_all([implicit(TASK, seed) for seed in range(seeds)], out, **how)
    seconds = seconds_of(results)
    short = {"seconds": max(1, seconds // SEARCHING), "seed": SEARCH_SEED, "split": "valid"}
    tried = [
        result
        for lr in TRIED
        for result in run_all([baseline(name, TASK, lr=lr, **short) for name in BESIDE], out / f"search-{lr:g}", **how)
    ]
    search = [{"label": r["label"], "lr": r["recipe"]["loop"]["lr"], "mean": r["mean"]} for r in tried]
    rates = {label: best_rate([row for row in search if row["label"] == label]) for label in BESIDE}
    others = [
        baseline(label, TASK, lr=rates[label], seconds=seconds, seed=seed) for label in BESIDE for seed in range(seeds)
    ]
    results += run_all(others, out, **how)
    data = {"contract": contract(TASK).to_dict(), "seconds": seconds, "search": search, "results": results}
    write_json(out / "traces.json", data)
    return data


def best_rate(tried: Sequence[Data]) -> float:
    """Return the rate with the best mean; the smallest of equals."""
    return -max((row["mean"] or 0.0, -row["lr"]) for row in tried)[1]


def describe(data: Data, *, markdown: bool = False) -> str:
    """Return one line per training: the share of printed values that it names, in per cent, by length.

    Args:
        data: of `compare`.
        markdown: in place of plain text.
    """
    results: Sequence[Data] = data["results"]
    shown = [i for i in SHOWN if i < len(results[0]["tests"])]
    lengths = [contract(TASK).tokens(results[0]["tests"][i]["length"]) for i in shown]
    head = ["model", "seed", "parameters", "lr", "CPU s", *(f"L={n}" for n in lengths), "mean of all lengths"]
    rows = []
    for r in results:
        cells = [r["label"], str(r["seed"]), f"{r['parameters']:,}", f"{r['recipe']['loop']['lr']:g}"]
        if r["mean"] is None:
            rows.append([*cells, *[""] * (1 + len(shown)), "broke"])
            continue
        accuracies = [f"{100 * r['tests'][i]['last']:.1f}" for i in shown]
        rows.append([*cells, f"{r['training']['seconds']['cpu']:.0f}", *accuracies, f"{100 * r['mean']:.1f}"])
    return table(head, rows, markdown=markdown)
