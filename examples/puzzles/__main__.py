"""Puzzles: one stock transformer layer solves Sudoku by converging.

`nn.TransformerEncoderLayer`, wrapped by `deqlm.DEQ`, sees a puzzle and is evaluated again and again until its state no
longer moves; the state is the answer. Trained on at most a dozen evaluations, it goes on getting better far beyond
them; used once it solves nothing. See README.md for what to expect.

    python -m examples.puzzles demo           a minute or two: 4x4, the layer that converges against the layer used once
    python -m examples.puzzles six            ten minutes a seed: 6x6, residuals, breadth, boards
    python -m examples.puzzles maze           some minutes: the shortest way through a maze
    python -m examples.puzzles twins          the models it is compared with, at equal parameters and equal time
    python -m examples.puzzles nine --help    9x9, as Sudoku-Extreme has it, on one GPU
    python -m examples.puzzles evaluate DIR   measure a trained model again
    python -m examples.puzzles solve --help   give a trained model a puzzle of yours

Every command stores JSON and pictures below --out, goes on where it was interrupted, and needs no data and no network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.loop.command import add_command, add_workers, commands_of, run_command
from examples.puzzles import commands

OUT = Path("runs/puzzles")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made, names = commands_of("examples.puzzles", __doc__)

    demo = add_command(names, "demo", commands.demo, "4x4, the layer converged and used once", out=OUT)
    demo.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    add_workers(demo)

    six = add_command(names, "six", commands.six, "6x6, several seeds, residuals, breadth, boards", out=OUT)
    six.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights and batches (default 0)")
    add_workers(six)

    maze = add_command(names, "maze", commands.maze, "the one shortest way through a maze", out=OUT)
    maze.add_argument("--side", type=int, default=5, help="cells a side (default %(default)s)")
    maze.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    add_workers(maze, 1)

    twins = add_command(
        names, "twins", commands.twins, "4x4 against models of equal parameters and time, rates by search", out=OUT
    )
    twins.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the comparison (default 0)")
    add_workers(twins)

    nine = add_command(names, "nine", commands.nine, "9x9 on one GPU, resumable", out=OUT)
    nine.add_argument("--data", type=Path, metavar="FOLDER", help="with train.csv and test.csv; default: the generator")
    nine.add_argument("--train", type=int, default=1000, help="puzzles to learn from (default %(default)s)")
    nine.add_argument("--test", type=int, default=1000, help="puzzles to test (default %(default)s)")
    nine.add_argument("--steps", type=int, default=60_000, help="of the optimizer (default %(default)s)")
    nine.add_argument("--batch", type=int, default=256, help="puzzles per step (default %(default)s)")
    nine.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    nine.add_argument("--device", default="cuda", help="where to train (default %(default)s)")
    nine.add_argument("--try-steps", type=int, metavar="N", help="only take N steps here, say what all would cost")
    nine.add_argument("--rows", type=int, default=8, help="puzzles per step of --try-steps (default %(default)s)")
    nine.add_argument("--tflops", type=float, default=20.0, help="10^12 operations per second of the estimate")

    solve = add_command(names, "solve", commands.solve, "what a trained model answers, step by step", out=None)
    solve.add_argument("folder", type=Path, help="of a run, with its result.json")
    solve.add_argument("puzzle", help="a character per cell, row by row: digits and dots, or # . S G of a maze")
    solve.add_argument("--expect", metavar="NAME", help="refuse a model of another problem than this")
    solve.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="to look behind")
    solve.add_argument("--seed", type=int, default=0, help="of the start (default %(default)s)")

    look = add_command(names, "evaluate", commands.evaluate, "measure a trained model again", out=None)
    look.add_argument("folder", type=Path, help="of a run, with its result.json")

    page = add_command(names, "page", commands.page, "copy results into docs/records and draw their page", out=None)
    page.add_argument("--runs", type=Path, default=OUT, help="folder of the runs (default %(default)s)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    return run_command(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
