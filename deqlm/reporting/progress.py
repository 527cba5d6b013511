"""A progress bar on stderr, when there is something to draw it with and somebody to look at it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Counts steps; draws with tqdm where it is installed.

    Args:
        total: steps.
        show: True draws always, False never, None when stderr is a terminal.
        name: stands before the bar.
        unit: what a step is called.
        first: steps that were taken before.
        delay: seconds before which nothing is drawn.
    """

    def __init__(
        self,
        total: float,
        show: bool | None = None,
        *,
        name: str = "",
        unit: str = "run",
        first: float = 0,
        delay: float = 0.0,
    ) -> None:
        self._bar: Any = None
        if show is False or (show is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        look = {"file": sys.stderr, "unit": unit, "dynamic_ncols": True, "leave": False, "delay": delay}
        self._bar = tqdm(total=total, initial=first, desc=name or None, **look)

    def step(self, text: str, count: int = 1) -> None:
        """Advance by ``count`` steps and say what is under way."""
        if self._bar is not None:
            self.reach(self._bar.n + count, text)

    def reach(self, position: float, text: str = "") -> None:
        """Go to ``position``, counted as ``total`` is, and say what is under way."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(position - self._bar.n)

    def log(self, line: str) -> None:
        """Print a line on stdout, above the bar where one is drawn."""
        print(line) if self._bar is None else self._bar.write(line)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
