"""Tokens in memory-mapped shards, and batches that depend on the step alone; or a stream that remembers where it is."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from deqlm.training import write_atomically
from examples.pretrain.documents import CorpusError, Tokenizer, documents

__all__ = ["PackedStream", "Shards", "labels_of", "prepare"]

INDEX = "index.json"
SHARD_TOKENS = 2**26
IGNORED = -100


def prepare(source: str | None, tokenizer: Tokenizer, folder: Path, *, shard_tokens: int = SHARD_TOKENS) -> Shards:
    """Return the shards of a corpus in ``folder``, written now if they are not there yet.

    Documents stand one behind another, each with the tokenizer's end behind it. The index is written last, so that a
    folder without one is begun anew.

    Args:
        source: see `documents`.
        tokenizer: makes the ids.
        folder: of this corpus alone.
        shard_tokens: tokens per file.

    Raises:
        CorpusError: a corpus that is empty or cannot be read, or a folder with the shards of another one.
    """
    about = {"source": source, "tokenizer": hashlib.sha256(tokenizer.name.encode()).hexdigest(), "end": tokenizer.end}
    if (folder / INDEX).exists():
        found = json.loads((folder / INDEX).read_text())
        if found["about"] != about:
            raise CorpusError(f"{folder} holds the shards of another corpus: {found['about']}; choose another folder")
        return Shards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    checksum, counts, count = hashlib.sha256(), [], 0
    for number, part in enumerate(_parts(_joined(source, tokenizer), shard_tokens)):
        data = np.asarray(part, dtype=dtype).tobytes()
        write_atomically(folder / f"{number:05d}.bin", data)
        checksum.update(data)
        counts.append(len(part))
        count += len(part)
    if not count:
        raise CorpusError(f"{source or 'the corpus'} is empty: no document has a token")
    index = {"about": about, "dtype": dtype.str, "counts": counts, "sha256": checksum.hexdigest()}
    write_atomically(folder / INDEX, json.dumps(index).encode())
    return Shards(folder)


def _joined(source: str | None, tokenizer: Tokenizer) -> Iterator[int]:
    for text in documents(source):
        if ids := tokenizer.encode(text):
            yield from ids
            yield tokenizer.end


def _parts(ids: Iterator[int], size: int) -> Iterator[list[int]]:
    while part := list(itertools.islice(ids, size)):
        yield part


def labels_of(ids: Tensor, end: int) -> Tensor:
    """Return the labels of windows (B, L): the ids, without the first of each document, which nothing foretells."""
    labels = ids.clone()
    labels[:, 1:].masked_fill_(ids[:, :-1] == end, IGNORED)
    return labels


class Shards:
    """All tokens of a corpus, of which only those that are asked for are read.

    Args:
        folder: that `prepare` wrote.

    Attributes:
        count: tokens.
        identity: JSON data that tells this corpus from another.
        end: the id behind every document.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        self.identity = {"sha256": index["sha256"], "tokenizer": index["about"]["tokenizer"]}
        self.end = index["about"]["end"]
        self._starts = np.cumsum([0, *index["counts"]])
        self.count = int(self._starts[-1])
        files = sorted(folder.glob("*.bin"))
        dtype = np.dtype(index["dtype"])
        sizes = [file.stat().st_size // dtype.itemsize for file in files]
        if sizes != index["counts"]:
            raise CorpusError(f"{folder} is damaged: its files hold {sizes} tokens of {index['counts']}; remove it")
        self._maps = [np.memmap(file, dtype=dtype, mode="r") for file in files]

    def window(self, start: int, length: int) -> np.ndarray:
        """Return ``length`` tokens from ``start`` on, int64."""
        parts = []
        while length > 0:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[shard])
            part = self._maps[shard][offset : offset + length]
            parts.append(np.asarray(part, dtype=np.int64))
            start, length = start + len(part), length - len(part)
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a corpus, cut once, in an order of their own in each epoch.

    A batch is a function of seed and step, so that a training goes on exactly where it stopped, on any number of
    processes: these share the rows of one and the same batch.

    Args:
        shards: the tokens.
        length: of a window.
        held_out: tokens at the end that are not trained on.
        seed: of the order.
    """

    shards: Shards
    length: int
    held_out: int
    seed: int = 0

    def __post_init__(self) -> None:
        least = self.held_out + self.length
        if self.shards.count < least or self.held_out < self.length:
            raise CorpusError(
                f"the corpus must hold at least {least} tokens for windows of {self.length} and {self.held_out} held "
                f"out (a window at least), got {self.shards.count}"
            )

    @property
    def train_count(self) -> int:
        """Windows per epoch."""
        return (self.shards.count - self.held_out) // self.length

    def train(self, rows: range) -> Tensor:
        """Return the training windows of these numbers, counted over all epochs, (B, length) int64."""
        return self._stacked([self._place(number) * self.length for number in rows])

    def held(self, rows: range, length: int | None = None) -> Tensor:
        """Return held-out windows, of ``length`` tokens if that is given, (B, length) int64."""
        length = self.length if length is None else length
        first = self.shards.count - self.held_out
        return self._stacked([first + number * length for number in rows], length)

    def held_count(self, length: int | None = None) -> int:
        """Return how many held-out windows there are."""
        return self.held_out // (self.length if length is None else length)

    def _place(self, number: int) -> int:
        """Return which window stands at ``number``: x -> a x + b modulo the count, a and b of the epoch."""
        count = self.train_count
        epoch, place = divmod(number, count)
        draw = np.random.default_rng([self.seed, epoch])
        factor = int(draw.integers(1, count + 1))
        while math.gcd(factor, count) != 1:
            factor += 1
        return (factor * place + int(draw.integers(count))) % count

    def _stacked(self, starts: list[int], length: int | None = None) -> Tensor:
        length = self.length if length is None else length
        if not starts:
            return torch.empty(0, length, dtype=torch.int64)
        return torch.from_numpy(np.stack([self.shards.window(start, length) for start in starts]))


class PackedStream(IterableDataset[Tensor]):
    """Windows of a corpus that is tokenised while it is read, for one that is too large to be prepared.

    Document number i goes to the reader i modulo the number of readers (processes times workers). It remembers where
    it is: with ``torchdata.stateful_dataloader.StatefulDataLoader`` every worker goes on exactly there, on as many
    processes and workers as before.

    Args:
        source: see `documents`.
        tokenizer: makes the ids.
        length: tokens per window.
        rank: number of this process.
        processes: how many there are.
    """

    def __init__(
        self, source: str | None, tokenizer: Tokenizer, length: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self.source, self.tokenizer, self.length = source, tokenizer, length
        self.rank, self.processes = rank, processes
        self._document, self._left = 0, np.empty(0, dtype=np.int64)
        self._readers: int | None = None

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers, reader = self.processes * workers, self.rank * workers + number
        if self._readers not in (None, readers):
            raise CorpusError(f"a stream of {self._readers} readers must go on with as many, got {readers}")
        self._readers = readers
        yield from self._cut(self._left, self._document)
        for index, text in enumerate(documents(self.source)):
            if index < self._document or index % readers != reader:
                continue
            ids = np.asarray([*self.tokenizer.encode(text), self.tokenizer.end], dtype=np.int64)
            yield from self._cut(np.concatenate([self._left, ids]), index + 1)
        self._document = 0

    def _cut(self, ids: np.ndarray, following: int) -> Iterator[Tensor]:
        # the state says what is left before a window is given away: whoever stops behind it does not see it again
        self._document = following
        while len(ids) >= self.length:
            window, ids = ids[: self.length], ids[self.length :]
            self._left = ids
            yield torch.from_numpy(window.copy())
        self._left = ids

    def state_dict(self) -> dict[str, Any]:
        """Return where this reader is, as plain data."""
        return {"document": self._document, "left": self._left.tolist(), "readers": self._readers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self._document, self._readers = state["document"], state["readers"]
        self._left = np.asarray(state["left"], dtype=np.int64)


def shards_folder(base: Path, source: str | None, tokenizer: Tokenizer) -> Path:
    """Return the folder of the shards of a corpus below ``base``."""
    key = json.dumps([source and os.path.abspath(source) if not str(source).startswith("hf:") else source])
    return base / hashlib.sha256((key + tokenizer.name).encode()).hexdigest()[:16]
