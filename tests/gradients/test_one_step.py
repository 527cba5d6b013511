"""The one-step gradient."""

from __future__ import annotations

import torch

from deqlm import OneStep, Phantom, Stop
from deqlm.testing.gradients.layers import TanhLayer, wrap


def test_value_and_gradient_are_those_of_one_evaluation_at_the_solved_point() -> None:
    layer = TanhLayer(5)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    deq = wrap(layer, OneStep(), stop=Stop(rtol=1e-2))
    with torch.no_grad():
        z = deq(x)
    y, once = deq(x), layer(z, x)
    assert torch.equal(y, once)
    inputs = [layer.W, layer.b, x]
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(once.sum(), inputs), strict=True):
        assert torch.equal(a, b)


def test_equals_one_undamped_phantom_step() -> None:
    layer = TanhLayer(5)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    one, phantom = (torch.autograd.grad(wrap(layer, m)(x).sum(), layer.W)[0] for m in (OneStep(), Phantom(1, 1.0)))
    assert torch.equal(one, phantom)


def test_lacks_the_factor_of_the_inverse() -> None:
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    deq = wrap(torch.nn.Identity(), OneStep(), inject="add", start=None)
    deq.layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(deq.layer.weight, 0.75)
    (g,) = torch.autograd.grad(deq(x), x)
    assert g.item() == 0.75  # the implicit gradient is .75 / (1 - .75) = 3
