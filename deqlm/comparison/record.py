"""A comparison as JSON and as files."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from deqlm.comparison.base import Result
from deqlm.comparison.recorder import Trace
from deqlm.comparison.result import Entry
from deqlm.reporting.table import shortened

__all__ = [
    "VERSION",
    "check_folder",
    "finite",
    "former_run",
    "record_of",
    "save",
    "write_json",
]

VERSION = 1
"""Version of the record's layout."""

RECORDS = {
    "compare": "deqlm compare",
    "gradients": "deqlm compare --gradients",
    "starts": "deqlm compare --starts",
    "literature": "deqlm compare --suite literature",
}
"""Name of a record's file -> what it says of itself."""

PLOTS = {
    "compare": ("residual_evaluations", "residual_time", "profile"),
    "gradients": ("gradients",),
    "starts": ("starts",),
    "literature": (),
}
"""Name of a record's file -> names of its plots."""


def record_of(comparison: Result[Any]) -> dict[str, Any]:
    """Return a comparison as plain data; infinities and NaN are None."""
    return {
        "record": RECORDS[comparison.kind],
        "version": VERSION,
        "environment": comparison.environment,
        "settings": comparison.settings,
        "seconds": comparison.seconds,
        "interrupted": comparison.interrupted,
        "problems": [
            {
                **{key: value for key, value in vars(problem).items() if key != "entries"},
                "entries": [_entry(entry) for entry in problem.entries],
            }
            for problem in comparison.problems
        ],
    }


def check_folder(folder: Path, kind: str) -> None:
    """Find out before any work whether `save` can write; a folder that is not there is not made.

    Args:
        folder: where `save` writes.
        kind: "compare", "gradients" or "starts".

    Raises:
        OSError: it cannot.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for path in made:
        path.rmdir()
    for path in (folder / name for name in (f"{kind}.json", f"{kind}.txt", *_drawn(kind))):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path.name} is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, f"{path.name} may not be written to")


def save(comparison: Result[Any], folder: Path, plots: bool) -> list[Path]:
    """Write JSON, the table as text, and the plots into ``folder``; return what was written."""
    kind = comparison.kind
    folder.mkdir(parents=True, exist_ok=True)
    former = _former(folder, kind) or {}
    plots = plots and bool(PLOTS[kind]) and any(problem.entries for problem in comparison.problems)
    drawn = _drawn(kind)
    names = [f"{kind}.json", f"{kind}.txt", *(drawn if plots else ())]
    write_json({**comparison.to_dict(), "files": names}, folder / names[0])
    (folder / names[1]).write_text(f"{comparison}\n", encoding="utf-8")
    if plots:
        _draw(comparison, kind, folder)
    files = former.get("files")
    for name in set(drawn).difference(names):
        if isinstance(files, list) and name in files:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def former_run(folder: Path, kind: str) -> str | None:
    """Return in a line which run's files lie in ``folder``, or None.

    Args:
        folder: where `save` writes.
        kind: "compare", "gradients", "starts" or "literature".
    """
    former = _former(folder, kind)
    if former is None:
        return None
    try:
        settings, argv = former["settings"], former["environment"]["argv"]
        what = f"{len(former['problems'])} problems, {settings['dtype']}, seed {settings['seed']}"
        told = f"`{shortened(shlex.join(argv), 60)}` ({what})"
    except (KeyError, TypeError):
        return f"{kind}.json, a record that is malformed"
    return told.encode(errors="replace").decode()


def _drawn(kind: str) -> list[str]:
    return [f"{name}.{form}" for name in PLOTS[kind] for form in ("svg", "png")]


def _draw(comparison: Any, kind: str, folder: Path) -> None:
    if kind == "compare":
        from deqlm.comparison.plots import draw_all as draw
    elif kind == "gradients":
        from deqlm.comparison.gradient_plot import draw_gradients as draw
    else:
        from deqlm.comparison.start_plot import draw_starts as draw
    draw(comparison, folder)


def _former(folder: Path, kind: str) -> dict[str, Any] | None:
    """Return the record that lies in ``folder``, if one does and it is ours."""
    try:
        found = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("record") == RECORDS[kind] else None


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


def _entry(entry: Any) -> dict[str, Any]:
    plain = {key: finite(value) for key, value in vars(entry).items() if key != "trace"}
    return {**plain, "seconds": entry.seconds, "trace": _trace(entry.trace)} if isinstance(entry, Entry) else plain


def _trace(trace: Trace | None) -> dict[str, Any] | None:
    return None if trace is None else {key: finite(value) for key, value in vars(trace).items()}
