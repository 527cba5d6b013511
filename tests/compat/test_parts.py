"""Losses, dropout and checkpointing by torchdeq's names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compat.maps import F64, Cell, start
from deqlm.compat import torchdeq as ours


def absolute(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).abs().mean()


@pytest.mark.parametrize(
    ("weight", "options", "factors"),
    [
        ("exp", {}, [0.64, 0.8, 1.0]),
        ("exp", {"gamma": 0.5}, [0.25, 0.5, 1.0]),
        ("linear", {"gamma": 0.9, "bias": 0.1}, [0.5, 0.8, 1.1]),
        ("const", {"c": 2.0}, [2.0, 2.0, 2.0]),
    ],
)
def test_a_loss_over_states_is_weighted(weight: str, options: dict, factors: list[float]) -> None:
    states = [torch.full((2,), float(k)) for k in (1, 2, 3)]
    want = sum(factor * k for factor, k in zip(factors, (1, 2, 3), strict=True))
    loss, values = ours.fp_correction(absolute, (states, torch.zeros(2)), weight, return_loss_values=True, **options)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(want)
    assert values == [1.0, 2.0, 3.0]


def test_a_weight_of_ones_own_and_bad_ones() -> None:
    ours.register_weight_func("last", lambda n, k: float(k == n - 1))
    states = [torch.ones(2), torch.full((2,), 5.0)]
    assert ours.fp_correction(absolute, (states, torch.zeros(2)), "last").item() == 5.0
    with pytest.raises(KeyError, match="unknown weight_func 'lst': did you mean 'last'"):
        ours.fp_correction(absolute, (states, torch.zeros(2)), "lst")
    with pytest.raises(TypeError, match="gama"):
        ours.fp_correction(absolute, (states, torch.zeros(2)), gama=0.5)
    with pytest.raises(TypeError, match="must be a function"):
        ours.register_weight_func("x", 3)


def test_the_jacobian_penalty_is_the_norm_of_the_jacobian() -> None:
    matrix = torch.randn(5, 5, dtype=F64, requires_grad=True)
    z = torch.zeros(400, 5, dtype=F64, requires_grad=True)
    loss = ours.jac_reg(z @ matrix, z, vecs=20)
    assert loss.item() == pytest.approx((matrix**2).sum().item() / 5, rel=0.05)
    loss.backward()
    torch.testing.assert_close(matrix.grad, 2 * matrix.detach() / 5, rtol=0.2, atol=0.1)


def test_the_power_method_returns_eigenvalues() -> None:
    values = torch.tensor([0.9, -0.95, 0.1], dtype=F64)
    z = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    vector, radius = ours.power_method(z * values, z)
    torch.testing.assert_close(radius, torch.full((2,), 0.95, dtype=F64))
    assert vector.abs().argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "shape", "shared", "token_first"),
    [
        (ours.VariationalDropout1d, (2, 5, 8), [1], True),
        (ours.VariationalDropout1d, (2, 8, 5), [2], False),
        (ours.VariationalDropout2d, (2, 3, 4, 8), [1, 2], True),
        (ours.VariationalDropout3d, (2, 8, 3, 4, 2), [2, 3, 4], False),
        (ours.VariationalDropToken1d, (2, 9, 3), [2], True),
        (ours.VariationalDropToken2d, (2, 3, 4, 5), [1], False),
        (ours.VariationalDropToken3d, (2, 3, 4, 2, 6), [4], True),
    ],
)
def test_a_mask_is_shared_and_lives_for_one_call(kind, shape: tuple, shared: list[int], token_first: bool) -> None:
    drop = kind(0.5, token_first=token_first)
    y = drop(torch.ones(shape, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    for dim in shared:
        assert (y == y.narrow(dim, 0, 1)).all()
    assert 0 < (y == 0).float().mean() < 1
    assert not list(drop.buffers())
    assert torch.equal(drop.eval()(torch.ones(shape)), torch.ones(shape))
    with pytest.raises(ValueError, match="x must be of"):
        drop.train()(torch.ones(3))

    drop = kind(0.5, token_first=token_first)
    deq = ours.get_deq(f_solver="simple_fixed_point_iter", f_max_iter=20, n_states=2)
    states, _ = deq(lambda z: drop(0.5 * z + 1), torch.zeros(shape))
    assert torch.equal(states[0] == 0, states[1] == 0)
    ours.reset_deq(nn.Sequential(drop))


def test_a_bad_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
        ours.VariationalDropout(1.0)


def test_a_checkpoint_has_the_gradient_of_the_function() -> None:
    cell = Cell()
    z = start().requires_grad_()
    wanted = torch.autograd.grad(cell(z).sum(), [z, *cell.a.parameters()])
    got = torch.autograd.grad(ours.mem_gc(cell, (z,)).sum(), [z, *cell.a.parameters()])
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
