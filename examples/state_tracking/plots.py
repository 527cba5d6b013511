"""Pictures of stored results; each is drawn from JSON data and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deqlm.reporting.style import PALETTE, SETTINGS

__all__ = [
    "accuracy_by_length",
    "budgets",
    "collapse",
    "drawing",
    "easy_and_hard",
    "frontier",
    "modes",
    "schedules",
    "steps_by_position",
]

Data = dict[str, Any]


def accuracy_by_length(results: Sequence[Data], path: Path, *, metric: str = "last", chance: float) -> list[Path]:
    """Draw accuracy against length, one line per label: the mean of its seeds, and the range between them.

    Args:
        results: of `examples.state_tracking.experiment.run`.
        path: of the picture, without its ending.
        metric: "last" token or "last10".
        chance: accuracy of guessing.
    """
    with drawing(path, 5.2, 3.2) as (axis, written):
        for color, label in zip(PALETTE, dict.fromkeys(r["label"] for r in results), strict=False):
            lines = [{t["length"]: t[metric] for t in r["tests"]} for r in results if r["label"] == label]
            lengths = sorted(set.intersection(*(set(line) for line in lines)))
            columns = [[line[length] for line in lines] for length in lengths]
            axis.plot(lengths, [sum(c) / len(c) for c in columns], "o-", color=color, markersize=3.5, label=label)
            if len(lines) > 1:
                low, high = [min(c) for c in columns], [max(c) for c in columns]
                axis.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
        trained = max(stage["length"] for stage in results[0]["recipe"]["loop"]["curriculum"]["stages"])
        axis.axvline(trained, color="#888888", linestyle=":", linewidth=1)
        axis.axhline(chance, color="#888888", linestyle="--", linewidth=1)
        shown = sorted({t["length"] for r in results for t in r["tests"]})
        axis.set(xscale="log", ylim=(-0.02, 1.04), xlabel="tokens (dotted: longest trained; dashed: chance)")
        axis.set_xticks(shown, shown)
        axis.minorticks_off()
        what = "last token" if metric == "last" else "last ten tokens"
        axis.set(ylabel="accuracy", title=f"{results[0]['problem']}: accuracy of the {what}")
        axis.legend()
    return written


def steps_by_position(tests: Sequence[Data], path: Path) -> list[Path]:
    """Draw the evaluations from which each position stayed within tolerance, in the solve that it was part of."""
    with drawing(path, 5.6, 2.9) as (axis, written):
        for color, test in zip(PALETTE, tests, strict=False):
            label = f"L={test['length']}, {_mode(test['mode'])}"
            axis.plot(range(1, test["length"] + 1), test["token_steps"], color=color, label=label, linewidth=1)
        axis.set(xlabel="position", ylabel="evaluations", yscale="log", xscale="log")
        axis.set_title("From which evaluation a token is settled, mean over sequences")
        axis.legend()
    return written


def frontier(data: Data, path: Path) -> list[Path]:
    """Draw the residual of every token in every iteration, and the length of the settled prefix."""
    with drawing(path, 5.6, 3.6) as (axis, written):
        image = axis.imshow(data["residual"], origin="lower", aspect="auto", cmap="magma", vmin=-4, vmax=0.5)
        axis.figure.colorbar(image, label="log10 of the relative residual", pad=0.02)
        axis.plot(data["settled"], range(len(data["settled"])), color="white", linewidth=1.2)
        axis.grid(False)
        axis.set(xlim=(-0.5, data["length"] - 0.5), xlabel="token", ylabel="iteration of all tokens at once")
        axis.set_title(f"The settled prefix (white: all residuals <= {data['rtol']:g} from then on)")
    return written


def budgets(data: dict[str, list[Data]], path: Path) -> list[Path]:
    """Draw accuracy against the number of test-time iterations; ``data`` maps a length to its budgets."""
    with drawing(path, 5.2, 3.0) as (axis, written):
        for color, (length, rows) in zip(PALETTE, data.items(), strict=False):
            x = [row["budget"] for row in rows]
            axis.plot(x, [row["last"] for row in rows], "o-", color=color, markersize=3, label=f"L={length}")
            axis.plot(x, [row["mean"] for row in rows], "--", color=color, linewidth=1)
        axis.set(xscale="log", xlabel="iterations of the whole sequence", ylabel="accuracy", ylim=(-0.02, 1.04))
        axis.set_title("Accuracy against test-time iterations (dashed: mean over positions; full: last token)")
        axis.legend()
    return written


def easy_and_hard(tests: Sequence[Data], path: Path) -> list[Path]:
    """Draw evaluations per token of easy and hard tokens, one pair of bars per share of easy tokens."""
    with drawing(path, 4.6, 2.9) as (axis, written):
        for shift, color, kind in ((-0.2, PALETTE[5], "easy"), (0.2, PALETTE[1], "hard")):
            heights = [test["by_token"][kind]["token_steps"] or 0.0 for test in tests]
            bars = axis.bar([i + shift for i in range(len(tests))], heights, 0.38, color=color, label=f"{kind} tokens")
            accuracies = [test["by_token"][kind]["accuracy"] for test in tests]
            axis.bar_label(bars, ["" if a is None else f"{a:.2f}" for a in accuracies], fontsize=7)
        axis.set_xticks(range(len(tests)), [f"p={test['p']:g}\nL={test['length']}" for test in tests])
        axis.set(ylabel="evaluations per token", title="Easy and hard tokens, solved one by one (numbers: accuracy)")
        axis.grid(axis="x", visible=False)
        axis.legend()
    return written


def modes(tests: Sequence[Data], path: Path) -> list[Path]:
    """Draw evaluations per token against length, one line per mode."""
    with drawing(path, 5.2, 3.2) as (axis, written):
        names = list(dict.fromkeys(_mode(test["mode"]) for test in tests))
        for color, name in zip(PALETTE, names, strict=False):
            points = sorted((t["length"], t["evaluations_per_token"]) for t in tests if _mode(t["mode"]) == name)
            axis.plot(*zip(*points, strict=True), "o-", color=color, markersize=3.5, label=name)
        shown = sorted({test["length"] for test in tests})
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="evaluations per token")
        axis.set_xticks(shown, shown)
        axis.minorticks_off()
        axis.set_title("Solving all tokens at once is quadratic, in chunks linear")
        axis.legend(ncols=2)
    return written


def schedules(tests: Sequence[Data], path: Path) -> list[Path]:
    """Draw evaluations per token and seconds against length, one line per schedule."""
    with drawing(path, 5.2, 3.2) as (axis, written):
        names = list(dict.fromkeys(_mode(test["mode"]) for test in tests))
        for color, name in zip(PALETTE, names, strict=False):
            lines = sorted((t["length"], t["evaluations_per_token"], t["seconds"]["cpu"]) for t in tests
                           if _mode(t["mode"]) == name)  # fmt: skip
            lengths, evaluations, seconds = zip(*lines, strict=True)
            axis.plot(lengths, evaluations, "o-", color=color, markersize=3.5, label=name)
            axis.plot(lengths, seconds, "--", color=color, linewidth=1)
        shown = sorted({test["length"] for test in tests})
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="per token (full), seconds (dashed)")
        axis.set_xticks(shown, shown)
        axis.minorticks_off()
        axis.set_title("One fixed point, any schedule: evaluations and CPU time")
        axis.legend(ncols=2)
    return written


def collapse(results: Sequence[Data], path: Path) -> list[Path]:
    """Draw training accuracy (full) and the share of converged rows (dashed) against steps, one color per training."""
    with drawing(path, 5.6, 3.2) as (axis, written):
        for color, result in zip(PALETTE, results, strict=False):
            curve = result["curve"]
            axis.plot(curve["step"], curve["accuracy"], color=color, linewidth=1.2, label=result["label"])
            solved = [c if n > 10 else None for c, n in zip(curve["converged"], curve["length"], strict=True)]
            axis.plot(curve["step"], solved, "--", color=color, linewidth=0.9)
            for fall in result["training"]["falls"]:
                axis.axvline(fall["step"], color=color, linestyle=":", linewidth=1)
        axis.set(xlabel="steps (dotted: the guard returned)", ylabel="accuracy; converged (dashed)", ylim=(-0.02, 1.04))
        axis.set_title("Parity at a constant rate: solved, lost, and kept")
        axis.legend()
    return written


def _mode(mode: Data) -> str:
    size = mode.get("size", mode.get("window"))
    return mode["name"] if size is None else f"{mode['name']} {size}"


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[tuple[Any, list[Path]]]:
    """Give axes to draw on, and the list of files that are written afterwards: SVG without a date, and PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        written = [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
        yield figure.subplots(), written
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written[0], metadata={"Date": None, "Creator": None})
        figure.savefig(written[1], dpi=150, metadata={"Software": None})
