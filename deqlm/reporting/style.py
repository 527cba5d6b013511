"""How plots look: a palette for colour-blind readers, a fixed look per solver, files that are equal byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["PALETTE", "Look", "can_draw", "figure", "looks", "steady", "write"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito (2008), Color universal design, without their yellow, which is faint on white, and with a brown."""

DASHES: dict[str, Any] = {"": "-", "scipy": (0, (5, 1.5)), "torchdeq": (0, (1.2, 1.2))}
OTHER: tuple[Any, ...] = ((0, (4, 1.2, 1, 1.2)), (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""Line styles of families nobody foresaw."""

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "deqlm",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}


class Look(NamedTuple):
    """Colour and line style of one solver in every plot of a comparison."""

    color: str
    linestyle: Any
    linewidth: float


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look per label: the line style tells the family (the word before the dot), the colour the member."""
    families = list(dict.fromkeys(_family(name) for name in names))
    unknown = [family for family in families if family not in DASHES]
    styles = {**DASHES, **{family: OTHER[i % len(OTHER)] for i, family in enumerate(unknown)}}
    count: dict[str, int] = {}
    chosen = {}
    for name in names:
        family = _family(name)
        position = count.get(family, 0)
        count[family] = position + 1
        chosen[name] = Look(PALETTE[position % len(PALETTE)], styles[family], 2.0 if family == "" else 1.4)
    return chosen


def can_draw() -> bool:
    """Say whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def steady() -> Iterator[None]:
    """Draw with our settings and nobody else's; the user's own come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    return made


def write(made: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG (no date, fixed ids) and PNG; return the paths."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    made.savefig(svg, metadata={"Date": None, "Creator": None})
    made.savefig(png, dpi=150, metadata={"Software": None})
    return [svg, png]


def _family(name: str) -> str:
    head = name.partition(":")[0]
    return head.partition(".")[0] if "." in head else ""
