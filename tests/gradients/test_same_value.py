"""A value that is the same with grad and without, where it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import DEQ, Chunked, Gradient, OneStep, Phantom, Status, Stop
from deqlm.testing.gradients.layers import TanhLayer, wrap

F64 = torch.float64
BUDGET = Stop(max_iter=3, rtol=0)
METHODS = [OneStep(same_value=True), Phantom(3, 0.7, same_value=True), Phantom(same_value=True)]


@pytest.mark.parametrize("gradient", METHODS, ids=str)
@pytest.mark.parametrize("stop", [BUDGET, Stop(rtol=1e-3)], ids=["budget", "tolerance"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_solve_and_its_steps_make_one_function(gradient: Gradient, stop: Stop, train: bool, context) -> None:
    deq = wrap(TanhLayer(4), gradient, stop=stop).train(train)
    x = torch.randn(3, 4, dtype=F64)
    y, sol = deq(x, with_stats=True)
    with context():
        z, plain = deq(x, with_stats=True)
    assert torch.equal(y.detach(), z)
    assert plain.cost.evaluations == sol.cost.evaluations
    assert plain.residual_of == sol.residual_of == "previous"
    assert torch.equal(plain.residual, sol.residual)


@pytest.mark.parametrize("gradient", [OneStep(), Phantom()], ids=str)
def test_without_the_option_the_value_is_the_point_of_the_solver(gradient: Gradient) -> None:
    w = torch.ones(1, requires_grad=True)

    def solved() -> float:
        return deqlm.solve(
            lambda z: 0.5 * z + w, torch.zeros(1, 1), solver="fixed_point", stop=BUDGET, gradient=gradient
        ).z.item()

    with torch.no_grad():
        assert solved() == 1.75
    assert solved() > 1.75


@pytest.mark.parametrize("gradient", METHODS, ids=str)
def test_a_row_that_failed_is_the_same_too(gradient: Gradient) -> None:
    deq = wrap(TanhLayer(4), gradient, on_failure="ignore")
    x = torch.randn(3, 4, dtype=F64)
    x[1] = torch.nan
    y, sol = deq(x, with_stats=True)
    with torch.no_grad():
        z = deq(x)
    assert sol.status[1] == Status.NONFINITE
    assert torch.equal(y.detach(), z)


def test_a_solve_by_chunks_is_the_same_too() -> None:
    class Causal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TanhLayer(4)

        def forward(self, z: Tensor) -> Tensor:
            return self.inner(0.3 * z.cumsum(1) / torch.arange(1, z.shape[1] + 1, dtype=z.dtype)[:, None] + 0.5 * z)

    deq = DEQ(Causal(), causal=True, mode=Chunked(2), gradient=Phantom(same_value=True), stop=Stop(rtol=1e-6))
    x = torch.randn(2, 5, 4, dtype=F64)
    y = deq(x)
    with torch.no_grad():
        assert torch.equal(deq(x), y)


@pytest.mark.parametrize("gradient", METHODS, ids=str)
def test_the_option_survives_a_config_and_is_checked(gradient: Gradient) -> None:
    assert type(gradient).from_dict(gradient.to_dict()) == gradient
    with pytest.raises(ValueError, match="same_value must be True or False"):
        gradient.replace(same_value="yes")


@pytest.mark.parametrize("stop", [BUDGET, Stop(max_iter=4, rtol=1e-9), Stop(rtol=1e-4)], ids=["budget", "cut", "long"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_unrolled_solve_returns_its_last_iterate_without_grad_too(stop: Stop, context) -> None:
    layer, x = TanhLayer(4, size=4.0), torch.randn(3, 4, dtype=F64)
    options = {"solver": "fixed_point", "stop": stop, "on_failure": "ignore"}
    deq = DEQ(layer, gradient=deqlm.Unrolled(same_value=True), **options)
    y, sol = deq(x, with_stats=True)
    with context():
        z, plain = deq(x, with_stats=True)
        best = DEQ(deq.layer, gradient="unrolled", **options)(x)
    assert torch.equal(y, z)
    assert not z.requires_grad
    assert torch.equal(sol.residual, plain.residual)
    assert torch.equal(sol.status, plain.status)
    if stop.max_iter == 4:
        assert not torch.equal(best, z)
