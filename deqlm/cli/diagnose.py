"""``deqlm diagnose``: why a solve does not converge, and what to try."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deqlm import DEQ, SOLVERS, Stop
from deqlm.cli.errors import UserError, user_input
from deqlm.cli.prose import ProseFormatter
from deqlm.comparison import Settings, UserProblem
from deqlm.comparison.problems.named import to_problem
from deqlm.comparison.settings import parse_device, parse_dtype
from deqlm.comparison.spec import make_from
from deqlm.diagnostics import Diagnosis, Probes, diagnose
from deqlm_solvers.core.checks import whole

__all__ = ["add", "run"]

FOR_MAPS = ("solver", "rtol", "max_iter")
"""Arguments that a DEQ has its own settings for."""

DESCRIPTION = """\
Solve once and say what happened: converged or not, how the map contracts, whether f draws random numbers, works in
place or mixes rows, the likely cause of a failure, and what to try, which is then tried.

module:callable or path/to/file.py:callable names a function that returns (deq, x), a DEQ with an input, or (f, z0), a
map with a start. It is called with those of the keywords dtype, device, batch and seed that it accepts, after torch's
generator was seeded; options follow its name:  mine.py:make:width=32

The exit status is 0 when nothing wrong was found, 1 when something was, 2 for a mistake in the command."""

EPILOG = """\
a file mine.py that works
  import deqlm, torch
  def make(width=16):
      '''My DEQ with an input.'''
      layer = torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
      return deqlm.DEQ(layer), torch.randn(4, 10, width)
  def rotation():
      '''A map with a start.'''
      turn = 0.99 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
      return lambda z: z @ turn.T + 1, torch.zeros(1, 2)

examples
  deqlm diagnose mine.py:make
  deqlm diagnose mine.py:make:width=32 --plot residuals.png --json diagnosis.json
  deqlm diagnose mine.py:rotation --solver fixed_point --rtol 1e-6
  deqlm diagnose mypackage.layers:make --no-try && echo healthy
"""


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "diagnose",
        help="say why a solve does not converge and what to try",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    option = parser.add_argument
    option("target", metavar="module:callable", help="function that returns (deq, x) or (f, z0)")
    option("--plot", type=Path, metavar="PATH", help="draw the residual of every row (.png, .svg, .pdf)")
    option("--json", type=Path, metavar="PATH", help="write all findings as JSON")
    option("--solver", metavar="SPEC", help="for a map: such as fixed_point or anderson:memory=5 (default anderson)")
    option("--rtol", type=float, metavar="TOL", help="for a map: relative tolerance (default 1e-4)")
    option("--max-iter", type=int, metavar="K", help="for a map: most evaluations of f (default 100)")
    option(
        "--dtype", default="float32", help="offered to the function: float32 (default), float64, float16 or bfloat16"
    )
    option("--device", default="cpu", help="offered to the function: cpu (default), cuda, ...")
    option("--seed", type=int, default=0, help="of the function's random numbers and of the probes (default 0)")
    option("--no-try", action="store_true", help="do not try what is suggested")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, print, write; return the exit status."""
    with user_input():
        problem = to_problem(arguments.target)
        if not isinstance(problem, UserProblem):
            raise UserError(f"name your own function as module:callable, got {arguments.target!r}")
        dtype, device = parse_dtype(arguments.dtype), parse_device(arguments.device)
        target, x = problem.call(Settings(dtype=dtype, device=device, seed=arguments.seed))
        probes = Probes(seed=arguments.seed, suggest=not arguments.no_try)
        settings = _settings(arguments)
        if settings and isinstance(target, DEQ):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in _given(arguments))
            raise UserError(f"{names}: a DEQ has its own solver and stop; set them where it is made")
        diagnosis = diagnose(target, x, probes=probes, **settings)
    print(diagnosis)
    _write(diagnosis, arguments)
    return 0 if diagnosis.healthy else 1


def _given(arguments: argparse.Namespace) -> list[str]:
    return [name for name in FOR_MAPS if getattr(arguments, name) is not None]


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of a map that were given."""
    settings: dict[str, Any] = {}
    if arguments.solver is not None:
        settings["solver"] = make_from(SOLVERS, arguments.solver)
    stop = {name: getattr(arguments, name) for name in _given(arguments) if name != "solver"}
    if "max_iter" in stop:
        whole("max_iter", stop["max_iter"], 1)  # a budget of none has nothing to diagnose
    if stop:
        settings["stop"] = Stop(**stop)
    return settings


def _write(diagnosis: Diagnosis, arguments: argparse.Namespace) -> None:
    try:
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(diagnosis.to_dict(), indent=1) + "\n")
            print(f"wrote {arguments.json}")
        if arguments.plot is not None:
            print(f"wrote {diagnosis.plot(arguments.plot)}")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(str(error)) from error
