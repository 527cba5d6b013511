"""Draws the house: districts as boxes on floors, imports as arrows downwards, read from the code.

    PYTHONPATH=.:solvers python docs/draw_house.py [--check]

Writes `docs/records/house.json` (the arrows), `docs/assets/house.svg` (the drawing) and two tables of `docs/house.md`:
the districts, with the first sentence of the packages' docstrings, and the counts of `docs/records/walk.json`.
With ``--check`` nothing is written, and the exit status says whether arrows, tables and drawing are those of the code.
`tests/test_house.py` asks the same.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parents[1]
RECORD, WALK, DRAWING, PAGE = (
    ROOT / "docs" / name for name in ("records/house.json", "records/walk.json", "assets/house.svg", "house.md")
)
PACKAGES = {"deqlm_solvers": ROOT / "solvers/deqlm_solvers", "deqlm": ROOT / "deqlm"}
"""The two packages; as a district of that name each is its own ``__init__.py``, the door."""

COUNTS = {
    "to_the_loop": "frames from `DEQ.forward` to the loop",
    "to_the_layer": "frames from the loop to the layer",
    "frames_per_evaluation": "frames per evaluation",
    "types": "our types with a method entered",
    "files": "files entered",
}
"""What `tests/benchmarks/walk.py` counts, in words."""

COLOURS = {"deqlm_solvers": "#dcebf5", "deqlm": "#fbead9"}
WIDTH, GAP, STOREY = 0.098, 0.34, 1.0
"""Width of a letter, space between boxes, height of a floor, in the unit of the drawing."""

Arrows = dict[str, list[str]]


def arrows() -> Arrows:
    """Return which districts each district imports, imports inside functions too, not what lint-imports ignores."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ignored = [rule for contract in config for rule in contract.get("ignore_imports", ())]
    found: dict[str, set[str]] = defaultdict(set)
    for importer in graph.modules:
        here = district(importer)
        found[here] |= {
            district(imported)
            for imported in graph.find_modules_directly_imported_by(importer)
            if not any(matches(f"{importer} -> {imported}", rule) for rule in ignored)
        } - {here}
    return {
        name: sorted(there & {n for n in found if shown(n)}) for name, there in sorted(found.items()) if shown(name)
    }


def district(module: str) -> str:
    """Return the first two names of a module."""
    return ".".join(module.split(".")[:2])


def shown(name: str) -> bool:
    """Tell whether a district is more than a version or an entry point."""
    return not name.rpartition(".")[2].startswith("_")


def matches(text: str, rule: str) -> bool:
    """Tell whether an import is one that a rule of import-linter names, with * for one name and ** for several."""
    pattern = re.escape(rule).replace(r"\*\*", ".+").replace(r"\*", "[^.]+")
    return re.fullmatch(pattern, text) is not None


def floors(found: Arrows) -> dict[str, int]:
    """Return the floor of each district: one above the highest that it imports."""
    known: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in known:
            known[name] = 1 + max(map(floor, found[name]), default=-1)
        return known[name]

    for name in found:
        floor(name)
    return known


def reduced(found: Arrows) -> Arrows:
    """Return the arrows that no way round by other arrows says."""
    reach: dict[str, set[str]] = {}
    for name in sorted(found, key=floors(found).__getitem__):
        reach[name] = set(found[name]).union(*(reach[n] for n in found[name]))
    return {name: [n for n in there if not any(n in reach[other] for other in there)] for name, there in found.items()}


def sentence(name: str) -> str:
    """Return the first sentence that a district says of itself."""
    package, _, rest = name.partition(".")
    path = PACKAGES[package] / rest
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = ast.get_docstring(ast.parse(file.read_text()))
    assert said, f"{file} says nothing of itself"
    return said.split("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def table(found: Arrows) -> str:
    """Return the districts from the roof to the ground, as a table."""
    level = floors(found)
    lines = ["| floor | district | what it is |", "|---|---|---|"]
    for name in sorted(found, key=lambda n: (-level[n], n)):
        lines.append(f"| {level[name]} | `{name}` | {sentence(name)} |")
    return "\n".join(lines)


def counts() -> str:
    """Return what a reader walks through, before and after, as a table."""
    walks = json.loads(WALK.read_text())
    kinds = [(when, engine) for engine in ("compiled", "torch") for when in ("before", "after")]
    lines = ["| | " + " | ".join(f"{engine}, {when}" for when, engine in kinds) + " |", "|---" * 5 + "|"]
    for key, words in COUNTS.items():
        lines.append(f"| {words} | " + " | ".join(f"{walks[when][engine][key]:g}" for when, engine in kinds) + " |")
    return "\n".join(lines)


def page(found: Arrows, text: str) -> str:
    """Return the page with the tables of now between their marks."""
    for name, made in (("districts", table(found)), ("walk", counts())):
        begin, end = f"<!-- {name}: docs/draw_house.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end)[1]}"
    return text


def identities(found: Arrows) -> set[str]:
    """Return what the drawing holds, by the ids of its parts."""
    return {*found, *(f"{name}--{other}" for name, there in reduced(found).items() for other in there)}


def drawn() -> set[str]:
    """Return the ids of the parts of the drawing as it is."""
    return set(re.findall(r'id="(deqlm[^"]*)"', DRAWING.read_text()))


def paths(found: Arrows) -> tuple[dict[int, list[str]], list[list[str]]]:
    """Return the places of each floor, and each arrow as a row of places; one on every floor it crosses."""
    level, ways = floors(found), []
    places: dict[int, list[str]] = defaultdict(list)
    for name, floor in level.items():
        places[floor].append(name)
    for name, there in reduced(found).items():
        for other in there:
            crossed = range(level[name] - 1, level[other], -1)
            way = [name, *(f"{name}--{other}@{floor}" for floor in crossed), other]
            for floor, place in zip(crossed, way[1:-1], strict=True):
                places[floor].append(place)
            ways.append(way)
    return places, ways


def size(place: str) -> float:
    """Return how wide a place is."""
    return 0.0 if "--" in place else WIDTH * max(len(label(place)), 8) + 0.25


def label(name: str) -> str:
    """Return what stands on a box."""
    return name if name in PACKAGES else name.partition(".")[2]


def spread(order: list[str], wish: dict[str, float]) -> dict[str, float]:
    """Return places along a floor, in order and without touching, close to where they wish to be."""
    space = [0.0]
    for a, b in itertools.pairwise(order):
        space.append(space[-1] + (size(a) + size(b)) / 2 + GAP)
    blocks: list[tuple[float, int]] = []  # mean of wish minus space, and how many share it
    for name, offset in zip(order, space, strict=True):
        mean, count = wish[name] - offset, 1
        while blocks and blocks[-1][0] > mean:
            last, many = blocks.pop()
            mean, count = (mean * count + last * many) / (count + many), count + many
        blocks.append((mean, count))
    shifts = [mean for mean, count in blocks for _ in range(count)]
    return {name: offset + shift for name, offset, shift in zip(order, space, shifts, strict=True)}


def places_of(found: Arrows) -> tuple[dict[str, tuple[float, float]], list[list[str]]]:
    """Return where each place lies, and the arrows; each floor is ordered by what they are tied to, in many sweeps."""
    by_floor, ways = paths(found)
    ties: dict[str, list[str]] = defaultdict(list)
    for way in ways:
        for a, b in itertools.pairwise(way):
            ties[a].append(b)
            ties[b].append(a)
    x = {place: float(i) for places in by_floor.values() for i, place in enumerate(places)}
    for sweep in range(60):
        for floor in sorted(by_floor, reverse=bool(sweep % 2)):
            wish = {p: sum(x[t] for t in ties[p]) / len(ties[p]) if ties[p] else x[p] for p in by_floor[floor]}
            order = sorted(by_floor[floor], key=lambda p: (wish[p], p))
            x.update(spread(order, wish))
    return {place: (x[place], floor * STOREY) for floor, places in by_floor.items() for place in places}, ways


def draw(found: Arrows) -> None:
    """Write the drawing."""
    from deqlm.reporting.style import figure, steady

    at, ways = places_of(found)
    left, right = (pick(x + sign * size(p) / 2 for p, (x, _) in at.items()) for pick, sign in ((min, -1), (max, 1)))
    top = max(y for _, y in at.values())
    with steady():
        made = figure(right - left + 0.4, top + 0.9)
        axes = made.add_axes((0, 0, 1, 1), xlim=(left - 0.2, right + 0.2), ylim=(-0.45, top + 0.45))
        axes.set_axis_off()
        for way in ways:
            _draw_way(axes, way, at)
        for name in found:
            _draw_box(axes, name, *at[name])
        made.savefig(DRAWING, metadata={"Date": None, "Creator": None})


def _draw_way(axes: Any, way: list[str], at: dict[str, tuple[float, float]]) -> None:
    points = [at[place] for place in way]
    (x0, y0), (x1, y1) = points[0], points[-1]
    xs, ys = zip((x0, y0 - 0.2), *points[1:-1], (x1, y1 + 0.23), strict=True)
    look = {"color": "#777777", "linewidth": 0.9}
    (line,) = axes.plot(xs, ys, solid_capstyle="round", zorder=1, **look)
    line.set_gid(f"{way[0]}--{way[-1]}")
    ends = [(xs[-2], ys[-2]), (xs[-1], ys[-1])]
    axes.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look}, zorder=1)


def _draw_box(axes: Any, name: str, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    width, door = size(name), name in PACKAGES
    box = FancyBboxPatch(
        (x - width / 2 + 0.06, y - 0.14),
        width - 0.12,
        0.28,
        boxstyle="round,pad=0.06",
        facecolor=COLOURS[name.partition(".")[0]],
        edgecolor="#333333",
        linewidth=1.6 if door else 0.8,
        zorder=2,
    )
    box.set_gid(name)
    axes.add_patch(box)
    axes.text(x, y, label(name), ha="center", va="center", zorder=3, weight="bold" if door else "normal")


def old(found: Arrows) -> Iterable[str]:
    """Yield what is not that of the code."""
    if json.loads(RECORD.read_text()) != found:
        yield str(RECORD)
    if page(found, PAGE.read_text()) != PAGE.read_text():
        yield str(PAGE)
    if drawn() != identities(found):
        yield str(DRAWING)


def main() -> int:
    """Draw, or say what is old."""
    parser = argparse.ArgumentParser(description="Draw the house.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is old")
    check, found = parser.parse_args().check, arrows()
    if check:
        late = list(old(found))
        print("\n".join(f"{name} is old: run docs/draw_house.py" for name in late))
        return len(late)
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found, PAGE.read_text()))
    draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
