"""Render the tutorials: run each script cell by cell and write its page, with real outputs and plots.

    python docs/tutorials/render.py            render every tutorial
    python docs/tutorials/render.py NAME ...   render some
    python docs/tutorials/render.py --check    run them and fail if a committed page is out of date

A tutorial is a script in percent format. Cells begin with ``# %%``; ``# %% [markdown]`` cells hold comments. What a
cell prints, and the matplotlib figures it leaves open, stand below it on the page. ``# %% volatile`` marks a cell whose
printed numbers may differ between machines: --check compares the words of such an output and not its numbers. What a
cell marked ``# %% free`` prints is not compared at all. Pictures are checked for being there; their points differ in
low bits between machines.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "Agg"

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))  # tutorials may import the examples
CELL = re.compile(r"^# %%(.*)$", flags=re.MULTILINE)
VOLATILE = "<!-- numbers vary between machines -->"
FREE = "<!-- output varies between machines -->"
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?( ?(us|ms|s)\b)?")
SVG_SETTINGS = {"svg.hashsalt": "deqlm", "svg.fonttype": "path", "font.size": 9}


@dataclass(frozen=True)
class Cell:
    """One cell of a script."""

    text: str
    line: int
    markdown: bool
    volatile: bool
    free: bool


def read_cells(script: str) -> list[Cell]:
    """Split a script in percent format; what stands before the first cell is left out."""
    marks = list(CELL.finditer(script))
    cells = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        text = script[mark.end() : following.start() if following else len(script)].strip("\n")
        options = mark[1].split()
        unknown = set(options) - {"[markdown]", "volatile", "free"}
        line = script.count("\n", 0, mark.start()) + 1
        if unknown:
            raise ValueError(f"line {line}: unknown cell option {sorted(unknown)}; known: [markdown], volatile, free")
        lead = script[mark.end() :]
        first = line + len(lead) - len(lead.lstrip("\n"))
        cells.append(Cell(text, first, "[markdown]" in options, "volatile" in options, "free" in options))
    return cells


def prose(cell: Cell) -> str:
    """Return a markdown cell without its comment signs."""
    return "\n".join(re.sub(r"^# ?", "", line) for line in cell.text.splitlines())


def render(path: Path, folder: Path) -> str:
    """Run a tutorial, write its pictures into ``folder``, and return the text of its page."""
    import matplotlib.pyplot as plt

    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    parts = [f"<!-- rendered from {path.name} by render.py; change the script, not this page -->"]
    pictures = 0
    with plt.rc_context(SVG_SETTINGS), tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for cell in read_cells(path.read_text()):
            if cell.markdown:
                parts.append(prose(cell))
                continue
            parts.append(f"```python\n{cell.text}\n```")
            printed = run_cell(cell, path, namespace)
            if printed:
                mark = f"{VOLATILE}\n" if cell.volatile else f"{FREE}\n" if cell.free else ""
                parts.append(f"{mark}```text\n{printed}\n```")
            for number in plt.get_fignums():
                pictures += 1
                figure = plt.figure(number)
                name = f"{path.stem}-{pictures}.svg"
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
                title = next((axis.get_title() for axis in figure.axes if axis.get_title()), path.stem)
                parts.append(f"![{title}]({name})")
            plt.close("all")
    return "\n\n".join(parts) + "\n"


def run_cell(cell: Cell, path: Path, namespace: dict[str, Any]) -> str:
    """Execute a code cell; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (cell.line - 1) + cell.text, path, "exec"), namespace)
    return "\n".join(line.rstrip() for line in printed.getvalue().rstrip().splitlines())


def comparable(page: str) -> str:
    """Return a page without its free outputs, and with the numbers and column widths of volatile ones masked."""

    def masked(match: re.Match[str]) -> str:
        return re.sub(r"[ -]+", " ", NUMBER.sub("#", match[0]))

    page = re.sub(rf"{FREE}\n```text\n.*?\n```", FREE, page, flags=re.DOTALL)
    return re.sub(rf"{VOLATILE}\n```text\n.*?\n```", masked, page, flags=re.DOTALL)


def tutorials() -> list[Path]:
    """Return the scripts of this folder that are tutorials."""
    return sorted(path for path in HERE.glob("*.py") if path.name != Path(__file__).name)


def difference(path: Path) -> str:
    """Render a tutorial aside; return how its committed page differs, "" when it does not."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = comparable(render(path, Path(scratch)))
        drawn = {picture.name for picture in Path(scratch).glob("*.svg")}
    page = path.with_suffix(".md")
    committed = comparable(page.read_text()) if page.exists() else ""
    lines = [
        f"picture {name}: {'not committed' if name in drawn else 'no cell draws it'}"
        for name in sorted(drawn ^ {picture.name for picture in path.parent.glob(f"{path.stem}-*.svg")})
    ]
    lines += unified_diff(committed.splitlines(), fresh.splitlines(), "committed", "fresh", lineterm="", n=1)
    return "\n".join(lines)


def main() -> int:
    """Render or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tutorials without .py; all when none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    args = parser.parse_args()
    unknown = set(args.names) - {path.stem for path in tutorials()}
    if unknown:
        parser.error(f"no such tutorial: {', '.join(sorted(unknown))}")
    stale = False
    for path in tutorials():
        if args.names and path.stem not in args.names:
            continue
        if args.check:
            found = difference(path)
            stale |= bool(found)
            print(f"{path.stem}: {'out of date; run python docs/tutorials/render.py' if found else 'fresh'}")
            if found:
                print(found)
            continue
        for old in path.parent.glob(f"{path.stem}-*.svg"):
            old.unlink()
        path.with_suffix(".md").write_text(render(path, path.parent))
        print(f"{path.stem}: rendered")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
