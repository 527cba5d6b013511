"""What the command lines of the examples have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deqlm.training import CheckpointError
from deqlm_solvers.core.checks import require

__all__ = ["add_command", "add_workers", "commands_of", "distinct", "run_command"]


def commands_of(module: str, description: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser of ``python -m module``, and what `add_command` adds commands to.

    Args:
        module: its name.
        description: printed by ``--help`` as it is.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return made, made.add_subparsers(dest="command", required=True, metavar="COMMAND")


def add_command(
    names: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, *, out: Path | None
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        names: of `commands_of`.
        name: of the command.
        run: what it does with the parsed arguments.
        text: what it is for, a line.
        out: folder above that of its results; None where it stores nothing and draws no progress bar.
    """
    made = names.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    made.set_defaults(run=run)
    if out is not None:
        made.add_argument("--out", type=Path, default=out / name, help="folder of the results (default %(default)s)")
        made.add_argument(
            "--no-progress", dest="progress", action="store_const", const=False, help="draw no progress bar"
        )
    return made


def add_workers(made: argparse.ArgumentParser, default: int = 2) -> None:
    """Add the option of how many processes train."""
    made.add_argument("--workers", type=int, default=default, help="processes, one thread each (default %(default)s)")


def distinct(name: str, values: Sequence[Any]) -> None:
    """Refuse what is asked for twice: two trainings would write into one folder.

    Args:
        name: of the option.
        values: that were given.

    Raises:
        ValueError: one of them stands there again.

    Examples:
        >>> distinct("seeds", [0, 1])
    """
    require(len(set(values)) == len(values), name, list(values), "all different")


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Run one command; return the exit status, 2 with one line on stderr where its input is at fault."""
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, KeyError, FileNotFoundError, CheckpointError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    return 0
