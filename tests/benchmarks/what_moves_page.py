"""Draws what a record of `what_moves.py` holds: the tables of docs/guides/what_moves.md, between its marks, and a plot.

python tests/benchmarks/what_moves_page.py docs/records/what_moves.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deqlm.reporting.page import redraw, table
from deqlm.reporting.style import PALETTE, figure, steady

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "guides" / "what_moves.md"
PLOT = DOCS / "assets" / "what_moves.svg"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number of so many digits, without an exponent."""
    if value is None:
        return "-"
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


def modes(record: dict[str, Any]) -> str:
    """Return one table per kind of data: cost per token of every mode, beside simultaneous mode."""
    parts = []
    for case in record["cases"]:
        cells = [cell for cell in case["cells"] if cell["rows"] == 1]
        head = ["mode"]
        head += [f"tokens evaluated per token, L = {cell['length']}" for cell in cells]
        head += [f"CPU s (times less), L = {cell['length']}" for cell in cells]
        head += ["exponent in L", "accuracy", "largest error", "mean error"]
        rows = []
        for name in cells[0]["modes"]:
            row = [name]
            found = [(cell["modes"][name], cell["modes"]["simultaneous"]) for cell in cells]
            row += [
                f"{number(m['tokens_per_token'])} ({number(s['tokens_per_token'] / m['tokens_per_token'], 2)}x)"
                for m, s in found
            ]
            row += [f"{number(m['seconds'])} ({number(s['seconds'] / m['seconds'], 2)}x)" for m, s in found]
            last = found[-1][0]
            row += [number(case["exponents"][name], 2), number(last["accuracy"], 4)]
            row += [number(last["error_max"], 2), number(last["error_mean"], 2)]
            rows.append(row)
        parts.append(f"**{case['label']}**\n\n{table(head, rows, numbers=False)}")
    return "\n\n".join(parts)


def batches(record: dict[str, Any]) -> str:
    """Return what a batch of 8 rows costs: rows evaluated beside the sum of the rows' own steps."""
    rows = []
    for case in record["cases"]:
        for cell in case["cells"]:
            if cell["rows"] == 1:
                continue
            for name, m in cell["modes"].items():
                share = m["row_evaluations"] / m["steps"]
                rows.append(
                    [
                        case["label"],
                        name,
                        str(m["evaluations"]),
                        str(m["row_evaluations"]),
                        str(m["steps"]),
                        number(share),
                        number(m["tokens_per_token"]),
                        number(m["seconds"]),
                    ]
                )
    head = [
        "data",
        "mode",
        "evaluations",
        "row-evaluations",
        "sum of the rows' steps",
        "ratio",
        "tokens evaluated per token",
        "CPU s",
    ]
    return table(head, rows, numbers=False)


def training(record: dict[str, Any]) -> str:
    """Return what a training step costs, and the losses."""
    found = record["training"]
    names = list(found["steps"][0]["ways"])
    rows = []
    for step in found["steps"]:
        ways = [step["ways"][name] for name in names]
        rows.append([str(step["rows"]), *(f"{number(w['tokens_per_token'])}, {number(w['seconds'])} s" for w in ways)])
    text = table(["batch", *names], rows, numbers=False)
    curves = [
        [str(seed), *(f"{c[n][0]:.3f}, {sum(c[n][-10:]) / len(c[n][-10:]):.3f}" for n in names)]
        for seed, c in enumerate(found["losses"])
    ]
    count = len(found["losses"][0][names[0]])
    losses = table(["seed", *names], curves, numbers=False)
    return f"{text}\n\nLoss of the first step, and mean of the last ten of {count}:\n\n{losses}"


def draw(record: dict[str, Any]) -> None:
    """Draw evaluations per token against position."""
    with steady():
        made = figure(7.5, 3.6)
        axes = made.subplots(2, 2, sharex=True)
        for column, (p, found) in enumerate(record["thinking"].items()):
            hard = [i for i, token in enumerate(found["hard"]) if token]
            whole, window = axes[0][column], axes[1][column]
            whole.plot(found["simultaneous"], color=PALETTE[0], linewidth=1.0)
            whole.set_title(f"share of easy tokens {p}")
            window.bar(range(len(found["window"])), found["window"], width=1.0, color=PALETTE[5])
            window.plot(
                hard, [0] * len(hard), "|", color=PALETTE[1], markersize=5, label="a token that changes the state"
            )
            window.set_xlabel("position")
        axes[0][0].set_ylabel("settled at\n(all at once)")
        axes[1][0].set_ylabel("own evaluations\n(window of 8)")
        axes[1][0].legend(loc="upper right", fontsize=7)
        made.tight_layout()
        made.savefig(PLOT, metadata={"Date": None, "Creator": None})


def where(record: dict[str, Any]) -> str:
    """Return a line on the machine and the run."""
    env = record["environment"]
    kind = "the short run, with shorter sequences" if record["small"] else "the whole run"
    return f"{env['cpu']}, one thread, torch {env['packages']['torch']}, float32, tolerance {record['rtol']}; {kind}."


def main(argv: list[str]) -> int:
    """Write the parts into the page."""
    record = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    parts = {"where": where, "modes": modes, "batches": batches, "training": training}
    redraw(PAGE, {name: part(record) for name, part in parts.items()})
    draw(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
