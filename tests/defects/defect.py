"""One row of the table: what a peer gets wrong, what deqlm does instead, and the checks that show both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["FAMILY", "STATES", "STUDY", "Check", "Defect"]

Check = Callable[[], None]

FAMILY = "The implicit SSM and the implicit transformer: layers, backbone, modes, generation, Hugging Face"
STUDY = "The paper's experiments on state tracking and reasoning"
STATES = "States along the way: their number, their gradients, and losses on them"


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A known defect.

    Attributes:
        id: "1" to "43", or "V1" to "V26".
        peer: package and version.
        kind: silently wrong, crash or hang, slower than needed, or interface.
        does: what the peer does, one sentence.
        rule: what deqlm does in that situation, one sentence.
        ours: shows the rule; fails where deqlm breaks it.
        theirs: shows the defect, with the peer run beside; fails where it is not there.
        needs: packages that ``theirs`` runs.
        slow: ``theirs`` takes more than a few seconds.
        later: subject of the work that brings the feature and its test, where there is no ``ours``.
        note: why the defect is not shown here, where there is no ``theirs``.
    """

    id: str
    peer: str = "torchdeq 0.1.0"
    kind: Literal["silent", "crash", "slow", "interface"]
    does: str
    rule: str
    ours: Check | None = None
    theirs: Check | None = None
    needs: str = "torchdeq"
    slow: bool = False
    later: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """ "torchdeq 0.1.0, defect 4" or "V12"."""
        return self.id if self.id.startswith("V") else f"{self.peer}, defect {self.id}"
