"""Count what a bAbI folder holds, or make one: ``python -m examples.catbabi.data --data DIR [--make]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from examples.catbabi.data.corpus import load, table
from examples.catbabi.data.generate import write_folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.catbabi.data", description=__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with qa1_train.txt, qa1_valid.txt, ...")
    parser.add_argument("--make", action="store_true", help="write made-up stories there first (tasks 1, 2, 6, 7, 19)")
    parser.add_argument("--stories", type=int, default=200, help="with --make: stories per task to train on (200)")
    parser.add_argument("--seed", type=int, default=0, help="with --make: seed of the stories (0)")
    options = parser.parse_args(arguments)
    try:
        if options.make:
            write_folder(options.data, stories=options.stories, seed=options.seed)
        corpus = load(options.data)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(corpus))
    print(f"vocabulary: {len(corpus.vocabulary)} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
