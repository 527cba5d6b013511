"""Pages of markdown whose marked blocks are made by a program; the words around them are a person's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["blank", "drawn", "redraw", "table"]


def redraw(path: Path, blocks: Mapping[str, str], new: str | None = None) -> Path:
    r"""Write a page with its blocks drawn anew; the text around them stays.

    A block lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Args:
        path: the page.
        blocks: markdown of every block, by name.
        new: the text to begin with where there is no page yet, such as `blank` makes; None asks for a page.

    Raises:
        ValueError: the page lacks a marker.
        FileNotFoundError: there is no page, and ``new`` is None.

    Examples:
        >>> redraw(Path("page.md"), {"sizes": "small"}, new=blank("Sizes", {"sizes": "How large"})).read_text()
        '# Sizes\n\n## How large\n\n<!-- begin sizes -->\nsmall\n<!-- end sizes -->\n'
    """
    text = drawn(path, blocks, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def drawn(path: Path, blocks: Mapping[str, str], new: str | None = None) -> str:
    """Return the text that `redraw` writes, and write nothing.

    Raises:
        ValueError, FileNotFoundError: as for `redraw`.
    """
    text = new if new is not None and not path.exists() else path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", flags=re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{path} has no block {name!r}: it needs <!-- begin {name} --> and <!-- end {name} -->")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def blank(title: str, blocks: Mapping[str, str]) -> str:
    """Return a page without words: a title, and per name an empty block under its heading, if that is not empty."""
    parts = [f"# {title}\n"]
    for name, heading in blocks.items():
        parts.append((f"## {heading}\n\n" if heading else "") + f"<!-- begin {name} -->\n<!-- end {name} -->\n")
    return "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Return a markdown table; its first column to the left and, with ``numbers``, the others to the right.

    Examples:
        >>> print(table(["a", "b"], [["x", "1"]]))
        | a | b |
        |---|---:|
        | x | 1 |
    """
    lines = [list(head), ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    first, rule, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([first, rule.replace(" ", ""), *rest])
