"""Windows of stories to train and to test on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers.core.checks import require, suggest, whole
from examples.catbabi.data.corpus import EOS, PAD, Stories

IGNORE = -100
"""Target of a position that does not count; what torch's cross-entropy ignores."""

MODES = ("lm", "qm")


class Batch(NamedTuple):
    """One window of every row.

    ``targets`` are next tokens, already aligned: position j holds what a model shall say after input j, so the loss
    must not shift them. ``tasks`` holds the number of the task at each position, 0 in padding. ``fresh`` tells whether
    the window begins new text; if not, it continues the batch before, whose final state belongs to it.
    """

    inputs: Tensor  # (B, L) int64
    targets: Tensor  # (B, L) int64
    tasks: Tensor  # (B, L) int64
    fresh: bool


class _Epoch(NamedTuple):
    tokens: np.ndarray  # (T + 1,)
    tasks: np.ndarray  # (T + 1,)
    starts: np.ndarray  # (W, R): where the window of each row begins
    ends: np.ndarray  # (W, R)
    cut: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Stories laid out in windows; batch k is a pure function of the options and k, so training resumes at any batch.

    An epoch shuffles the stories. Carried: they are joined to ``batch`` long rows (per rank), each beginning with a
    story, and cut in windows; a model carries its state from one batch to the next, and ``fresh`` marks where an epoch
    begins. Independent: each window is packed with whole stories, as many as fit, and starts from nothing; a story
    longer than a window is cut and goes on in the next, where its earlier facts are missing (``cut`` counts them).
    Either way every story is there once in each epoch; what is left over is padding. A run that is resumed between two
    windows of carried rows needs the model's state from its checkpoint as well.

    Args:
        stories: of one split.
        batch: rows, on each rank.
        length: tokens of a window; the paper of catbAbI takes 200.
        mode: "lm" counts every token, "qm" only the answers, whose input is "?".
        carried: rows go on from batch to batch; False makes windows independent.
        shuffle: a new order every epoch; False keeps the order of the files.
        seed: of the order.
        rank: of this process.
        ranks: processes that share the stories.

    Raises:
        ValueError: an option outside its range, or an unknown mode.

    Reference: paper section "CatbAbI"; Schlag et al. 2021 (Fast Weight Memory) for windows with carried state.
    """

    stories: Stories
    batch: int
    length: int = 200
    mode: str = "qm"
    carried: bool = True
    shuffle: bool = True
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    _firsts: list[int] = field(init=False, repr=False, default_factory=lambda: [0])
    _held: dict[int, _Epoch] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in {"batch": 1, "length": 1, "rank": 0, "ranks": 1}.items():
            whole(name, getattr(self, name), least)
        whole("seed", self.seed, 0, None)
        require(self.rank < self.ranks, "rank", self.rank, f"below ranks = {self.ranks}")
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}: {suggest(str(self.mode), MODES)}")
        asks = self.stories.question in self.stories.tokens
        require(self.mode == "lm" or asks, "mode", self.mode, "'lm' for stories without a question")
        most = len(self.stories) if self.carried else len(self.stories.tokens)
        rule = f"at most {most} over all ranks: each row begins with a story of its own"
        require(self.batch * self.ranks <= most, "batch", self.batch, rule)

    def batch_at(self, step: int) -> Batch:
        """Return batch number ``step``, counted through all epochs."""
        whole("step", step, 0, None)
        number = self.epoch_of(step)
        return self._cut_out(self._epoch(number), step - self._firsts[number])

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a batch belongs to."""
        firsts = self._firsts
        while firsts[-1] <= step:
            firsts.append(firsts[-1] + len(self._epoch(len(firsts) - 1).starts))
        return int(np.searchsorted(firsts, step, side="right")) - 1

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield batches from ``start`` on, without end."""
        step = start
        while True:
            yield self.batch_at(step)
            step += 1

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch: with ``shuffle=False`` the pass to test on."""
        epoch = self._epoch(number)
        for window in range(len(epoch.starts)):
            yield self._cut_out(epoch, window)

    def cut(self, number: int = 0) -> int:
        """Return how many stories of an epoch end in a later window than they began, on all ranks.

        With carried state that costs nothing but the reach of gradients; in independent windows their facts are lost.
        """
        return self._epoch(number).cut

    def questions(self, batch: Batch) -> Tensor:
        """Return where an answer is asked for, (B, L) bool."""
        return batch.inputs == self.stories.question

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._held:
            self._held.clear()
            self._held[number] = self._lay_out(number)
        return self._held[number]

    def _lay_out(self, number: int) -> _Epoch:
        stories = self.stories
        order = np.arange(len(stories))
        if self.shuffle:
            source = np.random.SeedSequence(self.seed, spawn_key=(number,))
            order = np.random.Generator(np.random.PCG64(source)).permutation(len(stories))
        lengths = stories.lengths[order]
        ends = lengths.cumsum()
        begins = ends - lengths
        places = np.repeat(stories.starts[order] - begins, lengths) + np.arange(ends[-1])
        tokens = np.append(stories.tokens[places], EOS)
        tasks = np.append(np.repeat(stories.tasks[order], lengths), 0)
        starts, stops = self._rows(begins, ends) if self.carried else self._packed(begins, ends)
        first, last = (np.searchsorted(np.sort(starts[stops > starts]), x, side="right") for x in (begins, ends - 1))
        return _Epoch(tokens, tasks, starts, stops, int((first != last).sum()))

    def _rows(self, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share the stories out to rows of about the same length; return where windows begin and end, (W, R)."""
        rows, total = self.batch * self.ranks, ends[-1]
        row = np.arange(rows)
        first = np.searchsorted(begins, row * total / rows)  # the first story that starts in the row's share
        spare = np.maximum.accumulate(np.clip(first - row, 0, len(begins) - rows))  # one story at least in every row
        row_starts = begins[row + spare]
        row_ends = np.append(row_starts[1:], total)
        windows = -(-int((row_ends - row_starts).max()) // self.length)
        starts = row_starts + self.length * np.arange(windows)[:, None]
        return np.minimum(starts, row_ends), np.minimum(starts + self.length, row_ends)

    def _packed(self, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill windows with whole stories; return where windows begin and end, (W, R)."""
        starts = []
        start = full = 0
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if end - start > self.length:
                if begin > start:
                    starts.append(start)
                    start = begin
                while end - start > self.length:
                    starts.append(start)
                    start += self.length
            full = end
        starts.append(start)
        stops = np.minimum(np.append(starts[1:], full), np.array(starts) + self.length)
        rows = self.batch * self.ranks
        missing = np.full(-len(starts) % rows, full)  # windows without a token
        return np.append(starts, missing).reshape(-1, rows), np.append(stops, missing).reshape(-1, rows)

    def _cut_out(self, epoch: _Epoch, window: int) -> Batch:
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        starts, ends = epoch.starts[window, mine, None], epoch.ends[window, mine, None]
        places = starts + np.arange(self.length)
        real = places < ends
        places = np.where(real, places, len(epoch.tokens) - 1)
        inputs = np.where(real, epoch.tokens[places], PAD)
        counts = real if self.mode == "lm" else real & (inputs == self.stories.question)
        targets = np.where(counts, epoch.tokens[np.minimum(places + 1, len(epoch.tokens) - 1)], IGNORE)
        tasks = np.where(real, epoch.tasks[places], 0)
        numbers = (torch.from_numpy(part.astype(np.int64)) for part in (inputs, targets, tasks))
        return Batch(*numbers, fresh=window == 0 or not self.carried)
