"""Pictures of stored results; each is drawn from JSON data and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.reporting.style import PALETTE, figure, steady, write
from examples.puzzles.data import Sudoku, problem_named
from examples.state_tracking.plots import drawing

__all__ = ["accuracy_by_evaluations", "animation", "boards", "breadth", "calibration", "difficulty", "pictures"]

Data = dict[str, Any]
WRONG, RIGHT, GIVEN = PALETTE[1], PALETTE[2], "#222222"


def accuracy_by_evaluations(results: Sequence[Data], path: Path) -> list[Path]:
    """Draw the share of exact answers against evaluations, one line per label: mean and range of its seeds."""
    with drawing(path, 5.4, 3.2) as (axis, written):
        for color, label in zip(PALETTE, dict.fromkeys(r["label"] for r in results), strict=False):
            lines = [{b["evaluations"]: b["exact"] for b in r["budgets"]} for r in results if r["label"] == label]
            budgets = sorted(set.intersection(*map(set, lines)))
            columns = [[line[k] for line in lines] for k in budgets]
            axis.plot(budgets, [sum(c) / len(c) for c in columns], "o-", color=color, markersize=3.5, label=label)
            if len(lines) > 1:
                axis.fill_between(budgets, *zip(*((min(c), max(c)) for c in columns), strict=True),
                                  color=color, alpha=0.15, linewidth=0)  # fmt: skip
        axis.axvline(results[0]["recipe"]["shape"]["most"], color="#888888", linestyle=":", linewidth=1)
        shown = sorted({b["evaluations"] for r in results for b in r["budgets"]})
        axis.set(xscale="log", ylim=(-0.02, 1.04), xlabel="evaluations of the layer (dotted: most in training)")
        axis.set_xticks(shown, shown)
        axis.minorticks_off()
        axis.set(ylabel="puzzles solved", title=f"{results[0]['problem']}: one layer, evaluated again and again")
        axis.legend()
    return written


def calibration(result: Data, path: Path) -> list[Path]:
    """Draw the share of exact answers against the residual, ten groups of puzzles."""
    data = result["calibration"]
    with drawing(path, 4.8, 3.0) as (axis, written):
        groups = data["groups"]
        residuals = [max(group["residual"], 1e-8) for group in groups]
        axis.plot(residuals, [group["exact"] for group in groups], "o-", color=PALETTE[0], markersize=4)
        axis.set(xscale="log", ylim=(-0.02, 1.04), xlabel="relative residual, median of a tenth of the puzzles")
        told = "" if data["order"] is None else f"; right before wrong: {data['order']:.3f}"
        axis.set(ylabel="puzzles solved", title=f"The residual after {data['evaluations']} evaluations{told}")
    return written


def difficulty(result: Data, path: Path) -> list[Path]:
    """Draw evaluations against rating: until the residual is small, and until a right answer stays."""
    rows = result["difficulty"]
    with drawing(path, 4.8, 3.0) as (axis, written):
        names = [str(row["rating"]) for row in rows]
        problem = problem_named(result["problem"])
        if isinstance(problem, Sudoku) and rows[-1]["rating"] > problem.board.cells:
            names[-1] = "search"
        positions = range(len(rows))
        axis.plot(
            positions,
            [row["evaluations"] for row in rows],
            "o-",
            color=PALETTE[0],
            label="residual below .01",
        )
        kept = [(i, row["settled"]) for i, row in enumerate(rows) if row["settled"] is not None]
        axis.plot(*zip(*kept, strict=True), "s--", color=PALETTE[1], label="right, and right from then on")
        axis.set_xticks(positions, [f"{name}\n({row['puzzles']})" for name, row in zip(names, rows, strict=True)])
        axis.set(xlabel=f"{problem.rated.split(',')[0]} (puzzles)", ylabel="evaluations, mean", ylim=(0, None))
        axis.set_title("Evaluations against difficulty")
        axis.legend()
    return written


def breadth(result: Data, path: Path) -> list[Path]:
    """Draw the share of exact answers against the number of random starts, by rule of choice; a line per depth."""
    rows = result["breadth"]
    with drawing(path, 5.4, 3.2) as (axis, written):
        depths = sorted({row["evaluations"] for row in rows})
        for color, depth in zip(PALETTE, depths, strict=False):
            here = [row for row in rows if row["evaluations"] == depth]
            for rule, style in (("vote", "-"), ("least residual", "--"), ("any", ":")):
                label = f"{depth} evaluations" if rule == "vote" else None
                axis.plot([row["starts"] for row in here], [row[rule] for row in here], style, color=color, label=label)
        shown = sorted({row["starts"] for row in rows})
        axis.set(xscale="log", xlabel="random starts (full: vote; dashed: least residual; dotted: any is right)")
        axis.set_xticks(shown, shown)
        axis.minorticks_off()
        axis.set(ylabel="puzzles solved", title="Breadth against depth")
        axis.legend()
    return written


def boards(result: Data, path: Path) -> list[Path]:
    """Draw the answer to one puzzle behind 1, 2, 4 ... evaluations; what is wrong is red."""
    looks = result["boards"]["looks"]
    with steady():
        made = figure(1.75 * len(looks), 2.1)
        for axis, look in zip(made.subplots(1, len(looks), squeeze=False)[0], looks, strict=True):
            _board(axis, result, look)
        made.tight_layout(pad=0.4)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(made, path.parent, path.name)


def animation(result: Data, path: Path) -> list[Path]:
    """Write the boards as a moving picture, ``path`` with the ending .gif: a frame a second, the last one for three.

    Raises:
        ImportError: pillow is missing, which matplotlib brings.
    """
    from matplotlib.animation import FuncAnimation, PillowWriter

    looks = result["boards"]["looks"]
    frames = [*looks, looks[-1], looks[-1]]
    written = path.with_suffix(".gif")
    written.parent.mkdir(parents=True, exist_ok=True)
    with steady():
        made = figure(2.4, 2.7)
        axis = made.subplots()

        def frame(look: Data) -> tuple[()]:
            axis.clear()
            _board(axis, result, look)
            return ()

        FuncAnimation(made, frame, frames, init_func=tuple, repeat=True).save(written, PillowWriter(fps=1), dpi=100)
    return [written]


def _board(axis: Any, result: Data, look: Data) -> None:
    data, problem = result["boards"], problem_named(result["problem"])
    if isinstance(problem, Sudoku):
        _sudoku(axis, problem, data, look["answer"])
    else:
        _maze(axis, data, look["answer"])
    count = look["evaluations"]
    axis.set_title(f"{count} evaluation{'s' * (count > 1)}")


def _sudoku(axis: Any, problem: Sudoku, data: Data, answer: Sequence[int]) -> None:
    board = problem.board
    size = board.size
    for line in range(size + 1):
        for draw, every in ((axis.axhline, board.box_rows), (axis.axvline, board.box_columns)):
            draw(line, color="#444444", linewidth=1.6 if line % every == 0 else 0.4)
    for cell, digit in enumerate(answer):
        row, column = divmod(cell, size)
        given = data["cells"][cell] > 0
        color = GIVEN if given else RIGHT if digit == data["answer"][cell] else WRONG
        text = data["cells"][cell] if given else digit + 1
        weight = "bold" if given else "normal"
        more = {"ha": "center", "va": "center_baseline", "fontsize": 44 / size, "color": color, "fontweight": weight}
        axis.text(column + 0.5, row + 0.55, str(text), **more)
    axis.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    axis.set_axis_off()


def _maze(axis: Any, data: Data, answer: Sequence[int]) -> None:
    from matplotlib.colors import to_rgb

    side = round(len(answer) ** 0.5)
    looks = {0: "#444444", 1: "#f4f4f4", 2: PALETTE[0], 3: PALETTE[4]}
    colors = [to_rgb(looks[cell]) for cell in data["cells"]]
    for cell, (on, truth) in enumerate(zip(answer, data["answer"], strict=True)):
        if data["cells"][cell] < 2 and (on or truth) and (on != truth or data["cells"][cell] == 1):
            colors[cell] = to_rgb(RIGHT if on == truth else WRONG if on else "#f6d3bd")
    axis.imshow([colors[start : start + side] for start in range(0, side**2, side)])
    axis.set_axis_off()


def pictures(results: Sequence[Data], folder: Path) -> list[Path]:
    """Draw everything that the results hold: accuracy of all of them, the rest of the first."""
    first = results[0]
    written = accuracy_by_evaluations(results, folder / "accuracy")
    for name, draw in (
        ("boards", boards),
        ("boards", animation),
        ("calibration", calibration),
        ("difficulty", difficulty),
        ("breadth", breadth),
    ):
        if name in first:
            written += draw(first, folder / name)
    return written
