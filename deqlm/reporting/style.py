"""How plots look: a palette for colour-blind readers, a fixed look per solver, files that are equal byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "PALETTE",
    "SETTINGS",
    "Look",
    "can_draw",
    "family",
    "figure",
    "key",
    "legend_below",
    "looks",
    "panels",
    "say_absent",
    "steady",
    "write",
]

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
    families = list(dict.fromkeys(family(name) for name in names))
    unknown = [one for one in families if one not in DASHES]
    styles = {**DASHES, **{one: OTHER[i % len(OTHER)] for i, one in enumerate(unknown)}}
    count: dict[str, int] = {}
    chosen = {}
    for name in names:
        of = family(name)
        position = count.get(of, 0)
        count[of] = position + 1
        chosen[name] = Look(PALETTE[position % len(PALETTE)], styles[of], 1.4 if of else 2.0)
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


def panels(count: int, columns: int, size: tuple[float, float], below: float, sharey: bool = False) -> Any:
    """Return a figure and its axes, so many columns and as many lines as ``count`` panels need; the others are empty.

    Args:
        count: panels that are drawn on.
        columns: of panels.
        size: width and height of a panel, in inches.
        below: inches that stay free.
        sharey: all panels have one vertical axis.
    """
    lines = max(1, -(-count // columns))
    made = figure(size[0] * columns, size[1] * lines + below)
    axes = made.subplots(lines, columns, squeeze=False, sharey=sharey).flatten()
    for panel in axes[count:]:
        panel.set_axis_off()
    return made, axes


def key(label: str, **look: Any) -> Any:
    """Return what a legend shows of a line or a marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def legend_below(made: Any, keys: Sequence[Any], columns: int, height: float, left: float = 0.0, **more: Any) -> None:
    """Draw a legend of so many columns below all panels, and give these the rest.

    Args:
        made: the figure.
        keys: as `key` makes them.
        columns: at most.
        height: inches of the legend.
        left: share of the figure's width that stays free for a label.
        **more: of matplotlib's ``legend``.
    """
    made.legend(handles=keys, loc="lower center", ncols=max(1, min(columns, len(keys))), fontsize=8, **more)
    made.tight_layout(rect=(left, height / made.get_figheight(), 1, 1))


def say_absent(panel: Any, absent: Sequence[str]) -> None:
    """Write into a panel who is missing from it."""
    if not absent:
        return
    shown = absent if len(absent) <= 3 else [*absent[:3], f"and {len(absent) - 3} more"]
    panel.text(0.03, 0.05, "\n".join(shown), transform=panel.transAxes, fontsize=6.5, color="#555555", va="bottom")


def write(made: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG (no date, fixed ids) and PNG; return the paths."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    made.savefig(svg, metadata={"Date": None, "Creator": None})
    made.savefig(png, dpi=150, metadata={"Software": None})
    return [svg, png]


def family(name: str) -> str:
    """Return the library of a solver's label, the word before the dot; empty for our own."""
    head = name.partition(":")[0]
    return head.partition(".")[0] if "." in head else ""
