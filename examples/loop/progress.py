"""A progress bar on stderr, for trainings that take longer than a few seconds."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Bar"]

DELAY = 3.0
"""Seconds before which nothing is drawn."""
INTERVAL = 0.1
"""Least seconds between two drawings."""


class Bar:
    """Draws with tqdm where it is installed.

    Args:
        total: steps.
        first: steps that an earlier run took.
        name: stands before the bar.
        show: True draws, False never, None where stderr is a terminal.
    """

    def __init__(self, total: int, *, first: int, name: str, show: bool | None) -> None:
        self._bar: Any = None
        if show is False or (show is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        more = {"unit": "step", "dynamic_ncols": True, "leave": False, "delay": DELAY, "mininterval": INTERVAL}
        self._bar = tqdm(total=total, initial=first, desc=name or None, file=sys.stderr, **more)

    def reach(self, step: int, **values: str) -> None:
        """Go to ``step`` and show the values."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
