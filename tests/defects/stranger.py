"""One row of the table of our own faults: what version 0.1 did, what holds now, and what shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GROUPS", "Stranger"]

GROUPS = {
    "words": "Words that were not true",
    "gradients": "Gradients that were not exact",
    "input": "Crashes, corruption, hostile input",
    "rows": "Rows, counts and options",
    "defaults": "What a default owes",
}


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A fault of ours, found by somebody else's layer, bug report, client or attack.

    Attributes:
        group: a key of `GROUPS`.
        was: what version 0.1 did, one sentence.
        now: what holds now, one sentence.
        shown: the test that fails where the fault is back, as "folder/file.py::name" below tests/.
    """

    group: Literal["words", "gradients", "input", "rows", "defaults"]
    was: str
    now: str
    shown: str
