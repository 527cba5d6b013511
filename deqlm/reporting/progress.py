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
    """

    def __init__(self, total: int, show: bool | None = None) -> None:
        self._bar: Any = None
        if show is False or (show is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=total, file=sys.stderr, unit="run", dynamic_ncols=True, leave=False)

    def step(self, text: str, count: int = 1) -> None:
        """Advance by ``count`` runs and say what is under way."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
