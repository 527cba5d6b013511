"""Entry point of the command ``deqlm``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import deqlm
from deqlm.cli import compare, diagnose, env, generate, gradients, info, new, plan, solvers
from deqlm.cli.errors import Parser, UserError
from deqlm.cli.prose import ProseFormatter
from deqlm_solvers.core.checks import suggest

__all__ = ["main"]

COMMANDS = {
    **{"compare": compare, "diagnose": diagnose, "env": env, "generate": generate},
    **{"gradients": gradients, "info": info, "new": new, "plan": plan, "solvers": solvers},
}

EPILOG = """\
examples:
  deqlm compare --quick                          solvers on a few problems, in a minute
  deqlm compare --problems mine.py:make          solvers on your own map
  deqlm diagnose mine.py:make                    why your own map or DEQ does not converge
  deqlm generate --model DIR --prompt "Once"     text from a saved model
  deqlm info                                     the models of the paper, and what a token costs
  deqlm plan mamba2-1.3b --gpu h200 --count 32   memory and days of a pretraining
  deqlm solvers                                  what there is to compare
  deqlm new solver heavy_ball                    a package with a solver of your own
  deqlm COMMAND --help                           more on one command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        0 when it went well, 1 when a comparison left out what was asked for by name or compared nothing, or a
        diagnosis found something wrong, 2 for a mistake of the user, 130 after Ctrl-C.

    Examples:
        >>> from deqlm.cli.main import main
        >>> main(["solvers", "--names"])  # doctest: +ELLIPSIS
        alternating_anderson
        ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise UserError(f"unknown command {arguments[0]!r}: {suggest(arguments[0], COMMANDS)}")
        parser = _parser()
        if not arguments:
            parser.print_help()
            return 0
        parsed = parser.parse_args(arguments)
        status = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"deqlm: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader left, as `head` does; what Python still wants to flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("deqlm: interrupted", file=sys.stderr)
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0


def _parser() -> Parser:
    parser = Parser(
        prog="deqlm",
        description=(deqlm.__doc__ or "").strip(),
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deqlm {deqlm.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add(commands)
    return parser
