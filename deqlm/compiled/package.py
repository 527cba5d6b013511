"""Files of exported solves: written with what they need to run, checked before they are run."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from deqlm_solvers import Cost, Solution
from deqlm_solvers.native.operators import load_operators

__all__ = ["ExportedSolve", "operators_beside", "read_facts", "write_facts"]

FACTS = "deqlm.json"
FORMAT = 1


def operators_beside(path: Path) -> Path:
    """Return where the library lies that a package needs: the same name with ``.ops.so``."""
    return path.with_suffix(".ops.so")


def write_facts(path: Path, **facts: Any) -> None:
    """Add to a package what made it, and put the library of its operators beside it."""
    with zipfile.ZipFile(path, "a") as archive:
        told = json.dumps({"format": FORMAT, "torch": torch.__version__, **facts})
        archive.writestr(f"{_root(archive)}{FACTS}", told)
    library = load_operators().library
    assert library is not None
    assert library.path is not None
    shutil.copyfile(library.path, operators_beside(path))


def read_facts(path: Path) -> dict[str, Any]:
    """Return what made a package.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no exported solve, or one of another version of torch.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no exported solve at {str(path)!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(f"{_root(archive)}{FACTS}"))
        made_by = facts["torch"]
    except (zipfile.BadZipFile, zlib.error, KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{str(path)!r} is no exported solve: deqlm.export writes such files") from None
    if made_by != torch.__version__:
        raise ValueError(
            f"{str(path)!r} was exported with torch {made_by}, and this is {torch.__version__}: machine code of "
            "one version does not run in another; export it again"
        )
    return facts


def _root(archive: zipfile.ZipFile) -> str:
    """Return the folder that all files of a package are in, with its slash, or nothing."""
    first = archive.namelist()[0]
    return f"{first.split('/')[0]}/" if "/" in first else ""


class ExportedSolve:
    """A solve from a file that `deqlm.export` wrote; no layer, no Python between evaluations.

    Called with the input as the `DEQ` was, any batch size, it returns a `Solution`.

    Args:
        path: the file.

    Attributes:
        facts: versions, solver and stop that the file tells.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no exported solve, or one of another version of torch.
        RuntimeError: no C++ compiler, and the operators are not built yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = read_facts(self.path)
        if why := load_operators().why:
            raise RuntimeError(f"the operators of an exported solve are not there: {why}")
        self._run = torch._inductor.aoti_load_package(str(self.path))

    def __call__(self, x: Any, *args: Any) -> Solution:
        """Solve without grad; see `DEQ`."""
        z, status, steps, residual, relative = self._run(x, *args)
        return Solution(z=z, residual=residual, relative=relative, steps=steps, status=status, cost=Cost())
