"""``deqlm plan``: memory, speed and days of a pretraining, before a GPU is rented."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deqlm.cli.errors import UserError, user_input
from deqlm.cli.prose import ProseFormatter
from deqlm.models import GPUS, PRESETS, RECIPES, LMOptions, Plan, Recipe, plan_training, recipe
from deqlm_solvers.core.checks import suggest

__all__ = ["add", "run"]

DESCRIPTION = """\
Say what a pretraining takes: memory per GPU, tokens per second, days, and the share of each phase. CONFIG is a recipe
of the paper, a preset, or a JSON file of a recipe or of examples/pretrain. Nothing is allocated.

The numbers are computed, not measured: FLOPs of matrix products, convolutions, scans and scores, a backward counted as
two forwards, at the stated bfloat16 rate of the GPU times a utilisation. Evaluations are the most that a phase allows.
Give what you know: --evaluations of the last phase, and --rate, tokens per second that one GPU made in the first."""

EPILOG = f"""\
examples
  deqlm plan mamba2-1.3b --gpu h200 --count 32
  deqlm plan llama3-370m --gpu h100 --count 8 --evaluations 8 --recompute
  deqlm plan my_config.json --gpu mi300x --count 32 --rate 9000 --json

GPUs: {", ".join(GPUS)}
Recipes: {", ".join(RECIPES)}
"""


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="say what a pretraining takes on so many GPUs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a recipe, a preset, or a JSON file")
    parser.add_argument("--gpu", required=True, metavar="NAME", help="such as h200")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="GPUs")
    parser.add_argument("--rows", type=int, metavar="R", help="sequences per GPU and pass (default: what fits)")
    parser.add_argument("--utilisation", type=float, metavar="U", help="share of the stated rate (default .35)")
    parser.add_argument("--evaluations", type=float, metavar="E", help="mean of the last phase (default: the most)")
    parser.add_argument("--rate", type=float, metavar="T", help="measured tokens/s of one GPU in the first phase")
    parser.add_argument("--recompute", action="store_true", help="evaluate blocks again in backward")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; return 0, or 1 where it does not fit."""
    names = ("gpu", "count", "rows", "utilisation", "evaluations", "rate", "recompute")
    with user_input():
        made = read_recipe(arguments.config)
        plan = plan_training(made, **{name: getattr(arguments, name) for name in names})
    if arguments.json:
        phases = [phase._asdict() for phase in plan.phases]
        facts = {**vars(plan), "phases": phases, "needed": plan.needed, "fits": plan.fits, "days": plan.days}
        print(json.dumps(facts, indent=1))
    else:
        print(report(arguments, made, plan))
    return 0 if plan.fits else 1


def read_recipe(config: str) -> Recipe:
    """Return the recipe that a name or a file stands for.

    Raises:
        UserError: there is none, or a file that cannot be read.
    """
    if config in RECIPES:
        return recipe(config)
    if config in PRESETS:
        return _of_preset(config)
    path = Path(config)
    if not path.is_file():
        raise UserError(
            f"unknown config {config!r}: {suggest(config, [*RECIPES, *PRESETS])}; or the path of a JSON file"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{config} must hold an object, got {type(data).__name__}")
    given = data.get("recipe", data)
    return read_recipe(given) if isinstance(given, str) else Recipe.from_dict(given)


def _of_preset(name: str) -> Recipe:
    options: LMOptions = PRESETS[name]
    family, size, *_ = name.split("-")
    like = RECIPES.get(f"{family}-{size}")
    if like is None:
        raise UserError(f"preset {name!r} is not pretrained on text; recipes: {', '.join(RECIPES)}")
    return like if options.implicit else like.replace(model=options, phases=())


def report(arguments: argparse.Namespace, made: Recipe, plan: Plan) -> str:
    """Return the plan as text."""
    gpu = GPUS[arguments.gpu.lower()]
    source = "measured" if arguments.rate is not None else "assumed" if arguments.utilisation is None else "given"
    lines = [
        f"{arguments.config} on {arguments.count} {arguments.gpu}: {made.tokens / 1e9:g} B tokens, "
        f"{made.steps:,} steps of {made.batch_tokens:,} tokens",
        "",
        f"memory per GPU, GB, with {plan.rows} rows of {made.length} tokens ({plan.passes} passes per step):",
        *(f"  {name:28} {size:8.1f}" for name, size in plan.memory.items()),
        f"  {'needed':28} {plan.needed:8.1f}   of {plan.limit:.1f} usable ({gpu.gigabytes:g} stated): "
        f"{'fits' if plan.fits else 'DOES NOT FIT'}",
        "",
        f"rate: {gpu.teraflops:g} TFLOP/s stated, {plan.utilisation:.0%} of it {source}",
        f"  {'evaluations + graph':20} {'steps':>9} {'GFLOP/token':>12} {'tokens/s':>12} {'days':>8} {'share':>6}",
        *(
            f"  {phase.name:20} {phase.steps:9,} {phase.flops / 1e9:12.1f} {phase.tokens_per_second:12,.0f} "
            f"{phase.days:8.1f} {phase.share:6.0%}"
            for phase in plan.phases
        ),
        f"  {'all':20} {made.steps:9,} {'':12} {made.tokens / plan.days / 86400:12,.0f} {plan.days:8.1f} {1:6.0%}",
    ]
    if plan.advice:
        lines += ["", "to make it fit:", *(f"  - {text}" for text in plan.advice)]
    return "\n".join(lines)
