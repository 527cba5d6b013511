"""What the commands do with their arguments: run, print, draw."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from deqlm_solvers.core.checks import number, require
from examples.loop.command import distinct
from examples.loop.device import usable
from examples.loop.results import write_json
from examples.puzzles import recipes, report
from examples.puzzles.data import Sudoku, load, problem_named
from examples.puzzles.evaluate import boards
from examples.puzzles.experiment import CACHE, look_again, run, stored
from examples.puzzles.nine import try_out
from examples.puzzles.page import copy_records, draw_page, illustrate
from examples.puzzles.recipe import Recipe, folder_of
from examples.puzzles.twins import compare
from examples.state_tracking.commands import drawn, tell
from examples.state_tracking.jobs import run_jobs

Data = dict[str, Any]


def demo(args: Namespace) -> None:
    out = args.out / str(args.seed)
    data = _all(recipes.demo(args.seed), out, args)
    first = data["results"][0]
    print(f"4x4: puzzles solved behind K evaluations, none equal up to symmetry to one of training; seed {args.seed}")
    print(report.budget_table(data["results"]))
    for look in first["boards"]["looks"][:4]:
        print(f"\nafter {look['evaluations']}, residual {look['residual']:.1e}")
        print(report.board_text("4x4", first["boards"]["cells"], look["answer"]))
    print(f"\n{data['wall_seconds']:.0f} s in all.")
    _draw(data["results"], out)


def six(args: Namespace) -> None:
    results = _all([recipes.six(seed) for seed in args.seeds], args.out, args)["results"]
    print("6x6: puzzles solved behind so many evaluations")
    print(report.spread_table(results))
    _details(results[0])
    _draw(results, args.out)


def maze(args: Namespace) -> None:
    data = _all([recipes.maze(args.side, args.seed)], args.out / f"{args.side}-{args.seed}", args)
    print(f"mazes of {args.side} cells a side: ways found behind so many evaluations")
    _details(data["results"][0])
    _draw(data["results"], args.out / f"{args.side}-{args.seed}")


def _all(made: Sequence[Recipe], out: Path, args: Namespace) -> Data:
    """Run the recipes in folders of their own below ``out``, and store their results together."""
    folders = [out / folder_of(one) for one in made]
    distinct("seeds", [one.loop.seed for one in made if one.label == made[0].label])
    began = time.perf_counter()
    for one in made:
        load(one.draw, out / CACHE)
    results = run_jobs(list(zip(made, folders, strict=True)), workers=args.workers, progress=args.progress, do=run)
    data = {"wall_seconds": round(time.perf_counter() - began, 1), "results": results}
    write_json(out / "results.json", data)
    return data


def _details(result: Data) -> None:
    print(f"\nseed {result['seed']}")
    print(report.residual_table(result))
    if "breadth" in result:
        print("\nseveral random starts, one answer")
        print(report.breadth_table(result))


def _draw(results: Sequence[Data], out: Path) -> None:
    def pictures() -> list[Path]:
        from examples.puzzles import plots

        return plots.pictures(results, out)

    tell([out / "results.json", *drawn(pictures)])


def nine(args: Namespace) -> None:
    folder = None if args.data is None else str(args.data)
    draw = recipes.NINE.replace(folder=folder, train=args.train, valid=max(1, args.train // 10), test=args.test)
    made = recipes.nine(draw, args.seed, steps=args.steps, batch=args.batch)
    where = f"{folder}/train.csv and test.csv" if folder else "the generator"
    device = "cpu" if args.try_steps is not None else args.device
    if folder is None:
        # puzzles take minutes to make, files are read at once
        usable(device)
    print(f"9x9: {args.train} puzzles to learn from, {args.test} to test, from {where}")
    load(draw, args.out / CACHE)
    usable(device)
    if args.try_steps is not None:
        _try_out(made, args)
        return
    result = run(made, args.out / str(args.seed), device=device, progress=args.progress)
    _details(result)
    _draw([result], args.out / str(args.seed))


def _try_out(made: Recipe, args: Namespace) -> None:
    number("tflops", args.tflops, "> 0", lambda speed: speed > 0)
    found = try_out(made, args.out / CACHE, steps=args.try_steps, rows=args.rows)
    print(f"losses of {args.try_steps} steps of {args.rows} puzzles: {' '.join(f'{x:.3f}' for x in found['losses'])}")
    print(f"{found['seconds_per_step']:.2f} s per step here, on {torch.get_num_threads()} thread(s)")
    hours = found["flop"] / (args.tflops * 1e12) / 3600
    print(f"all of it: {found['flop']:.2g} operations, {hours:.1f} h at {args.tflops:g} Tflop/s")
    write_json(args.out / "tried.json", found)
    tell([args.out / "tried.json"])


def solve(args: Namespace) -> None:
    recipe, model = stored(args.folder, args.expect)
    problem = problem_named(recipe.draw.problem)
    cells = _read(problem, args.puzzle)
    answer = problem.solve(cells)
    counts = args.evaluations
    rising = counts[0] >= 1 and all(one < other for one, other in pairwise(counts))
    require(rising, "evaluations", counts, "rising numbers >= 1")
    for look in boards(model, torch.tensor([cells]), counts, seed=args.seed):
        right = sum(a == b for a, b in zip(look["answer"], answer, strict=True))
        print(f"after {look['evaluations']}: {right} of {len(answer)} cells right, residual {look['residual']:.1e}")
        print(report.board_text(recipe.draw.problem, cells, look["answer"]), end="\n\n")


def evaluate(args: Namespace) -> None:
    result = look_again(args.folder)
    _details(result)
    tell([args.folder / "result.json"])


def _read(problem: Any, text: str) -> tuple[int, ...]:
    if isinstance(problem, Sudoku):
        return problem.board.read(text)
    marks = {mark: kind for kind, mark in enumerate("#.SG")}
    unknown = sorted({mark for mark in text if mark not in marks})
    require(not unknown, "puzzle", "".join(unknown), "made of # (wall), . (open), S (start) and G (goal)")
    return tuple(marks[mark] for mark in text)


def twins(args: Namespace) -> None:
    data = compare(args.out, seeds=args.seeds, workers=args.workers, progress=args.progress)
    write_json(args.out / "results.json", data)
    print("4x4: validation, one seed, by learning rate: exact answers at the best number of evaluations")
    print(report.rate_table(data["search"]))
    print("\n4x4: test, every model at its own rate")
    print(report.budget_table(data["results"]))

    def pictures() -> list[Path]:
        from examples.puzzles import plots

        return plots.accuracy_by_evaluations(data["results"], args.out / "accuracy")

    tell([args.out / "results.json", *drawn(pictures)])


def page(args: Namespace) -> None:
    written = [*copy_records(args.runs), draw_page()]
    tell([*written, *drawn(illustrate)])
