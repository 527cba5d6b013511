"""What the solves of one ``generate`` came to, token by token."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from deqlm.models.failing import ASK, advice
from deqlm.sequence.modes import Mode
from deqlm_solvers import ConvergenceWarning, Solution, Solve, Status
from deqlm_solvers.core.policy import user_level

__all__ = ["Beside", "SolveRecord"]


class SolveRecord:
    """Steps and statuses of the forwards of one ``generate``, in their order.

    A column is the prompt, or a token that was fed back. The prompt may take several forwards: their steps are summed
    and the worst status stands.

    Attributes:
        steps: (rows,) int64 of each column.
        status: (rows,) int8 of each column.

    Examples:
        >>> SolveRecord().steps
        []
    """

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.status: list[Tensor] = []
        self._open = False

    def add(self, sol: Solution) -> None:
        """Take down what the solve of a forward came to."""
        if self._open:
            self.add_beside(sol)
            return
        self.steps.append(sol.steps)
        self.status.append(sol.status)
        self._open = True

    def add_beside(self, sol: Solution) -> None:
        """Take down a solve that belongs to the last column, such as that of a text to be guided away from."""
        self.steps[-1] = self.steps[-1] + sol.steps
        self.status[-1] = torch.maximum(self.status[-1], sol.status)

    def close(self) -> None:
        """Say that the next forward is another column."""
        self._open = False

    def warn(self, new: Tensor | None, ends: Any, how: Solve, modes: tuple[Mode, Mode]) -> None:
        """Warn once of all solves that did not converge; those of tokens behind the end of a row do not count.

        Args:
            new: the tokens that were made, (rows, columns); None where rows are no texts, as with beams.
            ends: the token or tokens that end a text, or None.
            how: solver and stop in use.
            modes: how the prompt and how new tokens were cut.
        """
        status = torch.stack(self.status, dim=1)
        counts = torch.ones_like(status, dtype=torch.bool)
        if new is not None and ends is not None:
            over = torch.isin(new, torch.as_tensor(ends, device=new.device)).long().cumsum(1)
            counts[:, 1:] = (over[:, :-1] == 0).to(counts.device)
        failed = (status > int(Status.BUDGET)) & counts
        if not bool(failed.any()):
            return
        remedy = advice(status.masked_fill(~failed, 0), how, modes[0 if bool(failed[:, 0].any()) else 1])
        warnings.warn(_words(status, failed, counts, remedy), ConvergenceWarning, stacklevel=user_level())


class Beside:
    """Takes down solves beside those of a record.

    Args:
        record: that record.
    """

    def __init__(self, record: SolveRecord) -> None:
        self.record = record

    def add(self, sol: Solution) -> None:
        """Take down what the solve of a forward came to."""
        self.record.add_beside(sol)


def _words(status: Tensor, failed: Tensor, counts: Tensor, remedy: str) -> str:
    kinds = [
        f"{int(n)} {kind.name}" for kind in Status if (n := ((status == int(kind)) & failed).sum()) and kind.failed
    ]
    tokens, of = int(failed[:, 1:].sum()), int(counts[:, 1:].sum())
    parts = [f"{int(failed[:, 0].sum())} of {len(status)} prompts"]
    parts += [f"{tokens} of {of} tokens that were fed back"] if of else []
    rows = f"in {int(failed.any(1).sum())} of {len(status)} rows"
    return (
        f"generate: the solves of {' and '.join(parts)}, {rows}, did not converge ({', '.join(kinds)}); the text "
        "may be another one than that of the fixed points, and another one without a cache or in other chunks. "
        f"{remedy} print({ASK}) says why; "
        "return_dict_in_generate=True returns status and steps of each"
    )
