"""Speed against torchdeq at an equal true residual: `pytest -m bench -s tests/benchmarks/test_speed.py`.

Wall times are printed, never asserted; what is asserted is that nobody is timed on a wrong answer.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.comparison.adjoint import measure_adjoint
from benchmarks.comparison.page import blocks
from benchmarks.comparison.speed import measure_overhead, measure_rows, measure_speed
from benchmarks.comparison.verdicts import default_of, verdicts

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shown(record, *names):
    full = {"environment": {}, **record}
    print("", *(blocks(full)[name] for name in names), *verdicts(record), sep="\n")


def test_maps():
    pytest.importorskip("torchdeq")
    maps = measure_speed()
    shown({"speed": maps}, "speed", "solvers")
    assert all(default_of(one["entries"])["solved"] for one in maps)


def test_overhead():
    shown({"overhead": measure_overhead()}, "overhead")


def test_one_bad_row():
    pytest.importorskip("torchdeq")
    rows = measure_rows()
    shown({"rows": rows}, "rows")
    assert all(one["entry"]["solved"] for one in rows)


def test_adjoint():
    pytest.importorskip("torchdeq")
    maps = measure_adjoint()
    shown({"adjoint": maps}, "adjoint")
    assert all(one["entries"][0]["reaches"] for one in maps)
