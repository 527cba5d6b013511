"""A comparison as plain data, and its files: JSON, the table as text, plots."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deqlm.reporting.style import steady, write
from deqlm.reporting.table import shortened

__all__ = ["VERSION", "Files", "finite", "write_json"]

VERSION = 1
"""Version of the record's layout."""


@dataclass(frozen=True)
class Files:
    """The files of one kind of comparison.

    Attributes:
        kind: their name without an ending.
        command: what the record says of itself.
        figures: name of a plot -> what draws it from the record, the one to look at first before the others.
    """

    kind: str
    command: str
    figures: Mapping[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """Name of the plot to look at first; empty where none is drawn."""
        return next(iter(self.figures), "")

    def check(self, folder: Path) -> None:
        """Find out before any work whether `save` can write; a folder that is not there is not made.

        Raises:
            OSError: it cannot.
        """
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in made:
            path.rmdir()
        for path in (folder / name for name in (*self._told, *self._drawn)):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{path.name} is a folder")
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, f"{path.name} may not be written to")

    def save(self, record: dict[str, Any], text: str, folder: Path, plots: bool) -> list[Path]:
        """Write a record, its table and, unless nothing was compared, its plots; return what was written.

        Plots of a former run of this kind that are not drawn again are removed.

        Raises:
            ImportError: plots are wanted and matplotlib is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        former = (self._former(folder) or {}).get("files")
        plots = plots and bool(self.figures) and any(problem["entries"] for problem in record["problems"])
        names = [*self._told, *(self._drawn if plots else ())]
        write_json({**record, "files": names}, folder / names[0])
        (folder / names[1]).write_text(f"{text}\n", encoding="utf-8")
        if plots:
            with steady():
                for name, draw in self.figures.items():
                    write(draw(record), folder, name)
        for name in set(self._drawn).difference(names):
            if isinstance(former, list) and name in former:
                (folder / name).unlink(missing_ok=True)
        return [folder / name for name in names]

    def former_run(self, folder: Path) -> str | None:
        """Return in a line which run's files lie in ``folder``, or None."""
        former = self._former(folder)
        if former is None:
            return None
        try:
            settings, argv = former["settings"], former["environment"]["argv"]
            what = f"{len(former['problems'])} problems, {settings['dtype']}, seed {settings['seed']}"
            told = f"`{shortened(shlex.join(argv), 60)}` ({what})"
        except (KeyError, TypeError):
            return f"{self.kind}.json, a record that is malformed"
        return told.encode(errors="replace").decode()

    @property
    def _told(self) -> list[str]:
        return [f"{self.kind}.json", f"{self.kind}.txt"]

    @property
    def _drawn(self) -> list[str]:
        return [f"{name}.{form}" for name in self.figures for form in ("svg", "png")]

    def _former(self, folder: Path) -> dict[str, Any] | None:
        """Return the record that lies in ``folder``, if one does and it is ours."""
        try:
            found = json.loads((folder / f"{self.kind}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and found.get("record") == self.command else None


def write_json(data: dict[str, Any], path: Path) -> Path:
    """Write strict JSON."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """Return ``value`` with floats that JSON does not know replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
