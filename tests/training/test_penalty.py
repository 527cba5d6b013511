"""The Jacobian penalty against the Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deqlm
from deqlm.training import jacobian_penalty

F64 = torch.float64


def test_it_is_the_squared_norm_of_the_jacobian_per_unknown_with_its_gradient() -> None:
    matrix = torch.randn(5, 5, dtype=F64, requires_grad=True)
    draw = torch.Generator().manual_seed(0)
    penalty = jacobian_penalty(lambda z: z @ matrix, torch.zeros(200, 5, dtype=F64), probes=50, generator=draw)
    assert penalty.item() == pytest.approx((matrix**2).sum().item() / 5, rel=0.05)
    penalty.backward()
    torch.testing.assert_close(matrix.grad, 2 * matrix.detach() / 5, rtol=0.2, atol=0.1)


def test_trees_complex_states_and_half_precision_have_one() -> None:
    tree = {"a": torch.zeros(50, 4, dtype=F64), "b": torch.zeros(50, 2, dtype=torch.complex128)}
    got = jacobian_penalty(lambda z: {"a": 2 * z["a"], "b": 3 * z["b"]}, tree, probes=50)
    assert got.item() == pytest.approx((4 * 4 + 2 * 9) / 6, rel=0.1)
    assert jacobian_penalty(lambda z: 2 * z, torch.zeros(4, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_point_is_a_constant_and_training_with_it_contracts() -> None:
    torch.manual_seed(0)
    deq = deqlm.DEQ(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), on_failure="ignore")
    x = torch.randn(8, 6)
    with torch.no_grad():
        deq.layer[0].weight.mul_(2)
    optimizer = torch.optim.SGD(deq.parameters(), lr=0.2)
    sizes = []
    for _ in range(30):
        z = deq(x)
        penalty = jacobian_penalty(lambda z, x: deq.layer(z + x), z, x)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        sizes.append(penalty.item())
    assert sizes[-1] < 0.5 * sizes[0]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="probes must be a whole number >= 1, got 0"):
        jacobian_penalty(torch.tanh, torch.zeros(2, 3), probes=0)
    with pytest.raises(ValueError, match="f must be differentiable by autograd at z"):
        jacobian_penalty(lambda z: torch.ones(2, 3), torch.zeros(2, 3))
