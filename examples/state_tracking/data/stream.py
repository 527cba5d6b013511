"""Endless batches that can be taken up at any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from deqlm_solvers.core.checks import require, whole
from examples.state_tracking.data.problem import WordProblem, Words


class Stream(IterableDataset):
    """Batches of one word problem, drawn as they are asked for; nothing is stored.

    Batch k is a pure function of (seed, split, rank, k, batch, length), so a run that stops after batch k goes on with
    ``start=k`` as if nothing had happened. Workers of a ``DataLoader`` share the batches out among themselves, and the
    loader puts them back in order: the sequence of batches does not depend on the number of workers. Every rank has its
    own sequence. Use ``DataLoader(stream, batch_size=None, num_workers=...)``: an item is a whole batch.

    Args:
        problem: what to draw.
        batch: sequences per batch, on each rank.
        length: tokens per sequence.
        seed: of the experiment.
        split: "train", "valid" or "test".
        rank: of this process; None asks ``torch.distributed``, and is 0 where that is not running.
        start: number of the first batch.

    Examples:
        >>> from examples.state_tracking.data.problem import word_problem
        >>> stream = Stream(word_problem("S3"), batch=2, length=8, seed=1)
        >>> batches = iter(stream)
        >>> x, y = next(batches)
        >>> stream.state_dict()["step"]
        1
    """

    def __init__(
        self,
        problem: WordProblem,
        *,
        batch: int,
        length: int,
        seed: int = 0,
        split: str = "train",
        rank: int | None = None,
        start: int = 0,
    ) -> None:
        whole("start", start, 0, None)
        self.problem, self.batch, self.length = problem, batch, length
        self.seed, self.split, self.step = seed, split, start
        self.rank = _this_rank() if rank is None else rank
        self.batch_at(start)  # refuses wrong options here, not in a worker

    def batch_at(self, step: int) -> Words:
        """Return batch number ``step``."""
        return self.problem.draw(self.batch, self.length, seed=self.seed, step=step, split=self.split, rank=self.rank)

    def __iter__(self) -> Iterator[Words]:
        """Yield batches from ``step`` on; in the main process ``step`` counts along, in workers it stays."""
        worker = get_worker_info()
        if worker is not None:
            step = self.step + worker.id
            while True:
                yield self.batch_at(step)
                step += worker.num_workers
        while True:
            self.step += 1
            yield self.batch_at(self.step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on: the number of the next batch, and what the stream is.

        With workers, which run ahead, only the loop knows how many batches were used: set ``step`` from there first.
        """
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken. Iterators that exist keep their place.

        Raises:
            ValueError: the state of another stream; the difference is named.
        """
        for name, mine in self._identity().items():
            require(name in state, "state", sorted(state), f"the state of a stream, with {name!r}")
            require(state[name] == mine, name, mine, f"{state[name]!r} to go on with this state")
        whole("step", state.get("step"), 0, None)
        self.step = state["step"]

    def _identity(self) -> dict[str, Any]:
        problem = {"problem": self.problem.name, "p": self.problem.p}
        names = ("batch", "length", "seed", "split", "rank")
        return {**problem, **{name: getattr(self, name) for name in names}}


def _this_rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
