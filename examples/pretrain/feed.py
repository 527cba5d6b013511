"""What a process reads in a step: its rows of the batch of that step, or the next windows of its stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from examples.pretrain.data import PackedStream, Windows
from examples.pretrain.documents import CorpusError
from examples.pretrain.processes import World
from examples.pretrain.settings import Settings

__all__ = ["Feed", "StreamFeed", "WindowFeed"]


class Feed(Protocol):
    """The data of one process.

    Attributes:
        identity: JSON data that tells this corpus from another.
        end: the id behind every document.
        held_count: held-out windows.
    """

    identity: dict[str, Any]
    end: int
    held_count: int

    def batches(self, step: int, passes: int) -> list[Tensor]:
        """Return the windows of a step, (rows, length) for each pass."""
        ...

    def held(self, rows: list[int]) -> Tensor:
        """Return held-out windows."""
        ...

    def state(self) -> Any:
        """Return where the feed is, as JSON data; every process must call."""
        ...

    def go_on(self, state: Any) -> None:
        """Go on where ``state`` was taken."""
        ...


class WindowFeed:
    """Rows of a batch that depends on the step alone: pass m of process r has its part of the m-th part of it."""

    def __init__(self, windows: Windows, settings: Settings, here: World) -> None:
        self.windows, self.rows, self.here = windows, settings.rows, here
        self.identity = windows.shards.identity
        self.end = windows.shards.end
        self.held_count = windows.held_count()

    def batches(self, step: int, passes: int) -> list[Tensor]:
        """Return the windows of a step."""
        at_once = self.rows * self.here.size
        first = step * passes * at_once + self.here.rank * self.rows
        starts = [first + number * at_once for number in range(passes)]
        return [self.windows.train(range(start, start + self.rows)) for start in starts]

    def held(self, rows: list[int]) -> Tensor:
        """Return held-out windows."""
        return torch.cat([self.windows.held(range(row, row + 1)) for row in rows])

    def state(self) -> None:
        """Return nothing: the step says it all."""
        return

    def go_on(self, state: Any) -> None:
        """Do nothing."""


class StreamFeed:
    """The next windows of a stream, which the first windows of the corpus, held out, do not enter."""

    def __init__(self, stream: PackedStream, settings: Settings, here: World) -> None:
        self.stream, self.rows, self.here = stream, settings.rows, here
        self.identity = {"source": stream.source, "stream": True}
        self.end = stream.tokenizer.end
        whole = PackedStream(stream.source, stream.tokenizer, stream.length)
        count = max(1, settings.held_out // stream.length)
        self._held = [window for window, _ in zip(whole, range(count), strict=False)]
        if not self._held:
            raise CorpusError(f"{stream.source or 'the corpus'} holds no window of {stream.length} tokens")
        self.held_count = len(self._held)
        self._out = {window.numpy().tobytes() for window in self._held}
        self._loader = _loader(stream, settings.workers)
        self._windows: Iterator[Tensor] | None = None

    def batches(self, step: int, passes: int) -> list[Tensor]:
        """Return the next windows; behind the end of the corpus it begins again."""
        return [torch.stack([self._next() for _ in range(self.rows)]) for _ in range(passes)]

    def _next(self) -> Tensor:
        for _ in range(3):
            if self._windows is None:
                self._windows = iter(self._loader)
            for window in self._windows:
                if window.numpy().tobytes() not in self._out:
                    return window
            self._windows = None
        raise CorpusError(f"{self.stream.source or 'the corpus'} has no window for reader {self.here.rank}")

    def held(self, rows: list[int]) -> Tensor:
        """Return held-out windows."""
        return torch.stack([self._held[row] for row in rows])

    def state(self) -> list[Any]:
        """Return where the readers of all processes are."""
        mine = self._loader.state_dict()
        if self.here.size == 1:
            return [mine]
        found: list[Any] = [None] * self.here.size
        torch.distributed.all_gather_object(found, mine)
        return found

    def go_on(self, state: list[Any]) -> None:
        """Go on where the readers of all processes were."""
        if len(state) != self.here.size:
            raise CorpusError(f"a stream of {len(state)} processes must go on with as many, got {self.here.size}")
        self._loader.load_state_dict(state[self.here.rank])


def _loader(stream: PackedStream, workers: int) -> Any:
    if not workers:
        return stream
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise CorpusError(f"workers={workers} needs the package torchdata: pip install torchdata") from error
    return StatefulDataLoader(stream, batch_size=None, num_workers=workers)
