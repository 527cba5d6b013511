"""State tracking: an implicit layer follows the state of a group, an explicit one does not.

A sequence of group elements goes in, and at every position the product of all elements so far is asked for. One
implicit layer learns that on short sequences and goes on with longer ones; see README.md for what to expect.

    python -m examples.state_tracking demo              a minute: S3, one implicit layer against explicit ones
    python -m examples.state_tracking cpu               half an hour: Z2, Z3, S3, A5, S5, transformers, modes
    python -m examples.state_tracking full              hours: rates, equal steps, equal time, five seeds
    python -m examples.state_tracking automata          parity, cycles, arithmetic: the published table, one label each
    python -m examples.state_tracking traces            sessions of code: swapped variables, one printed now and then
    python -m examples.state_tracking groups            A5 and S5 from 2 to 32 generators, twelve minutes each
    python -m examples.state_tracking collapse          a solved training that is lost, and the guard that keeps it
    python -m examples.state_tracking schedule          one fixed point by every schedule, to 65,536 tokens
    python -m examples.state_tracking paper --help      the authors' size, on one GPU
    python -m examples.state_tracking train --help      a model of your own
    python -m examples.state_tracking evaluate --help   look at a trained model

Every command stores JSON and pictures below --out, goes on where it was interrupted, and needs no data and no network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.loop.command import add_command, add_workers, commands_of, run_command
from examples.state_tracking import commands

OUT = Path("runs/state_tracking")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made, names = commands_of("examples.state_tracking", __doc__)

    demo = add_command(
        names, "demo", commands.demo, "one implicit layer against explicit ones, a minute on two cores", out=OUT
    )
    demo.add_argument("--group", default="S3", choices=commands.DEMO_GROUPS, help="what to learn (default %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    add_workers(demo, 3)

    cpu = add_command(
        names, "cpu", commands.cpu, "several groups, modes and the frontier, half an hour on two cores", out=OUT
    )
    cpu.add_argument(
        "--only", nargs="+", choices=commands.PARTS, metavar="PART", help=f"of {', '.join(commands.PARTS)}"
    )
    cpu.add_argument("--quick", action="store_true", help="three steps of each, to see that it runs")
    add_workers(cpu)

    full = add_command(
        names,
        "full",
        commands.full,
        "learning rates, equal steps, equal time, five seeds, at most three hours",
        out=OUT,
    )
    full.add_argument("--groups", nargs="+", choices=commands.FULL_GROUPS, help="default: all")
    full.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    add_workers(full)

    automata = add_command(
        names, "automata", commands.automata, "the published table of automata, by its protocol", out=OUT
    )
    automata.add_argument(
        "--tasks",
        nargs="+",
        default=list(commands.PUBLISHED),
        metavar="TASK",
        help=f"of {', '.join(commands.AUTOMATA)}",
    )
    automata.add_argument(
        "--models",
        nargs="*",
        default=[],
        metavar="LABEL",
        help=f"beside the implicit layer, in its time: {'; '.join(commands.BESIDE)} (default: none)",
    )
    automata.add_argument("--all-models", action="store_true", help="all of them")
    automata.add_argument("--seeds", type=int, default=5, help="how many (default %(default)s)")
    automata.add_argument("--search", action="store_true", help="only search the rates of these models (rates.json)")
    automata.add_argument("--quick", action="store_true", help="three steps of each, to see that it runs")
    add_workers(automata)

    traces = add_command(
        names, "traces", commands.traces, "sessions of code against an explicit twin and an LSTM, minutes", out=OUT
    )
    traces.add_argument("--seeds", type=int, default=1, help="how many (default %(default)s)")
    traces.add_argument("--quick", action="store_true", help="three steps of each, to see that it runs")
    add_workers(traces)

    collapse = add_command(
        names,
        "collapse",
        commands.collapse,
        "a solved training that is lost, and the guard that keeps it",
        out=OUT,
    )
    collapse.add_argument("--steps", type=int, default=400, help="of both trainings (default %(default)s)")
    add_workers(collapse)

    schedule = add_command(
        names, "schedule", commands.schedule, "one fixed point token by token, in chunks and all at once", out=OUT
    )
    schedule.add_argument("--lengths", nargs="+", type=int, default=list(commands.SCHEDULE), help="tokens")

    groups = add_command(
        names,
        "groups",
        commands.groups,
        "A5 and S5 from sets of generators, 40 tokens to 256",
        out=OUT,
    )
    groups.add_argument("--problems", nargs="+", default=list(commands.GENERATED), metavar="GROUP:COUNT")
    groups.add_argument("--seeds", type=int, default=1, help="how many (default %(default)s)")
    groups.add_argument("--steps", type=int, help="of each training (default: 1000 to 6000, by problem)")
    add_workers(groups)

    paper = add_command(names, "paper", commands.paper, "the authors' experiments at their size, on one GPU", out=OUT)
    paper.add_argument(
        "--experiment",
        default="hard",
        choices=commands.EXPERIMENTS,
        help="shares of hard tokens of A5xM, or layers against length of S5 (default %(default)s)",
    )
    paper.add_argument("--only", nargs="+", type=int, metavar="I", help="numbers of the recipes to run; see --list")
    paper.add_argument("--list", action="store_true", help="print the recipes and what they cost, run nothing")
    paper.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    paper.add_argument("--device", default="cuda", help="where to train (default %(default)s)")
    paper.add_argument(
        "--steps", type=int, help="only try so many steps of each phase out, and print what all would take"
    )
    paper.add_argument("--rows", type=int, default=2, help="sequences per step of --steps (default %(default)s)")
    paper.add_argument(
        "--tflops",
        type=float,
        default=20.0,
        help="10^12 operations per second that the estimate assumes (default %(default)s: float32 on a large GPU)",
    )

    train = add_command(names, "train", commands.train, "train one model with settings of your own", out=OUT)
    train.add_argument("--problem", default="S3", help="groups Z<n>, S<n>, A<n> and monoids M, F joined by x: A5xM")
    train.add_argument("--family", default="implicit", choices=("implicit", "explicit"))
    train.add_argument("--mixer", default="mamba2", choices=("mamba2", "attention"))
    train.add_argument(
        "--sliding-window", type=int, metavar="W", help="of attention: a token sees itself and the W - 1 before it"
    )
    train.add_argument("--layers", type=int, default=1)
    train.add_argument("--width", type=int, default=32)
    train.add_argument("--length", type=int, default=16, help="longest trained length; shorter ones come first")
    train.add_argument("--steps", type=int, default=480, help="the learning rate decays to zero with them")
    train.add_argument("--tokens", type=int, default=512, help="per step")
    train.add_argument("--lr", type=float, default=3e-3)
    train.add_argument("--p", type=float, default=0.0, help="probability of an easy token, the identity")
    train.add_argument("--max-iter", type=int, default=24, help="most evaluations of a solve in training")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")

    look = add_command(
        names,
        "evaluate",
        commands.evaluate,
        "accuracy, steps and agreement of a trained model in several modes",
        out=OUT,
    )
    look.add_argument("folder", type=Path, help="of a run, with its result.json")
    look.add_argument("--lengths", nargs="+", type=int, help="default: 1, 2, 4, 8 and 16 times the trained length")
    look.add_argument("--p", nargs="+", type=float, default=[0.0, 0.5, 0.9], help="shares of easy tokens")
    look.add_argument("--rows", type=int, default=64, help="sequences per test (default %(default)s)")

    search = add_command(
        names, "search", commands.search, "the learning-rate search of the demo's explicit models (rates.json)", out=OUT
    )
    search.add_argument("--groups", nargs="+", default=list(commands.DEMO_GROUPS), choices=commands.DEMO_GROUPS)
    add_workers(search)

    page = add_command(
        names, "page", commands.page, "copy results into docs/records and draw docs/results.md from them", out=OUT
    )
    page.add_argument("--runs", type=Path, default=OUT, help="folder of the runs (default %(default)s)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    return run_command(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
