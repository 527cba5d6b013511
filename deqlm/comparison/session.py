"""What every comparison does alike: options are checked, threads set, time taken, Ctrl-C caught."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from deqlm.comparison.base import Result
from deqlm.comparison.problem import Setting
from deqlm.comparison.spec import parse_device, parse_dtype
from deqlm.reporting.environment import environment
from deqlm.reporting.progress import Progress
from deqlm_solvers.core.checks import require, whole

__all__ = ["QUICK_REPEATS", "Session", "torch_threads"]

QUICK_REPEATS = 2
"""Most timed runs of a quick comparison."""

C = TypeVar("C", bound=Result[Any])
S = TypeVar("S")


@dataclass(frozen=True)
class Session:
    """The options that comparisons share, checked.

    Attributes:
        setting: what problems are built for.
        repeats: timed runs, >= 1.
        threads: threads of torch for the run; None leaves torch's setting.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Raises:
        TypeError, ValueError: bad repeats.
    """

    setting: Setting
    repeats: int
    threads: int | None
    progress: bool | None

    @classmethod
    def of(
        cls,
        *,
        dtype: str | torch.dtype,
        device: str | torch.device,
        batch: int | None,
        seed: int,
        repeats: int,
        quick: bool,
        threads: int | None,
        progress: bool | None,
    ) -> Session:
        """Return the session of options as `deqlm.comparison.compare` has them.

        Raises:
            TypeError, ValueError: bad dtype, device, batch, seed or repeats.
        """
        whole("repeats", repeats, 1)
        setting = Setting(dtype=parse_dtype(dtype), device=parse_device(device), batch=batch, seed=seed)
        return cls(setting, min(repeats, QUICK_REPEATS) if quick else repeats, threads, progress)

    def over(
        self, subjects: Sequence[S], result: type[C], compare_on: Callable[[S, C, Progress], None], steps: int
    ) -> C:
        """Return the result that ``compare_on`` fills, one subject after the other; after Ctrl-C, what was done.

        Args:
            subjects: what is compared on.
            result: its class.
            compare_on: appends to the problems of a result what it finds on a subject, and steps the progress bar.
            steps: of the progress bar.

        Raises:
            ValueError: bad threads.
        """
        begun = time.perf_counter()
        with torch_threads(self.threads), Progress(steps, self.progress) as bar:
            made = result(settings=self._described(), environment=environment(self.setting.device))
            try:
                for subject in subjects:
                    compare_on(subject, made, bar)
            except KeyboardInterrupt:
                made.interrupted = True
        made.seconds = time.perf_counter() - begun
        return made

    def _described(self) -> dict[str, Any]:
        return {
            "dtype": str(self.setting.dtype).removeprefix("torch."),
            "device": str(self.setting.device),
            "batch": self.setting.batch,
            "seed": self.setting.seed,
            "repeats": self.repeats,
            "threads": self.threads,
        }


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Give torch so many threads for a while; None leaves its setting.

    Raises:
        ValueError: count < 1.
    """
    ok = count is None or (isinstance(count, int) and not isinstance(count, bool) and count >= 1)
    require(ok, "threads", count, "a whole number >= 1, or None")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
