"""Help whose prose follows the terminal, and whose examples stay as they are written."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from itertools import groupby
from typing import Any

__all__ = ["ProseFormatter"]

DEEPEST = 2
"""Spaces before prose; what stands deeper is code."""

WIDEST = 118


class ProseFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs anew to the width of the terminal, at most 118 columns; commands and code are left alone."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, **{"width": min(shutil.get_terminal_size().columns - 2, WIDEST), **more})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        blocks = groupby(lines, key=lambda line: len(line) - len(line.lstrip()) if line.strip() else -1)
        return "\n".join(_filled(list(block), depth, width) for depth, block in blocks)


def _filled(lines: list[str], depth: int, width: int) -> str:
    """Return lines of one indentation, -1 for empty ones, as a paragraph where they are prose that is too wide."""
    fits = all(len(line) <= width for line in lines)
    if fits or not 0 <= depth <= DEEPEST or any(line.lstrip().startswith("deqlm ") for line in lines):
        return "\n".join(lines)
    edge = " " * depth
    text = " ".join(line.strip() for line in lines)
    more = {"initial_indent": edge, "subsequent_indent": edge, "break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, width, **more)
