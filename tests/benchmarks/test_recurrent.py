"""The page on recurrent cells holds what its record holds, and the peers solve what `Deer` solves."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.recurrent import DOCS, INPUTS, LENGTHS, PAGE, blocks, recurrences
from benchmarks.recurrent_peers import deer, pararnn


def test_the_table_of_the_page_is_that_of_the_record():
    record = json.loads((DOCS / "records" / "recurrent.json").read_text(encoding="utf-8"))
    assert blocks(record)["tables"] in PAGE.read_text(encoding="utf-8")
    assert {entry["length"] for entry in record["entries"]} == {*LENGTHS}
    exact = [e for e in record["entries"] if e["contender"].startswith("Deer, ")]
    assert all(entry["steps"] > 0 and entry["error"] <= 1e-7 for entry in exact)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch loads what forward mode needs by torch.jit
def test_the_peers_are_the_algorithms_of_their_papers():
    x = torch.randn(2, 19, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for cell in recurrences():
            truth, width = cell.loop(x), torch.Size(cell.shape).numel()
            slope = cell.slope
            found, steps = deer(cell.flat, x, width, 1e-12)
            assert (found.view_as(truth) - truth).abs().max() <= 1e-12
            assert steps <= 10
            if slope is not None:
                assert (pararnn(cell.cell, slope, x, width, 1e-12)[0] - truth).abs().max() <= 1e-12
