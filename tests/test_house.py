"""The picture of the house is that of the code, and the walk through it stays short."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.walk import walk
from deqlm_solvers.native.library import load

SCRIPT = Path(__file__).resolve().parents[1] / "docs/draw_house.py"


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("draw_house", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arrows(house):
    return house.arrows()


def test_picture_table_and_record_are_those_of_the_code(house, arrows):
    assert not list(house.old(arrows)), "run docs/draw_house.py"


def test_arrows_point_down_and_the_drawn_ones_say_all(house, arrows):
    floor, drawn = house.floors(arrows), house.reduced(arrows)
    for name, there in arrows.items():
        assert all(floor[other] < floor[name] for other in there)
        reached = set(drawn[name])
        while not reached >= (more := {n for other in reached for n in drawn[other]}):
            reached |= more
        assert set(there) <= reached
    assert not drawn["deqlm_solvers.core"]
    assert not any(n.startswith("deqlm.") for n in arrows["deqlm_solvers"])


def test_boxes_of_a_floor_do_not_touch(house, arrows):
    at, _ = house.places_of(arrows)
    for floor in range(max(house.floors(arrows).values()) + 1):
        boxes = sorted((x, house.size(name)) for name, (x, y) in at.items() if y == floor * house.STOREY)
        assert all(a + (wide + wide_b) / 2 < b for (a, wide), (b, wide_b) in pairwise(boxes))


@pytest.mark.filterwarnings("ignore:rtol=1e-15 is below:UserWarning")
@pytest.mark.parametrize(("impl", "frames", "types"), [("cpp", 12, 16), ("torch", 45, 24)])
def test_the_walk_from_a_call_to_the_layer_is_short(impl, frames, types):
    if impl == "cpp" and load().why:
        pytest.skip(load().why)
    seen = walk(impl)
    assert seen["to_the_loop"] <= 5, seen["ladder"]
    assert seen["to_the_layer"] <= 5, seen["down"]
    assert seen["frames_per_evaluation"] <= frames
    assert seen["types"] <= types, seen["type_names"]
