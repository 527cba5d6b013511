"""Cores of known looped models are solved, diagnosed, audited and compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deqlm
from deqlm.comparison import UserProblem, compare
from deqlm.layers import Attention
from deqlm.looped import AttractorHead, Core, Sandwich, TwoLevel
from deqlm_solvers import Stop


def small(layer: nn.Module, scale: float = 0.4) -> nn.Module:
    for p in layer.parameters():
        if p.dim() == 2:
            nn.init.orthogonal_(p, scale)
    return layer


def cores() -> dict[str, Core]:
    torch.manual_seed(0)
    return {
        "sandwich": Sandwich(small(nn.Linear(12, 6)), [small(Attention(6, n_head=1)), nn.Tanh()]),
        "two levels": TwoLevel(nn.Sequential(small(nn.Linear(6, 6)), nn.Tanh()), inner=2),
        "attractor": AttractorHead(nn.Sequential(small(nn.Linear(6, 6)), nn.Tanh())),
    }


@pytest.mark.parametrize("name", cores())
def test_the_tools_run_on_it(name):
    core = cores()[name].double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    deq = core.deq(stop=Stop(max_iter=300, rtol=1e-10))
    y, sol = deq(x, with_stats=True)
    assert bool(sol.converged.all())
    torch.testing.assert_close(core(y, x), y, rtol=1e-7, atol=1e-8)
    z = core.start(x)
    for _ in range(300):
        z = core(z, x)
    torch.testing.assert_close(y, z, rtol=1e-6, atol=1e-7)
    assert "converge" in str(deqlm.diagnose(deq, x)).lower()
    audit = deqlm.audit_gradient(deq, x, gradients=["implicit"])
    assert max(audit.methods[0].error.values()) < 1e-5


@pytest.mark.parametrize("name", cores())
def test_solvers_are_compared_on_it(name):
    def make(dtype):
        return cores()[name].to(dtype).deq(), torch.randn(2, 3, 6, dtype=dtype)

    result = compare(UserProblem(make=make, shown=name), ["fixed_point", "anderson"], repeats=1, progress=False)
    assert [entry.outcome for entry in result[name].entries] == ["solved", "solved"]
