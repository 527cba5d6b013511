"""Measures, and writes the pages how_it_compares.md, literature.md and guides/not_converging.md from what it measured.

    PYTHONPATH=tests python -m benchmarks.comparison --out docs

takes about fifteen minutes on one core, which should have nothing else to do. A page keeps its words: only what stands
between its markers is drawn anew. Parts that are left out keep their numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.causes import write_causes
from benchmarks.comparison.literature import write_literature
from benchmarks.comparison.run import PAGE, PARTS, RECORD, measure
from benchmarks.comparison.verdicts import verdicts
from deqlm.cli.errors import Parser, UserError, user_input
from deqlm.comparison.spec import split_specs
from deqlm.reporting.style import can_draw
from deqlm_solvers.core.checks import require, suggest

CAUSES, LITERATURE = "causes", "literature"
ALL = (*PARTS, CAUSES, LITERATURE)
"""What can be asked for: the parts of how_it_compares.md, the gallery of not_converging.md, and literature.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; return 0, or 2 for a mistake in the command."""
    try:
        _run(_parser().parse_args(argv))
    except UserError as error:
        print(f"benchmarks.comparison: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"benchmarks.comparison: error: cannot write: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="benchmarks.comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--out", type=Path, required=True, metavar="DIR", help="folder of the pages, such as docs")
    option("--parts", metavar="LIST", help=f"only these of {', '.join(ALL)} (default: all)")
    option("--jax", metavar="PYTHON", help="an interpreter that has jax, jaxopt and optimistix; without, no part jax")
    option("--no-plots", action="store_true", help="write no plots")
    option("--progress", action="store_true", help="draw the progress bar even when stderr is not a terminal")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    with user_input():
        asked = list(ALL) if arguments.parts is None else split_specs(arguments.parts)
        for part in asked:
            require(part in ALL, "--parts", part, f"among {', '.join(ALL)}: {suggest(part, ALL)}")
    plots, progress = can_draw() and not arguments.no_plots, arguments.progress or None
    parts = [part for part in PARTS if part in asked]
    written = []
    if parts:
        with user_input():
            record = measure(arguments.out, parts=parts, jax=arguments.jax, plots=plots, progress=progress)
        _show(record)
        written += [arguments.out / PAGE, arguments.out / "records" / RECORD]
    if CAUSES in asked:
        written += write_causes(arguments.out, plots)
    if LITERATURE in asked:
        written += write_literature(arguments.out, progress)
    print("\n".join(f"wrote {path}" for path in written))


def _show(record: dict[str, Any]) -> None:
    for verdict in verdicts(record):
        print(f"{'met   ' if verdict.met else 'MISSED'}  {verdict.what}: {verdict.measured} (asked: {verdict.asked})")
    for name, why in record["missing"].items():
        print(f"not compared: {name} ({why})")
    print(f"\n{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
