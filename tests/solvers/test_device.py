"""A simulated device: what the host reads, launches and moves in a solve, of every registered solver."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.launches import PAGE, RECORD, STOPS, WITHOUT_DERIVATIVES, halves, measure, written
from deqlm.testing.device import HostReadError, SimulatedDevice
from deqlm_solvers import SOLVERS, Solve, Stop
from deqlm_solvers.core.norms import lengths

OURS = [name for name in SOLVERS if "." not in name and name != "deer"]
"""Deer, which solves tokens, reads besides whether a step was too long."""
READS = {"newton_krylov": 2, "fallback": 3}
"""Reads per evaluation where it is not the one of the test: newton_krylov reads whether a point has moved."""
AT_THE_END = 4
"""Whether rows still pass together, and what a fallback makes of those that do not."""
READS_A_BUDGET = {"newton_krylov": 2, "newton": 1, "dogleg": 1, "levenberg_marquardt": 1}
"""Solvers that do not promise budgets, and whether a row needs a Jacobian is worth a read."""


def solved(name: str, stop: Stop, rows: int = 3):
    with SimulatedDevice() as device:
        sol = Solve(name, stop)(halves, torch.linspace(-1, 1, rows * 4).view(rows, 4))
    return sol, device.reads


@pytest.mark.parametrize("name", OURS)
def test_a_solve_reads_no_more_than_its_tests(name):
    sol, reads = solved(name, Stop(max_iter=60, rtol=1e-5))
    assert sol.converged.all()
    tests = max(sol.cost.evaluations, int(sol.steps.max()))
    assert reads.total() <= READS.get(name, 1) * tests + AT_THE_END, dict(reads)


@pytest.mark.parametrize("name", [name for name in OURS if name != "fallback"])
def test_nothing_is_read_where_the_host_does_not_look(name):
    sol, reads = solved(name, Stop(max_iter=60, rtol=1e-5, check_every=0))
    assert sol.converged.all()
    assert not reads
    looked, _ = solved(name, Stop(max_iter=60, rtol=1e-5))
    assert torch.equal(sol.z, looked.z)
    assert torch.equal(sol.steps, looked.steps)


@pytest.mark.parametrize("name", [name for name in OURS if name != "fallback"])
def test_a_budget_reads_nothing(name):
    sol, reads = solved(name, Stop(max_iter=24, rtol=0))
    assert reads.total() <= READS_A_BUDGET.get(name, 0) * int(sol.steps.max()), dict(reads)
    if "budget" in SOLVERS[name].guarantees:
        assert not reads


@pytest.mark.parametrize("rows", [2, 8])
def test_rows_that_may_leave_cost_one_read_more(rows):
    """Half of the rows are done at once and wait for the others, whose end is near all along."""
    z0 = torch.zeros(rows, 4096)
    slow = torch.arange(rows) < rows // 2
    f = lambda z: torch.where(slow[: len(z), None], 0.1 * z + 1.0, 0.0)  # noqa: E731
    with SimulatedDevice() as device:
        sol = Solve("fixed_point", Stop(max_iter=50, rtol=1e-5))(f, z0)
    assert sol.converged.all()
    assert device.reads.total() <= sol.cost.evaluations + 1 + AT_THE_END


QUICK = ("fixed_point", "anderson", "broyden")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WITHOUT_DERIVATIVES]
)
def test_an_evaluation_costs_what_was_recorded(name):
    """Launches, passes over the state and reads beside f: a budget that a change may lower and must not raise."""
    recorded = json.loads(RECORD.read_text())[name]
    for kind, stop in STOPS.items():
        now = measure(SOLVERS[name](), stop)
        assert all(now[part] <= recorded[kind][part] for part in now), f"{kind}: {now}, recorded {recorded[kind]}"


def test_the_page_shows_the_record():
    page = PAGE.read_text()
    assert written(page, json.loads(RECORD.read_text())) == page


@pytest.mark.parametrize(
    "read",
    [
        lambda t: bool(t.any()),
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: t.numpy(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.equal(t, t + 1),
        lambda t: torch.masked_select(t, t > 0),
        lambda t: torch.unique(t),
        lambda t: float(t[0]),
        lambda t: t.index_put((t > 0,), torch.ones(1)),
    ],
)
def test_every_way_to_read_is_seen(read):
    t = torch.ones(3)
    with SimulatedDevice() as device:
        read(t)
    assert device.reads.total() == 1
    with SimulatedDevice(forbid=True), pytest.raises(HostReadError, match="the host reads the device in"):
        read(t)


def test_what_stays_on_the_device_is_no_read():
    t = torch.ones(3)
    with SimulatedDevice(forbid=True) as device:
        torch.where(t > 0, t, 0.0)[torch.tensor([0, 1])].sum()
    assert device.kernels >= 3


def test_hidden_copies_are_those_that_the_profiler_sees():
    from torch.profiler import ProfilerActivity, profile

    t = torch.randn(4, 64)
    with SimulatedDevice() as device:
        lengths(t)
    with profile(activities=[ProfilerActivity.CPU]) as told:
        lengths(t)
    copies = sum(event.name == "aten::_to_copy" for event in told.events())
    assert device.launches["aten::_to_copy (hidden)"] == copies == 1
    assert device.bytes == 4 * 64 * (4 + 8 + 8) + 4 * 8
