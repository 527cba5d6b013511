"""The log of a training: CSV while it runs, JSON at every checkpoint, TensorBoard if asked for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from deqlm.training import write_atomically

__all__ = ["Log"]

Record = dict[str, Any]


class Log:
    """Records of training and results of evaluations; log.csv and log.json where there is a folder.

    Args:
        folder: where to write, or None.
        head: JSON data that stands before the records in log.json.
        records: those of an earlier run of the same training.
        evaluations: likewise.
        tensorboard: also write event files into the folder "tensorboard" there.

    Raises:
        ValueError: TensorBoard without a folder.
        ImportError: TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        head: dict[str, Any],
        *,
        records: list[Record],
        evaluations: list[Record],
        tensorboard: bool = False,
    ) -> None:
        self.folder, self.head = folder, head
        self.records, self.evaluations = list(records), list(evaluations)
        self._board = _board(folder, self.records[-1]["step"] + 1 if self.records else 0) if tensorboard else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # what a run that was killed wrote behind its checkpoint goes away
            write_atomically(folder / "log.csv", _lines(self.records, head=True))

    def record(self, record: Record) -> None:
        """Add a record, with its step under "step"."""
        self.records.append(record)
        if self.folder is not None:
            with (self.folder / "log.csv").open("ab") as file:
                file.write(_lines([record], head=len(self.records) == 1))
        self._show("train", record)

    def evaluation(self, result: Record) -> None:
        """Add what an evaluation returned, with its step under "step"."""
        self.evaluations.append(result)
        self._show("evaluation", result)

    def save(self, result: dict[str, Any] | None = None) -> None:
        """Write log.json, with the ``result`` of a training that has ended."""
        if self.folder is not None:
            whole = {**self.head, "records": self.records, "evaluations": self.evaluations, "result": result}
            write_atomically(self.folder / "log.json", (json.dumps(whole, indent=1) + "\n").encode())

    def close(self) -> None:
        """Close the event files."""
        if self._board is not None:
            self._board.close()

    def _show(self, kind: str, record: Record) -> None:
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, record["step"])


def _lines(records: list[Record], *, head: bool) -> bytes:
    text = io.StringIO(newline="")
    if records:
        writer = csv.DictWriter(text, records[0].keys(), lineterminator="\n")
        if head:
            writer.writeheader()
        writer.writerows(records)
    return text.getvalue().encode()


def _board(folder: Path | None, step: int) -> Any:
    if folder is None:
        raise ValueError("tensorboard=True needs a folder, got None")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs the package tensorboard: pip install 'deqlm[train]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
