"""What the commands do with their arguments: run, print, draw."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deqlm.training import Curriculum
from examples.catbabi import paper as authors
from examples.catbabi import report
from examples.catbabi.evaluate import guesses, score
from examples.catbabi.experiment import how_to_test, made_up, read_corpus, read_run, run
from examples.catbabi.recipe import Recipe
from examples.catbabi.recipes import CPU_TASKS, RATES_TRIED, TWINS, cpu_recipes, cpu_twin, own_recipe, paper_recipes
from examples.loop.device import usable
from examples.loop.results import write_json
from examples.state_tracking.commands import drawn, tell
from examples.state_tracking.jobs import run_jobs

MADE_UP = Path("runs/catbabi/made_up")
SEARCH_SEED = 1000
"""A seed that no comparison shows."""


def cpu(args: Namespace) -> None:
    data, tasks = stories(args, CPU_TASKS)
    recipes = cpu_recipes(_words(data, tasks), tasks, seed=args.seed)
    if args.quick:
        recipes = [_shortened(recipe) for recipe in recipes]
    out = args.out / "quick" if args.quick else args.out
    jobs = [(recipe, out / _slug(recipe)) for recipe in recipes]
    results = run_jobs(jobs, workers=args.workers, progress=args.progress, do=partial(run, data=data))
    found = {"made_up": args.data is None, "quick": args.quick, "results": results}
    print(report.comparison(results), report.task_table(results), report.verdict(results), sep="\n\n")
    if warning := report.starved(*results[:2]):
        print(warning)
    paths = [out / "cpu.json"]
    write_json(paths[0], found)
    paths += drawn(lambda: _by_task(results, out / "cpu"))
    if args.record is not None:
        slim = {**found, "results": [{k: v for k, v in r.items() if k != "vocabulary"} for r in results]}
        write_json(args.record, slim)
        paths += [args.record, *drawn(lambda: _by_task(results, args.record.with_suffix("")))]
    tell(paths)


def search(args: Namespace) -> None:
    data, tasks = stories(args, CPU_TASKS)
    words = _words(data, tasks)
    cases = [(steps, lr) for steps in TWINS for lr in RATES_TRIED]
    recipes = [cpu_twin(words, tasks, lr=lr, seed=SEARCH_SEED, steps=steps) for steps, lr in cases]
    if args.quick:
        recipes = [_shortened(recipe) for recipe in recipes]
    out = args.out / "quick" if args.quick else args.out
    jobs = [(r, out / f"{_slug(r)}-{lr:g}-{steps}") for r, (steps, lr) in zip(recipes, cases, strict=True)]
    results = run_jobs(jobs, workers=args.workers, progress=args.progress, do=partial(run, data=data))
    print(report.comparison(results))
    found = [
        {
            "steps": steps,
            "lr": lr,
            "valid": r["valid"]["accuracy"],
            "cpu_seconds": round(r["training"]["seconds"]["cpu"], 1),
        }
        for r, (steps, lr) in zip(results, cases, strict=True)
    ]
    best = {
        steps: max((row for row in found if row["steps"] == steps), key=lambda row: row["valid"])["lr"]
        for steps in TWINS
    }
    where = {"tasks": None if tasks is None else list(tasks), "seed": SEARCH_SEED}
    path = out / "rates.json" if args.quick else args.rates
    write_json(path, {"best": best, "tried": found, **where, "environment": results[0]["environment"]})
    tell([path])


def paper(args: Namespace) -> None:
    data, tasks = stories(args, None)
    given = {"lr": args.lr, "rows": args.rows, "width": args.width, "seed": args.seed}
    recipes = paper_recipes(_words(data, tasks), tasks, **given)
    if args.family != "both":
        recipes = [recipe for recipe in recipes if recipe.label.startswith(args.family)]
    results = []
    for recipe in recipes:
        cost = authors.estimate(recipe, args.tflops * 1e12)
        print(f"{recipe.label}: {cost['flop']:.2g} flop, {cost['hours']:.1f} h at {args.tflops:g} Tflop/s")
        if args.list:
            continue
        if args.steps is not None:
            _try_out(recipe, data, args)
            continue
        folder = args.out / f"{_slug(recipe)}-{args.lr:g}-{args.rows}-{args.width}"
        results.append(run(recipe, folder, data=data, device=usable(args.device), progress=args.progress))
    if results:
        print(report.comparison(results), report.task_table(results), sep="\n\n")
        path = args.out / "paper.json"
        write_json(path, {"made_up": args.data is None, "results": results})
        tell([path, *drawn(lambda: _by_task(results, args.out / "paper"))])


def _try_out(recipe: Recipe, data: Path, args: Namespace) -> None:
    device = args.device if torch.cuda.is_available() else "cpu"
    corpus = read_corpus(data, recipe.tasks)
    tried = authors.try_out(recipe, corpus, steps=args.steps, rows=args.try_rows, device=device)
    steps = [recipe.loop.steps] if recipe.loop.phases is None else _phase_steps(recipe)
    total = 0.0
    for phase, count in zip(tried["phases"], steps, strict=True):
        losses = " ".join(f"{loss:.3f}" for loss in phase["losses"])
        seconds = phase["seconds_per_step"]
        total += seconds * count * recipe.rows / args.try_rows / 3600
        pace = f"{seconds:.1f} s per step of {args.try_rows} windows on {device}"
        print(f"    {phase['phase']:9} losses {losses}; {pace}")
    print(f"    all {recipe.loop.steps} steps of {recipe.rows} windows at this pace: {total:.0f} h on {device}")
    write_json(args.out / "tried" / f"{_slug(recipe)}.json", {**tried, "device": device, "recipe": recipe.to_dict()})


def _phase_steps(recipe: Recipe) -> list[int]:
    assert recipe.loop.phases is not None
    ends = [*recipe.loop.phases.ends(), recipe.loop.steps][: len(recipe.loop.phases.phases)]
    return [end - first for first, end in zip([0, *ends], ends, strict=False)]


def train(args: Namespace) -> None:
    data, tasks = stories(args, None)
    names = ("family", "layers", "width", "mode", "carried", "length", "rows")
    names += ("steps", "unrolled", "max_iter", "lr", "seed")
    recipe = own_recipe(_words(data, tasks), tasks, **{name: getattr(args, name) for name in names})
    result = run(recipe, args.out / _slug(recipe), data=data, device=usable(args.device), progress=args.progress)
    print(report.comparison([result]), report.task_table([result]), sep="\n\n")
    folder = args.out / _slug(recipe)
    tell([folder / "result.json", *drawn(lambda: _by_task([result], folder / "accuracy"))])


def evaluate(args: Namespace) -> None:
    data = made_up(MADE_UP) if args.data is None else args.data
    recipe, model, corpus = read_run(args.folder, data, device=usable(args.device), splits=("train", args.split))
    held = corpus.splits[args.split]
    how = how_to_test(recipe)
    how |= {name: value for name in ("rows", "length") if (value := getattr(args, name)) is not None}
    budgets: list[int | None] = args.max_iter or [None]
    if not recipe.model.implicit and args.max_iter:
        raise ValueError(f"--max-iter must be left away for {recipe.label}, which solves nothing, got {args.max_iter}")
    rows = []
    for most in budgets:
        stop = {} if most is None else {"stop": model.no_grad.stop.replace(max_iter=most)}
        rows.append({"max_iter": most, **score(model, held, **how, **stop)})
        cost = f", {rows[-1]['evaluations_per_token']:.1f} evaluations per token" if recipe.model.implicit else ""
        limit = "" if most is None else f"at most {most:4d} evaluations: "
        print(f"{limit}accuracy {rows[-1]['accuracy']:.3f}{cost}")
    shown = {"label": recipe.label, "test": rows[-1], "guess": guesses(corpus.splits["train"], held)}
    print(report.task_table([shown]))
    path = args.folder / f"evaluation-{args.split}.json"
    write_json(path, {"label": recipe.label, "split": args.split, "guess": shown["guess"], "scores": rows})
    tell([path, *(drawn(lambda: _budgets(rows, args.folder / "budgets")) if args.max_iter else [])])


def stories(args: Namespace, default: tuple[int, ...] | None) -> tuple[Path, tuple[int, ...] | None]:
    """Return the folder of the stories and the tasks to take from it.

    Without ``--data`` stories are made up, and a line says so; all tasks of these are taken unless some are named.
    """
    if args.data is not None:
        return args.data, default if args.tasks is None else tuple(args.tasks)
    print("no --data: made-up stories, simpler than those of bAbI and no replacement for them")
    return made_up(MADE_UP), None if args.tasks is None else tuple(args.tasks)


def _words(data: Path, tasks: tuple[int, ...] | None) -> int:
    return len(read_corpus(data, None if tasks is None else tuple(sorted(set(tasks)))).vocabulary)


def _shortened(recipe: Recipe) -> Recipe:
    *firsts, last = recipe.loop.curriculum.stages
    stages = Curriculum((*(stage.replace(steps=1) for stage in firsts), last))
    few = {"steps": 3, "warm_up": 1, "log_every": 1, "evaluate_every": None, "checkpoint_every": None}
    return recipe.with_loop(curriculum=stages, **few)


def _slug(recipe: Recipe) -> str:
    return f"{recipe.label.replace(', ', '-').replace(' ', '')}-{recipe.loop.seed}"


def _by_task(results: list[dict[str, Any]], path: Path) -> list[Path]:
    from examples.catbabi.plots import accuracy_by_task

    return accuracy_by_task(results, path)


def _budgets(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    from examples.catbabi import plots

    return plots.budgets(rows, path)
