"""``deqlm compare``: solvers, gradient methods or starts side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deqlm import GRADIENTS, SOLVERS
from deqlm.cli.errors import UserError, user_input
from deqlm.cli.prose import ProseFormatter
from deqlm.comparison import (
    DEFAULT,
    PROBLEMS,
    SEQUENCES,
    Comparison,
    GradientComparison,
    LiteratureComparison,
    Settings,
    StartComparison,
    compare,
    compare_gradients,
    compare_literature,
    compare_starts,
)
from deqlm.comparison.literature.contenders import contenders
from deqlm.comparison.problems import DIFFERENTIABLE
from deqlm.comparison.problems.literature import literature, literature_problems
from deqlm.comparison.problems.named import to_problem, to_sequence
from deqlm.comparison.problems.sequences import STANDARD
from deqlm.comparison.result import Result
from deqlm.comparison.spec import split_specs, to_rows
from deqlm.comparison.starts.run import SOLVED_BY
from deqlm.reporting.style import can_draw
from deqlm.reporting.table import NARROW, WIDTH, terminal_width

__all__ = ["add", "run"]

LITERATURE = "literature"
"""The suite of the literature."""


class Kind(NamedTuple):
    """One kind of comparison, as the command line needs it.

    Attributes:
        compare: the function of `deqlm.comparison`.
        result: what it returns.
        problem: what makes a problem of a spec.
        contenders: raises for names and options of solvers that are wrong.
    """

    compare: Callable[..., Result[Any]]
    result: type[Result[Any]]
    problem: Callable[[str], Any]
    contenders: Callable[[list[str] | None], Any]


KINDS = {
    "solvers": Kind(compare, Comparison, to_problem, partial(to_rows, SOLVERS)),
    "gradients": Kind(compare_gradients, GradientComparison, to_problem, partial(to_rows, GRADIENTS)),
    "starts": Kind(compare_starts, StartComparison, to_sequence, partial(to_rows, SOLVERS)),
    LITERATURE: Kind(compare_literature, LiteratureComparison, literature, contenders),
}

DESCRIPTION = """\
Compare solvers of z = f(z) on problems with known spectra and answers, or on your own map. Every registered solver is a
row, adapters to other libraries included; one that fails is shown as failing. Solved means: the true relative residual
of what was returned, with f in float64, is within 1.05 of the tolerance (1e-5 in float32, 1e-10 in float64).

A table goes to the terminal; compare.json (with the environment), compare.txt and plots (SVG and PNG) into --out, in
place of those of a former run there. With --gradients and --starts the files are called gradients and starts.

The exit status is 0 when all that was asked for by name ran, 1 when a solver ran on no problem, a problem could not be
compared, or nothing was compared at all (then no file is written either), 2 for a mistake in the command, and 130 after
Ctrl-C, which keeps what was done until then."""

EPILOG = """\
names and options
  Options of a problem or a solver follow its name:  anderson:memory=5,damping=0.8   symmetric:rho=0.99,unknowns=256
  Lists are separated by commas; `deqlm solvers` and --list-problems say what there is.

problems of the literature
  --suite literature solves the square systems of Moré, Garbow and Hillstrom, those of SciML's and scipy's tests, Bratu,
  Chandrasekhar, value iteration, Sinkhorn, the lasso and others in float64 to ||F(z)|| <= 1e-8, each with its published
  start, with our solvers, torchdeq's and scipy's root finders; --problems and --solvers narrow it down, and
  --suite literature --list-problems names them. Files are called literature. Three minutes on a free core.

your own map
  --problems module:callable or --problems path/to/file.py:callable names a function that returns (f, z0): f maps a
  tensor (or a tree of tensors) to one of the same shape, z0 is the start with the batch first. It is called with those
  of the keywords dtype, device, batch and seed that it accepts, after torch's generator was seeded; options are passed
  on:  mine.py:make:width=32. Of (deq, x), a DEQ and its input, solvers are compared on the equation that it solves,
  z = layer(z + x). A file mine.py that works:

      import torch
      def make(dtype, batch=8, width=16):
          '''My layer.'''
          layer = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh())
          return layer.to(dtype).eval(), torch.zeros(batch, width, dtype=dtype)

  Return an nn.Module as f where you can: it is then copied to float64 for the true residual and for --gradients. Any
  other f is called with a float64 z; where that does not work, the table says so.

starts
  --starts solves sequences of maps, each from zero and from the solution of the one before. It pays where little has
  changed for the fixed point: inputs that move slowly, the same rows in the next epoch, a token that keeps the state.
  It gains nothing where the next map is another one, and costs where each token turns the state around. A start that
  is 10 times nearer saves log(10) / log(1/r) evaluations where each shrinks the error by r: few where the map contracts
  fast. Only the point is carried over, no solver keeps its history.
  Your own: --problems mine.py:make with a function that returns or yields pairs (f, z0), in the order of the solves.
  In a model: model(ids, start=state), deq(x, start=state), Chunked(16, start="previous"); see the guide "what moves".

examples
  deqlm compare                                                 every solver, every family of problems
  deqlm compare --quick                                         a few problems, in a minute
  deqlm compare --problems symmetric:rho=0.99,hard_row --dtype float64
  deqlm compare --solvers anderson,anderson:memory=5,broyden,torchdeq.anderson --repeats 9
  deqlm compare --problems mine.py:make --batch 64 --out my-results
  deqlm compare --gradients                                     gradient methods against the exact gradient
  deqlm compare --compile --problems mine.py:make               the same with rows of compiled solves
  deqlm compare --starts                                        from zero against from the solution before
  deqlm compare --starts --problems inputs:change=0.001,tokens:carry=2 --solvers anderson
  deqlm compare --suite literature                              136 published problems, and who solves them
"""


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="compare solvers (or gradients, or starts) on known problems and on your own map",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    option = parser.add_argument
    option(
        "--problems",
        metavar="LIST",
        help=f"built-in problems or your own map, see below (default: {len(DEFAULT)} of all families; with --gradients "
        f"{len(DIFFERENTIABLE)}; with --starts {len(STANDARD)} sequences)",
    )
    option(
        "--solvers",
        metavar="LIST",
        help="solvers, or gradient methods with --gradients (default: every registered one; with --starts "
        f"{', '.join(SOLVED_BY)})",
    )
    _add_settings(parser)
    option(
        "--out",
        type=Path,
        default=Path("deqlm-compare"),
        metavar="DIR",
        help="folder of the results (default ./deqlm-compare)",
    )
    option("--gradients", action="store_true", help="compare gradient methods instead of solvers")
    option("--starts", action="store_true", help="compare starts of solves on sequences of maps, see below")
    option(
        "--suite",
        choices=("default", LITERATURE),
        default="default",
        help="which problems and solvers: the built-in families (default), or those of the literature, see below",
    )
    option(
        "--compile",
        action="store_true",
        help="add rows of solves that are compiled, of solvers that can be; some ten seconds for each problem",
    )
    option(
        "--width",
        type=_columns,
        metavar="N",
        help=f"columns of the report, at least {NARROW} (default: those of the terminal, at most {WIDTH})",
    )
    option("--no-plots", action="store_true", help="write no plots")
    option(
        "--list-problems",
        action="store_true",
        help="list the problem families (with --starts: the sequences) and their options, and leave",
    )
    parser.set_defaults(run=run)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of `Settings`; one that is not given leaves nothing in the namespace."""
    for each in fields(Settings):
        told = each.metadata
        more: dict[str, Any] = {"metavar": told.get("metavar")}
        if told.get("flag"):
            more = {"action": "store_const", "const": True}
        elif each.type in ("int", "int | None"):
            more["type"] = _number
        parser.add_argument(f"--{each.name}", help=told["help"], default=argparse.SUPPRESS, **more)


def _columns(text: str) -> int:
    """Return a number of columns that a report can have."""
    if not text.isdecimal() or int(text) < NARROW:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {NARROW}, got {text!r}")
    return int(text)


def _number(text: str) -> int | str:
    """Return a whole number; what is none stays text, which `Settings` refuses."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line names."""
    return {each.name: vars(arguments)[each.name] for each in fields(Settings) if each.name in arguments}


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write; return the exit status."""
    if arguments.list_problems:
        print(_listing(arguments))
        return 0
    kind = _kind(arguments)
    with _writing_into(arguments.out):
        kind.result.files.check(arguments.out)
    result = _compare(kind, arguments)
    print(_rest(result, arguments))
    print(f"\n{result.seconds:.1f} s in all")
    if any(problem.entries for problem in result.problems):
        _write(result, arguments)
    if result.interrupted:
        return 130
    left_out = _left_out(result, arguments)
    for line in left_out:
        print(f"deqlm: {line}", file=sys.stderr)
    return 1 if left_out else 0


def _listing(arguments: argparse.Namespace) -> str:
    """Return what --list-problems shows."""
    from deqlm.cli.listing import list_registry

    if arguments.suite == LITERATURE:
        return "\n".join(f"{p.name:30} N={p.unknowns:<3} {p.source}" for p in literature_problems())
    return list_registry(SEQUENCES if arguments.starts else PROBLEMS, names_only=False)


def _kind(arguments: argparse.Namespace) -> Kind:
    """Return what is compared; options that would be ignored are refused."""
    if arguments.gradients and arguments.starts:
        raise UserError("--gradients and --starts are two comparisons; ask for one")
    other = "gradients" if arguments.gradients else "starts" if arguments.starts else None
    if arguments.compile and (other or arguments.suite == LITERATURE):
        raise UserError("--compile has no meaning here: it adds rows to a comparison of solvers; leave it out")
    if arguments.suite == LITERATURE:
        for said in (*Settings.fixed(_given(arguments)), *filter(None, [other])):
            raise UserError(f"--{said} has no meaning with --suite {LITERATURE}, its settings are fixed; leave it out")
        return KINDS[LITERATURE]
    return KINDS[other or "solvers"]


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error


def _write(result: Result[Any], arguments: argparse.Namespace) -> None:
    with _writing_into(arguments.out):
        former = result.files.former_run(arguments.out)
        written = result.save(arguments.out, plots=bool(result.files.figures) and _plots(arguments))
    print("\n".join(f"wrote {path}" for path in written))
    if result.files.first in {path.stem for path in written}:
        print(f"look first at {arguments.out / result.files.first}.svg")
    if former is not None:
        print(f"in place of the run {former}")


def _left_out(result: Result[Any], arguments: argparse.Namespace) -> list[str]:
    """Return a line for each thing that was asked for by name and did not run, or one when nothing ran."""
    entries: list[Any] = [entry for problem in result.problems for entry in problem.entries]
    if not any(entry.ran for entry in entries):
        return ["nothing was compared"]
    lines = []
    if arguments.problems is not None:
        lines += [f"{problem.label} was not compared" for problem in result.problems if problem.message]
    if arguments.solvers is not None:
        useful = {entry.name for entry in entries if entry.ran}
        lines += [f"{name} ran on no problem" for name in result.contenders if name not in useful]
    return lines


def _compare(kind: Kind, arguments: argparse.Namespace) -> Result[Any]:
    """Check every name first, so that what fails later is no mistake of the user."""
    given = _given(arguments)
    with user_input():
        problems = _list(arguments.problems, "--problems")
        methods = _list(arguments.solvers, "--solvers")
        chosen = None if problems is None else [kind.problem(spec) for spec in problems]
        kind.contenders(methods)
        Settings.of(**given)
    if not kind.result.live:
        return kind.compare(chosen, methods, **given)
    width = _width(arguments)
    if arguments.compile:
        given["compile"] = True
    return kind.compare(chosen, methods, each=lambda problem: kind.result().block(problem, width) + "\n", **given)


def _rest(result: Result[Any], arguments: argparse.Namespace) -> str:
    """Return what of the report was not printed while it was made."""
    width = _width(arguments)
    cut = result.interrupted or not result.live
    return result.table(width) if cut else "\n\n".join(result.ending(width))


def _width(arguments: argparse.Namespace) -> int:
    return terminal_width() if arguments.width is None else arguments.width


def _plots(arguments: argparse.Namespace) -> bool:
    if arguments.no_plots:
        return False
    if not can_draw():
        print('deqlm: no plots: they need matplotlib, pip install "deqlm[compare]"', file=sys.stderr)
    return can_draw()


def _list(text: str | None, option: str) -> list[str] | None:
    if text is None:
        return None
    try:
        return split_specs(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
