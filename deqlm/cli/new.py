"""``deqlm new``: a package with a solver, gradient, mixer or problem of one's own, which passes its checks."""

from __future__ import annotations

import argparse
import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deqlm import GRADIENTS, SOLVERS
from deqlm.cli.errors import UserError
from deqlm.cli.prose import ProseFormatter
from deqlm.comparison import PROBLEMS
from deqlm.models import MIXERS
from deqlm_solvers import Registry

__all__ = ["add", "run"]

DESCRIPTION = """\
Write a package that adds a solver, a gradient method, a mixer or a problem to deqlm: the class, its entry point, and
tests that hold it to what deqlm asks of its own. It works as it is written; then change it. NAME is the name that it
will have in deqlm, such as heavy_ball."""

EPILOG = """\
examples
  deqlm new solver heavy_ball && cd heavy_ball && pip install -e . && pytest
  deqlm new gradient two_steps --out ~/code
  deqlm compare --solvers heavy_ball,anderson       once it is installed
"""


@dataclass(frozen=True)
class Kind:
    """What can be written.

    Attributes:
        registry: where its name will stand.
        options: what the registered class is called beside the main one.
        attempt: a command that shows it at work.
    """

    registry: Registry[Any]
    options: str
    attempt: str


KINDS = {
    "solver": Kind(SOLVERS, "", "deqlm compare --quick --solvers {name},anderson"),
    "gradient": Kind(GRADIENTS, "", "deqlm compare --gradients --quick --solvers {name},implicit"),
    "mixer": Kind(MIXERS, "Options", "python -c 'import deqlm.models; print(deqlm.models.MIXERS[\"{name}\"])'"),
    "problem": Kind(PROBLEMS, "", "deqlm compare --problems {name}"),
}


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "new",
        help="write a package with a solver, gradient, mixer or problem of your own",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    parser.add_argument("kind", choices=KINDS, help="what it is")
    parser.add_argument("name", metavar="NAME", help="letters, digits and underscores, a letter first")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder in which the package's folder is made (here)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the package; return the exit status."""
    kind, name = KINDS[arguments.kind], arguments.name
    _check(kind, name)
    folder = arguments.out / name
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another name, or another --out")
    try:
        written = [_write(folder / path, text) for path, text in _texts(arguments.kind, kind, name).items()]
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    print("\n".join(f"wrote {path}" for path in written))
    print(f"next: cd {folder} && pip install -e . && pytest")
    return 0


def _check(kind: Kind, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        rule = "small letters, digits and underscores, a letter first, and no word of Python"
        raise UserError(f"NAME must be {rule}, got {name!r}")
    if name in kind.registry:
        raise UserError(f"NAME must be new, got {name!r}, a {kind.registry.kind} that is there already")
    if name in ("deqlm", "deqlm_solvers", "torch", "numpy", "tests"):
        raise UserError(f"NAME must not hide a package, got {name!r}")


def _texts(word: str, kind: Kind, name: str) -> dict[str, str]:
    """Return the text of every file, by its path in the package's folder."""
    cls = "".join(part.capitalize() for part in name.split("_"))
    words = {
        "kind": word,
        "name": name,
        "project": name.replace("_", "-").strip("-"),
        "cls": cls,
        "cache": f"{cls}Cache",
        "entry": cls + kind.options,
        "group": kind.registry.group,
        "try": kind.attempt.format(name=name),
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "readme.md",
        f"src/{name}/__init__.py": f"{word}.py",
        f"tests/test_{name}.py": f"{word}_test.py",
    }
    templates = files("deqlm.cli") / "templates"
    return {
        path: Template((templates / f"{source}.txt").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
