"""CatbAbI: questions about short stories, answered by one implicit layer and by its explicit twin.

All tasks of bAbI share one vocabulary and one model. A story goes in word by word; behind every "?" the answer is asked
for. The stories come from a folder of bAbI v1.2 (qa1_train.txt, qa1_valid.txt, qa1_test.txt, ...) that --data names;
without it simpler ones are made up. See README.md for what to expect.

    python -m examples.catbabi cpu --data DIR           ten minutes on two cores: one implicit layer against its twin
    python -m examples.catbabi paper --data DIR         the paper's 15,000 steps, on one GPU
    python -m examples.catbabi paper --steps 3          proof that they run, anywhere, and what they cost
    python -m examples.catbabi train --help             a model of your own
    python -m examples.catbabi evaluate RUN --help      look at a trained model
    python -m examples.catbabi search --data DIR        the search of the twin's learning rate (rates.json)
    python -m examples.catbabi.data --data DIR          count what a folder holds, or make one

Every command stores JSON and pictures below --out and goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.catbabi import commands
from examples.catbabi.recipes import (
    CPU_OPENINGS,
    CPU_TASKS,
    PAPER_RATES,
    PAPER_ROWS,
    RATES,
    RATES_TRIED,
    TWINS,
)
from examples.loop.command import add_command, add_workers, commands_of, run_command

OUT = Path("runs/catbabi")
CPU_DEFAULT = (
    f"default: {' '.join(map(str, CPU_TASKS))}; others need answers among their first {CPU_OPENINGS.length} tokens"
)
RECORD = Path("docs/records/catbabi.json")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made, names = commands_of("examples.catbabi", __doc__)

    cpu = add_command(
        names, "cpu", commands.cpu, "one implicit layer against its explicit twin, ten minutes on two cores", out=OUT
    )
    _stories(cpu, CPU_DEFAULT)
    _seed(cpu)
    add_workers(cpu)
    cpu.add_argument("--quick", action="store_true", help="three steps of each, to see that it runs")
    cpu.add_argument(
        "--record",
        nargs="?",
        type=Path,
        const=RECORD,
        metavar="FILE",
        help=f"also store the results as this JSON file, with its picture beside it (without FILE: {RECORD})",
    )

    paper = add_command(names, "paper", commands.paper, "the paper's training at its size, on one GPU", out=OUT)
    _stories(paper, "default: all in the folder")
    _seed(paper)
    paper.add_argument("--family", default="both", choices=("both", "implicit", "explicit"))
    rates = ", ".join(f"{rate:g}" for rate in PAPER_RATES)
    paper.add_argument("--lr", type=float, default=1e-3, help=f"the paper tried {rates} (default %(default)s)")
    rows = " and ".join(map(str, PAPER_ROWS))
    paper.add_argument("--rows", type=int, default=128, help=f"windows per step; it tried {rows} (default %(default)s)")
    paper.add_argument("--width", type=int, default=256, help="it does not tell its own (default %(default)s)")
    paper.add_argument("--device", default="cuda", help="where to train (default %(default)s)")
    paper.add_argument("--list", action="store_true", help="print what the recipes cost, run nothing")
    paper.add_argument(
        "--steps", type=int, help="only try so many steps of each phase out, and print what all would take"
    )
    paper.add_argument("--try-rows", type=int, default=2, help="windows per step of --steps (default %(default)s)")
    paper.add_argument(
        "--tflops",
        type=float,
        default=20.0,
        help="10^12 operations per second that the estimate assumes (default %(default)s: float32 on a large GPU)",
    )

    train = add_command(names, "train", commands.train, "train one model with settings of your own", out=OUT)
    _stories(train, "default: all in the folder")
    _seed(train)
    train.add_argument("--family", default="implicit", choices=("implicit", "explicit"))
    train.add_argument("--layers", type=int, default=1, help="blocks (default %(default)s)")
    train.add_argument("--width", type=int, default=64, help="of the model (default %(default)s)")
    train.add_argument(
        "--mode", default="qm", choices=("qm", "lm"), help="loss of answers alone, or of every word (default qm)"
    )
    train.add_argument(
        "--carried", action="store_true", help="windows go on from each other, with the model's state (default: not)"
    )
    train.add_argument("--length", type=int, default=128, help="tokens of a window (default %(default)s)")
    train.add_argument("--rows", type=int, default=16, help="windows per step (default %(default)s)")
    train.add_argument("--steps", type=int, default=1000, help="the learning rate decays to zero with them")
    train.add_argument("--unrolled", type=int, help="first steps, that unroll four evaluations (default: two thirds)")
    train.add_argument("--max-iter", type=int, default=12, help="most evaluations of a solve behind them")
    train.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default %(default)s)")
    train.add_argument("--device", default="cpu", help="where to train (default %(default)s)")

    look = add_command(names, "evaluate", commands.evaluate, "accuracy of a trained model, per task", out=None)
    look.add_argument("folder", type=Path, help="of a run, with its result.json")
    look.add_argument("--data", type=Path, metavar="DIR", help="folder of stories (default: the made-up ones)")
    look.add_argument("--split", default="test", choices=("test", "valid"), help="stories to ask about (default test)")
    look.add_argument("--rows", type=int, help="windows at a time (default: that of the recipe)")
    look.add_argument("--length", type=int, help="tokens of a window (default: that of the recipe)")
    look.add_argument(
        "--max-iter", type=int, nargs="+", metavar="N", help="most evaluations of a solve; several draw a picture"
    )
    look.add_argument("--device", default="cpu", help="where to run (default %(default)s)")

    counts = " and ".join(f"{steps:,}" for steps in TWINS)
    about = f"train the twin of `cpu` at {len(RATES_TRIED)} rates for {counts} steps each, and keep the best of each"
    search = add_command(names, "search", commands.search, about, out=OUT)
    _stories(search, CPU_DEFAULT)
    add_workers(search)
    search.add_argument("--quick", action="store_true", help="three steps of each, to see that it runs")
    search.add_argument("--rates", type=Path, default=RATES, metavar="FILE", help="where to store what was found")
    return made


def _stories(made: argparse.ArgumentParser, tasks: str) -> None:
    made.add_argument("--data", type=Path, metavar="DIR", help="folder of bAbI v1.2; without it stories are made up")
    made.add_argument("--tasks", type=int, nargs="+", metavar="N", help=f"numbers of the tasks ({tasks})")


def _seed(made: argparse.ArgumentParser) -> None:
    made.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    return run_command(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
