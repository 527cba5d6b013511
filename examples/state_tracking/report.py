"""Tables of stored results, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from deqlm.reporting import page
from deqlm.reporting.table import aligned
from examples.state_tracking.data import word_problem

__all__ = [
    "accuracy_table",
    "chance",
    "gap",
    "generated_table",
    "mode_table",
    "rate_table",
    "schedule_table",
    "spread_table",
    "table",
]

Data = dict[str, Any]


def chance(problem: str) -> float:
    """Return the accuracy of guessing one element of a group problem."""
    return 1 / len(word_problem(problem))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Return rows in aligned columns; the first one stands left, the others right."""
    return page.table(head, rows) if markdown else "\n".join(aligned([head, *rows]))


def accuracy_table(results: Sequence[Data], *, metric: str = "last", markdown: bool = False) -> str:
    """Return one line per result: what it has, what it took, and its accuracy at each length.

    Args:
        results: of `examples.state_tracking.experiment.run`.
        metric: "last", "last10" or "mean".
        markdown: in place of plain text.
    """
    lengths = sorted({t["length"] for r in results for t in r["tests"]})
    seeds = len({r["seed"] for r in results}) > 1
    head = ["model", *["seed"] * seeds, "parameters", "lr", "steps", "CPU s", *(f"L={n}" for n in lengths)]
    rows = []
    for r in results:
        found = {t["length"]: t[metric] for t in r["tests"]}
        rows.append(
            [
                r["label"],
                *[str(r["seed"])] * seeds,
                f"{r['parameters']:,}",
                f"{r['recipe']['loop']['lr']:g}",
                str(r["training"]["steps"]),
                f"{r['training']['seconds']['cpu']:.1f}",
                *(f"{found[n]:.3f}" if n in found else "" for n in lengths),
            ]
        )
    return table(head, rows, markdown=markdown)


def spread_table(results: Sequence[Data], *, metric: str = "last", solved: float = 0.99, markdown: bool = False) -> str:
    """Return one line per label: mean and range over its seeds at each length, and how many reach ``solved`` at 1x.

    Args:
        results: of several seeds.
        metric: "last", "last10" or "mean".
        solved: accuracy at the longest trained length that counts as learnt.
        markdown: in place of plain text.
    """
    lengths = sorted({t["length"] for r in results for t in r["tests"]})
    trained = max(stage["length"] for stage in results[0]["recipe"]["loop"]["curriculum"]["stages"])
    head = ["model", "seeds", "learnt", "steps", "CPU s", *(f"L={n}" for n in lengths)]
    rows = []
    for label in dict.fromkeys(r["label"] for r in results):
        group = [r for r in results if r["label"] == label]
        found = [{t["length"]: t[metric] for t in r["tests"]} for r in group]
        learnt = sum(f.get(trained, 0.0) >= solved for f in found)
        cells = []
        for n in lengths:
            values = [f[n] for f in found if n in f]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "")
        steps = f"{mean(r['training']['steps'] for r in group):.0f}"
        seconds = f"{mean(r['training']['seconds']['cpu'] for r in group):.1f}"
        rows.append([label, str(len(group)), f"{learnt} of {len(group)}", steps, seconds, *cells])
    return table(head, rows, markdown=markdown)


def rate_table(tried: Sequence[Data], *, length: int, markdown: bool = False) -> str:
    """Return one line per label: accuracy over all tokens of ``length`` that each learning rate reached.

    "broke" is a training that ended with numbers that are not finite.

    Args:
        tried: results of one seed, the same rates for every label.
        length: the trained one.
        markdown: in place of plain text.
    """
    rates = sorted({r["recipe"]["loop"]["lr"] for r in tried})
    rows = []
    for label in dict.fromkeys(r["label"] for r in tried):
        found = {r["recipe"]["loop"]["lr"]: r for r in tried if r["label"] == label}
        means = [next((t["mean"] for t in found[rate]["tests"] if t["length"] == length), None) for rate in rates]
        rows.append([label, *("broke" if accuracy is None else f"{accuracy:.3f}" for accuracy in means)])
    return table(["model", *(f"lr={rate:g}" for rate in rates)], rows, markdown=markdown)


def gap(results: Sequence[Data], length: int) -> float:
    """Return how far the first result is ahead of the best of the others, in last-token accuracy at a length."""
    first, *others = [{t["length"]: t["last"] for t in r["tests"]}[length] for r in results]
    return first - max(others)


def mode_table(tests: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per mode and length: accuracy, evaluations per token, time, agreement."""
    head = ["mode", "L", "last 10", "mean", "converged", "evaluations per token", "CPU s", "agreement"]
    rows = []
    for t in tests:
        size = t["mode"].get("size", t["mode"].get("window", ""))
        cells = [f"{t['mode']['name']} {size}".strip(), str(t["length"]), f"{t['last10']:.3f}", f"{t['mean']:.3f}"]
        cells += [f"{t['converged']:.2f}", f"{t['evaluations_per_token']:.1f}", f"{t['seconds']['cpu']:.2f}"]
        rows.append([*cells, f"{t['agreement']:.4f}" if "agreement" in t else ""])
    return table(head, rows, markdown=markdown)


def schedule_table(tests: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per length and schedule: what it gets right, what it spends, and how far it agrees."""
    head = ["schedule", "L", "right", "converged", "evaluations per token", "CPU s", "same answer as token by token"]
    rows = []
    for t in tests:
        name = f"{t['mode']['name']} {t['mode'].get('size', '')}".strip()
        cells = [f"{t['mean']:.4f}", f"{t['converged']:.2f}", f"{t['evaluations_per_token']:.1f}"]
        rows.append([name, str(t["length"]), *cells, f"{t['seconds']['cpu']:.2f}", f"{t['agreement']:.4f}"])
    return table(head, rows, markdown=markdown)


def generated_table(results: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per training on a set of generators: last-token accuracy in per cent at every tested length."""
    lengths = sorted({t["length"] for r in results for t in r["tests"]})
    rows = [
        [r["problem"], str(r["seed"]), str(r["training"]["steps"]), f"{r['training']['seconds']['cpu']:.0f}"]
        + [f"{100 * next(t['last'] for t in r['tests'] if t['length'] == n):.1f}" for n in lengths]
        for r in results
    ]
    return table(["problem", "seed", "steps", "CPU s", *(f"L={n}" for n in lengths)], rows, markdown=markdown)
