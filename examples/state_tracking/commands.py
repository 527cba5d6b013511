"""What the commands do with their arguments: run, print, draw."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deqlm.models import ImplicitLM
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from examples.loop.device import usable
from examples.loop.results import write_json
from examples.state_tracking import demo as minute
from examples.state_tracking import full as hours
from examples.state_tracking import generated, report, small
from examples.state_tracking import paper as authors
from examples.state_tracking.automata import collapse as falling
from examples.state_tracking.automata import sessions
from examples.state_tracking.automata import table as automata_table
from examples.state_tracking.automata.recipe import MODELS
from examples.state_tracking.automata.tasks import CONTRACTS, TABLE, contract
from examples.state_tracking.data import WordProblem, word_problem
from examples.state_tracking.evaluate import agreement, by_budget, frontier, predict, summary
from examples.state_tracking.experiment import load, run
from examples.state_tracking.page import copy_records, illustrate, redraw
from examples.state_tracking.recipe import Test
from examples.state_tracking.recipes import DEMO, RATES, general, implicit, transformer
from examples.state_tracking.schedule import LENGTHS, schedules
from examples.state_tracking.search import search as search_rates

DEMO_GROUPS = tuple(DEMO)
GENERAL = ("steps", "length", "tokens", "lr", "p", "max_iter", "seed")
"""Arguments of `train` that a general recipe takes by the same name."""

PARTS = small.PARTS
FULL_GROUPS = tuple(hours.GROUPS)
EXPERIMENTS = authors.EXPERIMENTS
AUTOMATA, PUBLISHED = tuple(CONTRACTS), TABLE
BESIDE = tuple(MODELS)
SCHEDULE = LENGTHS
GENERATED = generated.PROBLEMS


def demo(args: Namespace) -> None:
    out = args.out / f"{args.group}-{args.seed}"
    data = minute.demo(args.group, out, seed=args.seed, workers=args.workers, progress=args.progress)
    print(minute.describe(data))
    tell([out / "result.json", *minute.draw(data, out)])


def cpu(args: Namespace) -> None:
    out = args.out / "quick" if args.quick else args.out
    parts = args.only or PARTS
    small.prepare(parts, out, workers=args.workers, quick=args.quick, progress=args.progress)
    for part in parts:
        data = small.run_part(part, out, workers=1, quick=args.quick, progress=args.progress)
        print(f"\n{part}")
        if part == "modes":
            print(report.mode_table(data["table"]))
        else:
            print(report.spread_table(data["results"]))
        tell([out / f"{part}.json", *drawn(lambda d=data, p=part: small_pictures(p, d, out))])


def small_pictures(part: str, data: dict[str, Any], out: Path) -> list[Path]:
    """Draw the pictures of a part of the size ``cpu`` next to its JSON."""
    from examples.state_tracking import plots

    if part != "modes":
        results = data["results"]
        return plots.accuracy_by_length(results, out / part, chance=report.chance(results[0]["problem"]))
    shortest = min(t["length"] for t in data["table"])
    return [
        *plots.modes(data["table"], out / "modes"),
        *plots.steps_by_position([t for t in data["table"] if t["length"] == shortest], out / "steps"),
        *plots.frontier(data["frontier"], out / "frontier"),
        *plots.budgets(data["budgets"], out / "budgets"),
        *plots.easy_and_hard(data["shares"], out / "easy_and_hard"),
    ]


def full(args: Namespace) -> None:
    out = args.out / "quick" if args.quick else args.out
    for group in args.groups or FULL_GROUPS:
        data = hours.compare(group, out, workers=args.workers, quick=args.quick, progress=args.progress)
        print(f"\n{group}: rates by search {data['rates']}; accuracy over all of {hours.TRAINED} tokens")
        print(report.rate_table(data["search"], length=hours.TRAINED))
        for kind in ("equal_steps", "equal_time"):
            for metric in ("last", "last10"):
                print(f"\n{group}, {kind.replace('_', ' ')}, {metric}: mean (range) over seeds")
                print(report.spread_table(data[kind], metric=metric))
        tell([out / f"{group}.json", *drawn(lambda d=data, g=group: full_pictures(g, d, out))])


def full_pictures(group: str, data: dict[str, Any], out: Path) -> list[Path]:
    """Draw accuracy against length of one group of the size ``full``."""
    from examples.state_tracking import plots

    chance = report.chance(group)
    return [
        path
        for kind in ("equal_steps", "equal_time")
        for path in plots.accuracy_by_length(data[kind], out / f"{group}-{kind}", metric="last10", chance=chance)
    ]


def automata(args: Namespace) -> None:
    models = BESIDE if args.all_models else tuple(args.models)
    how = {"workers": args.workers, "progress": args.progress}
    if args.search:
        write_json(automata_table.RATES, automata_table.search(models, args.out / "search", **how))
        tell([automata_table.RATES])
        return
    for task in args.tasks:
        print(contract(task).line())
    out = args.out / "quick" if args.quick else args.out
    data = automata_table.tabulate(args.tasks, models, out, seeds=args.seeds, quick=args.quick, **how)
    print("\naccuracy of the last token, per cent: mean over seeds (each seed)")
    print(automata_table.describe(data))
    tell([out / "automata.json"])


def traces(args: Namespace) -> None:
    print(contract(sessions.TASK).line())
    out = args.out / "quick" if args.quick else args.out
    data = sessions.compare(out, seeds=args.seeds, workers=args.workers, progress=args.progress, quick=args.quick)
    print("\nvalues that are named rightly where they are printed, per cent")
    print(sessions.describe(data))
    tell([out / "traces.json"])


def collapse(args: Namespace) -> None:
    data = falling.compare(args.out, steps=args.steps, workers=args.workers, progress=args.progress)
    print(falling.describe(data))
    tell([args.out / "collapse.json", *drawn(lambda: _collapse_picture(data, args.out))])


def _collapse_picture(data: dict[str, Any], out: Path) -> list[Path]:
    from examples.state_tracking import plots

    return plots.collapse(data["results"], out / "collapse")


def schedule(args: Namespace) -> None:
    data = schedules(args.out, lengths=tuple(args.lengths), progress=args.progress)
    print(report.schedule_table(data["table"]))
    tell([args.out / "schedule.json", *drawn(lambda: _schedule_picture(data, args.out))])


def _schedule_picture(data: dict[str, Any], out: Path) -> list[Path]:
    from examples.state_tracking import plots

    return plots.schedules(data["table"], out / "schedule")


def groups(args: Namespace) -> None:
    data = generated.groups(
        args.problems, args.out, seeds=args.seeds, steps=args.steps, workers=args.workers, progress=args.progress
    )
    print(report.generated_table(data["results"]))
    tell([args.out / "groups.json"])


def paper(args: Namespace) -> None:
    recipes = authors.recipes_of(args.experiment, seed=args.seed)
    for number, recipe in enumerate(recipes):
        if args.only is not None and number not in args.only:
            continue
        cost = authors.estimate(recipe, args.tflops * 1e12)
        print(
            f"{number:2d}  {recipe.label:32} {cost['flop']:.2g} flop, {cost['hours']:.1f} h at {args.tflops:g} Tflop/s"
        )
        if args.list:
            continue
        if args.steps is not None:
            _try_out(recipe, args)
            continue
        folder = authors.folder_of(recipe, args.out / args.experiment)
        result = run(recipe, folder, device=usable(args.device), progress=args.progress)
        print(report.accuracy_table([result], metric="last10"))
        tell([folder / "result.json"])


def _try_out(recipe: Any, args: Namespace) -> None:
    device = args.device if torch.cuda.is_available() else "cpu"
    found = authors.try_out(recipe, steps=args.steps, rows=args.rows, device=device)
    for phase in found["phases"]:
        losses = " ".join(f"{loss:.3f}" for loss in phase["losses"])
        seconds = phase["seconds_per_step"]
        print(f"    {phase['phase']:9} losses {losses}; {seconds:.1f} s per step of {args.rows} sequences on {device}")
    name = f"{recipe.label}.json".replace(", ", "-").replace(" ", "").replace("%", "percent")
    write_json(args.out / "tried" / name, {**found, "device": device, "recipe": recipe.to_dict()})


def train(args: Namespace) -> None:
    attends = args.mixer == "attention"
    given: dict[str, Any] = {"width": args.width, "n_layer": args.layers}
    given |= {"max_iter": args.max_iter} if args.family == "implicit" else {"implicit": False}
    if args.sliding_window is not None:
        if not attends:
            raise ValueError(f"--sliding-window must be left away for --mixer {args.mixer}, got {args.sliding_window}")
        given["window"] = args.sliding_window
    model = (transformer if attends else implicit)(args.problem, **given)
    label = f"{args.family} {args.mixer}, {args.layers} layer{'s' * (args.layers > 1)}"
    label += "" if args.sliding_window is None else f", window of {args.sliding_window}"
    settings = {name: getattr(args, name) for name in GENERAL}
    recipe = general(args.problem, model=model, label=label, **settings, start=attends, checkpoint_every=100)
    folder = args.out / f"{args.problem}-{label.replace(', ', '-').replace(' ', '')}-{args.seed}"
    result = run(recipe, folder, device=usable(args.device), progress=args.progress)
    print(report.accuracy_table([result]))
    pictures = drawn(lambda: _accuracy_picture(result, folder))
    tell([folder / "result.json", *pictures])


def _accuracy_picture(result: dict[str, Any], folder: Path) -> list[Path]:
    from examples.state_tracking import plots

    return plots.accuracy_by_length([result], folder / "accuracy", chance=report.chance(result["problem"]))


def evaluate(args: Namespace) -> None:
    recipe, model = load(args.folder)
    problem = word_problem(recipe.problem)
    lengths = args.lengths or [recipe.length * n for n in (1, 2, 4, 8, 16)]
    table = []
    for p in args.p:
        for length in lengths:
            reference = None
            for mode in (Sequential(), Chunked(16), Simultaneous()) if model.backbone.implicit else (Simultaneous(),):
                most = 2 * length + 100 if isinstance(mode, Simultaneous) else 200
                test = Test(length=length, p=p, rows=args.rows, batch=args.rows, mode=mode, max_iter=most)
                outcome = predict(model, problem, test, start=recipe.start)
                reference = outcome if reference is None else reference
                table.append({**summary(outcome, test), "agreement": agreement(outcome, reference)})
    data: dict[str, Any] = {"run": str(args.folder), "label": recipe.label, "table": table}
    if model.backbone.implicit:
        data |= _cut_off(model, problem, lengths, rows=args.rows, start=recipe.start)
        print(report.mode_table(table))
    else:
        print(
            "\n".join(f"L={t['length']} p={t['p']:g}: last {t['last']:.3f}, last 10 {t['last10']:.3f}" for t in table)
        )
    path = args.folder / "evaluation.json"
    write_json(path, data)
    tell([path, *drawn(lambda: evaluation_pictures(data, args.folder))])


def _cut_off(model: ImplicitLM, problem: WordProblem, lengths: list[int], *, rows: int, start: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"budgets": (1, 2, 4, 8, 16, 32, 64, 128), "rows": rows, "start": start}
    return {
        "budgets": {str(n): by_budget(model, problem, length=n, **given) for n in lengths[:3]},
        "frontier": frontier(model, problem, length=lengths[0] * 4, iterations=8 * lengths[0], start=start),
    }


def evaluation_pictures(data: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what an evaluation holds next to it; nothing for an explicit model, which has no steps."""
    from examples.state_tracking import plots

    if "frontier" not in data:
        return []
    table = data["table"]
    longest = max(t["length"] for t in table)
    sequential = [t for t in table if t["mode"]["name"] == "sequential" and t["length"] == longest]
    return [
        *plots.steps_by_position(
            [t for t in table if t["p"] == table[0]["p"] and t["length"] == longest], folder / "steps"
        ),
        *plots.easy_and_hard(sequential, folder / "easy_and_hard"),
        *plots.modes([t for t in table if t["p"] == table[0]["p"]], folder / "modes"),
        *plots.budgets(data["budgets"], folder / "budgets"),
        *plots.frontier(data["frontier"], folder / "frontier"),
    ]


def search(args: Namespace) -> None:
    found = search_rates(args.out, groups=tuple(args.groups), workers=args.workers, progress=args.progress)
    rows = [
        [f"{t['group']}, {t['layers']} explicit", f"{t['lr']:g}", t["start"], f"{t['mean']:.3f}"]
        + [f"{value:.3f}" for value in t["last"].values()]
        for t in found["tried"]
    ]
    lengths = [f"L={length}" for length in found["tried"][0]["last"]]
    print(report.table(["model", "lr", "lengths", "all tokens, L=16", *lengths], rows))
    write_json(RATES, found)
    tell([RATES])


def page(args: Namespace) -> None:
    tell([*copy_records(args.runs), redraw(), *drawn(illustrate)])


def drawn(draw: Callable[[], list[Path]]) -> list[Path]:
    """Return the files that were drawn; none, and a line that says so, without matplotlib."""
    try:
        return draw()
    except ImportError:
        print("no pictures: they need matplotlib")
        return []


def tell(paths: list[Path]) -> None:
    """Print where files were written."""
    print("written:", *paths, sep="\n  ")
