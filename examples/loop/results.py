"""Results of experiments as JSON files: written whole, read back where they are of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from deqlm.training import write_atomically
from deqlm.training.experiment import differences
from deqlm_solvers import Options
from deqlm_solvers.core.checks import require

__all__ = ["RESULT", "finished", "known_result", "read_json", "write_json"]

R = TypeVar("R", bound=Options)

RESULT = "result.json"
"""Name of the result in the folder of a run."""


def known_result(folder: Path, recipe: Any) -> dict[str, Any] | None:
    """Return the result in a folder of a run, or None where there is none yet.

    Args:
        folder: of the run.
        recipe: JSON data of what was asked for, which the result holds as "recipe".

    Raises:
        ValueError: it is the result of another recipe.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or differences(found.get("recipe", {}), recipe):
        raise ValueError(f"{path} is the result of other settings: choose another folder with --out, or remove it")
    return found


def finished(folder: Path, recipe: type[R], mark: str, about: str) -> tuple[R, dict[str, Any]]:
    """Return the recipe of a finished run and its result.

    Args:
        folder: of the run.
        recipe: class of the recipe.
        mark: a field that the recipes of this example have, and those of no other.
        about: what this example trains on, in words.

    Raises:
        FileNotFoundError: the folder holds no result.
        ValueError: it is the result of another task, or damaged.
    """
    path = folder / RESULT
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: train first")
    found = read_json(path)
    stored = found.get("recipe") if isinstance(found, dict) else None
    ours = isinstance(stored, dict) and mark in stored
    require(ours, "folder", str(folder), f"that of a run on {about}, and its result is of another task")
    try:
        return recipe.from_dict(stored), found
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no recipe of this version: {error.args[0]}") from error


def read_json(path: Path) -> Any:
    """Return the data of a JSON file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
