"""What a call reads from the device, beside one number per tested evaluation: all of it is named here."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ, Stop
from deqlm.testing.device import SimulatedDevice
from models.families import VOCAB, contract, make

BUDGET = Stop(max_iter=4, rtol=0)
TESTED = "RowTracker.record"
TOGETHER = {"RowTracker.apart", "RowTracker._take_up_lost"}
STATUS, DROPPED = "Solution.worst", "Solution.worst"
COMMIT, PADDING = "ChunkEvaluator.commit", "LMCache.check_next"


def places(device: SimulatedDevice) -> Counter[str]:
    """Return how often each function read, as Class.method."""
    found: Counter[str] = Counter()
    for where, count in device.reads.items():
        found[".".join(where.split()[0].split(".")[-2:]).removeprefix("policy.")] += count
    return found


def layer() -> nn.Module:
    made = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    with torch.no_grad():
        made[0].weight.mul_(0.4)
    return made


@pytest.mark.parametrize("solver", ["anderson", "fixed_point"])
def test_a_call_without_grad(solver):
    deq = DEQ(layer(), solver=solver).eval()
    with torch.no_grad(), SimulatedDevice() as device:
        _, sol = deq(torch.randn(3, 6), with_stats=True)
    found = places(device)
    assert found.pop(TESTED) == sol.cost.evaluations
    assert set(found) <= {*TOGETHER, STATUS}
    assert max(found.values()) == 1
    with torch.no_grad(), SimulatedDevice(forbid=True):
        deq(torch.randn(3, 6), stop=BUDGET)


@pytest.mark.parametrize("gradient", [name for name in deqlm.GRADIENTS if name != "reversible"])
def test_a_call_with_grad_and_its_backward(gradient):
    deq = DEQ(layer(), solver="fixed_point", gradient=gradient, stop=BUDGET)
    with SimulatedDevice() as device:
        y = deq(torch.randn(3, 6))
    assert places(device) == {DROPPED: 1}
    with SimulatedDevice() as device:
        y.sum().backward()
    found = places(device)
    assert found.total() - found[TESTED] <= 4, found


@pytest.mark.parametrize("family", ["mamba2", "llama"])
@torch.no_grad()
def test_prompts_and_tokens_of_a_model(family):
    model, ids = contract(make(family, torch.float32)).eval(), torch.randint(VOCAB, (2, 5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :2] = False
    cache = None
    for given in (ids, ids[:, :1]):
        with SimulatedDevice() as device:
            out = model(given, cache=cache, use_cache=True, mode="sequential" if cache else None)
        found, cache = places(device), out.cache
        assert found.pop(TESTED) <= out.solution.cost.evaluations
        assert set(found) <= {*TOGETHER, COMMIT, "_CallFailures.report"}
        with SimulatedDevice(forbid=True):
            model(given, use_cache=True, stop=BUDGET)
    with SimulatedDevice() as device:
        model(ids, mask=mask, use_cache=True, stop=BUDGET)
    assert places(device) == {PADDING: 1}


@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_a_step_of_training(family):
    model, ids = make(family, torch.float32), torch.randint(VOCAB, (2, 5))
    with SimulatedDevice() as device:
        loss = model(ids, labels=ids, stop=BUDGET).loss
    assert places(device) == {DROPPED: 1}
    with SimulatedDevice(forbid=True):
        loss.backward()
