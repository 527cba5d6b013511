"""A proven bound holds, an estimate says that it is one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import deqlm
from deqlm.diagnostics import certify
from deqlm.layers import Contractive, MonotoneLinear

F64 = torch.float64


@given(st.integers(0, 2**31), st.floats(0.1, 0.95), st.integers(1, 8))
def test_the_solution_is_within_the_proven_distance(seed: int, bound: float, evaluations: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(5, 5, dtype=F64), nn.Tanh())
    with torch.no_grad():
        layer[0].weight.mul_(5)
    deq = deqlm.DEQ(Contractive(layer, bound), on_failure="ignore")
    x = torch.randn(3, 5, dtype=F64)
    with torch.no_grad():
        exact = deq(x, stop={"max_iter": 5000, "rtol": 1e-13}, solver="fixed_point")
        z, sol = deq(x, with_stats=True, solver="fixed_point", stop={"max_iter": evaluations, "rtol": 1e-13})
    found = certify(deq, sol, x)
    assert found.proven
    assert (found.lipschitz <= bound * (1 + 1e-9)).all()
    assert ((z - exact).norm(dim=1) <= found.error * (1 + 1e-9) + 1e-12).all()
    assert "proven" in str(found)


def test_known_maps_are_proven_and_others_estimated() -> None:
    b = torch.randn(2, 4)
    monotone = MonotoneLinear(4)
    _, sol = deqlm.DEQ(monotone, inject="argument")(b, with_stats=True)
    assert certify(deqlm.DEQ(monotone, inject="argument"), sol, b).proven
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.mul_(0.3)
    sol = deqlm.solve(lambda z: linear(z) + b, torch.zeros(2, 4))
    found = certify(lambda z: linear(z) + b, sol)
    assert not found.proven
    assert "estimated" in str(found)
    torch.testing.assert_close(
        found.lipschitz.float(), torch.linalg.matrix_norm(linear.weight, 2).expand(2), rtol=1e-2, atol=0
    )
    assert certify(lambda z: linear(z) + b, sol, lipschitz=0.9).proven
    deq = deqlm.DEQ(nn.Sequential(linear, nn.LayerNorm(4)), on_failure="ignore")
    _, sol = deq(b, with_stats=True)
    assert not certify(deq, sol, b).proven
    with pytest.raises(ValueError, match="args must be the input of the DEQ"):
        certify(deq, sol)


def test_a_map_that_does_not_contract_has_no_bound() -> None:
    sol = deqlm.solve(lambda z: -2 * z + 1, torch.zeros(2, 1))
    assert certify(lambda z: -2 * z + 1, sol).error.isinf().all()


def test_bad_input_is_named() -> None:
    sol = deqlm.solve(torch.cos, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="lipschitz must be >= 0"):
        certify(torch.cos, sol, lipschitz=-1.0)
    with pytest.raises(TypeError, match="sol must be a Solution"):
        certify(torch.cos, torch.zeros(2, 3))  # type: ignore[arg-type]
    budget = deqlm.solve(torch.cos, torch.zeros(2, 3), solver="fixed_point", stop=deqlm.Stop(max_iter=3, rtol=0))
    with pytest.raises(ValueError, match="one whose residual is that of"):
        certify(torch.cos, budget)
