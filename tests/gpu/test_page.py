"""The page of the kernels shows what the records say, and the records are of all kernels and cases."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_kernels


def test_the_tables_are_those_of_the_records():
    assert gpu_kernels.page(gpu_kernels.PAGE.read_text()) == gpu_kernels.PAGE.read_text()


def test_no_kernel_of_the_record_spills_but_two_words_of_one():
    made = json.loads(gpu_kernels.RECORDS["binaries"].read_text())["kernels"]
    spill = {(name, target) for name, targets in made.items() for target, b in targets.items() if b["spilled"]}
    assert spill <= {("picard_row, float32", "sm_100")}


@pytest.mark.parametrize(("name", "launches"), [("FixedPoint()", 1), ("Anderson()", 5), ("Broyden()", 6)])
def test_launches_and_passes_stay_within_the_budget(name: str, launches: int):
    counted = json.loads(gpu_kernels.RECORDS["launches"].read_text())
    ours, plain = counted["cases"][name], counted["operations"][name]
    assert ours["launches"] <= launches
    assert ours["passes"] <= 1.3 * gpu_kernels.LEAST[name]
    assert 4 * ours["launches"] < plain["launches"]
    assert ours["passes"] < plain["passes"] / 2
