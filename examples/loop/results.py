"""Results of experiments as JSON files: written whole, read back where they are of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deqlm.training import write_atomically
from deqlm.training.experiment import differences

__all__ = ["RESULT", "known_result", "read_json", "write_json"]

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
    found: dict[str, Any] = read_json(path)
    if differences(found["recipe"], recipe):
        raise ValueError(f"{path} is the result of other settings: choose another folder with --out, or remove it")
    return found


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
