"""What every comparison does alike: threads are set, time is taken, Ctrl-C is caught."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from deqlm.comparison.result import Result
from deqlm.comparison.settings import Settings
from deqlm.reporting.blame import blame
from deqlm.reporting.environment import environment
from deqlm.reporting.progress import Progress

__all__ = ["Each", "compare_on_all", "one_line", "torch_threads"]

Each: TypeAlias = Callable[[Any], str | None]
"""Sees the result of a problem, and may say something."""

C = TypeVar("C", bound=Result[Any])
S = TypeVar("S")


def compare_on_all(
    subjects: Sequence[S],
    settings: Settings,
    result: type[C],
    compare_on: Callable[[S, C, Progress], None],
    steps: int,
    each: Each | None = None,
) -> C:
    """Return the result that ``compare_on`` fills, one subject after the other; after Ctrl-C, what was done.

    Args:
        subjects: what is compared on.
        settings: of the comparison.
        result: its class.
        compare_on: appends to the problems of a result what it finds on a subject, and steps the progress bar.
        steps: of the progress bar.
        each: called with every problem's result as soon as it is there; text that it returns is printed above the bar.
    """
    begun = time.perf_counter()
    with torch_threads(settings.threads), Progress(steps, settings.progress) as bar:
        found = result(settings=settings.to_dict(), environment=environment(settings.device))
        try:
            for subject in subjects:
                compare_on(subject, found, bar)
                said = None if each is None else each(found.problems[-1])
                if said is not None:
                    bar.log(said)
        except KeyboardInterrupt:
            found.interrupted = True
    found.seconds = time.perf_counter() - begun
    return found


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Give torch so many threads, >= 1, for a while; None leaves its settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(error: BaseException) -> str:
    """Return the kind and the first line of an exception's message, and where in the user's own code it was raised."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    where = blame(error)
    return f"{where}: {told}" if where else told
