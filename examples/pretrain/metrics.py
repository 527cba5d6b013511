"""What a training says of itself: a line of JSON per record, a bar on the terminal, TensorBoard if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deqlm.training import write_atomically

__all__ = ["Metrics"]


class Metrics:
    """Writes metrics.jsonl, of which a training that goes on keeps what stands before its checkpoint.

    Args:
        folder: of the training; None writes nothing, as in all processes but the first.
        step: steps that were taken.
        tensorboard: also write event files.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, step: int, *, tensorboard: bool = False) -> None:
        self._file = None if folder is None else folder / "metrics.jsonl"
        self._board: Any = None
        if folder is None or self._file is None:
            return
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if _step(line) <= step]
        write_atomically(self._file, "".join(f"{line}\n" for line in kept).encode())
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Add a record, with its step under "step"."""
        if self._file is None:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **record}) + "\n")
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, record["step"])

    def close(self) -> None:
        """Close the event files."""
        if self._board is not None:
            self._board.close()


def _step(line: str) -> int:
    """Return the step of a line; one beyond all steps where a kill has cut it."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62
