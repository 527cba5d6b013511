"""Heavy ball and Nesterov: their steps, what they gain, and how they lose momentum."""

import pytest
import torch

from deqlm_solvers import FixedPoint, Layout, Momentum, Solve, Stop
from deqlm_solvers.loop.loop import run

F64 = torch.float64
SLOW = torch.linspace(-0.9, 0.9, 8, dtype=F64)
B = torch.linspace(1, 2, 16, dtype=F64).reshape(2, 8)


def symmetric(z):
    return SLOW * z + B


def rotation(z):
    return 0.9 * torch.stack((z[:, 1], -z[:, 0]), 1) + 1


@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["heavy_ball", "nesterov"])
def test_steps_are_those_written_out(kind, damping, halve):
    solver = Momentum(momentum=0.4, damping=damping, kind=kind, halve=halve)
    sol = Solve(solver, Stop(max_iter=4, rtol=0))(symmetric, torch.zeros(2, 8, dtype=F64))
    before = z = torch.zeros(2, 8, dtype=F64)
    mu, norm = torch.full((2, 1), 0.4, dtype=F64), torch.full((2, 1), torch.inf, dtype=F64)
    for _ in range(4):
        r = symmetric(z) - z
        grew = (r.norm(dim=1, keepdim=True) > norm) & halve
        mu, norm = torch.where(grew, mu / 2, mu), r.norm(dim=1, keepdim=True)
        plain = z + damping * r
        base = z if kind == "heavy_ball" else plain
        z, before = plain + torch.where(grew, 0.0, mu) * (base - before), base
    torch.testing.assert_close(sol.z, z, rtol=1e-14, atol=1e-14)


def test_without_momentum_it_is_picard_to_the_bit():
    solvers = Momentum(momentum=0.0), FixedPoint(impl="torch")
    one, other = (Solve(solver, Stop(rtol=1e-8))(symmetric, 0 * B).z for solver in solvers)
    assert torch.equal(one, other)


def test_the_factor_per_step_is_the_root_of_the_momentum():
    trace = Solve(Momentum(halve=False), Stop(max_iter=80, rtol=1e-14, trace=True))(symmetric, 0 * B).trace
    rate = (trace[70] / trace[20]) ** (1 / 50)
    torch.testing.assert_close(rate, torch.full((2,), 0.5**0.5, dtype=F64), rtol=0.05, atol=0)


def test_momentum_that_explodes_is_halved_until_it_is_plain_iteration():
    z0 = torch.zeros(1, 2, dtype=F64)
    stop = Stop(max_iter=800, rtol=1e-8)
    assert not Solve(Momentum(halve=False), stop)(rotation, z0).converged.any()
    assert Solve(Momentum(), stop)(rotation, z0).converged.all()


def test_its_steps_have_the_gradient_of_the_iteration():
    stop = Stop(max_iter=6, rtol=0)
    for kind in ("heavy_ball", "nesterov"):

        def last(u, kind=kind):
            return run(Momentum(kind=kind), lambda z: torch.tanh(SLOW * z + u), 0 * B, stop, Layout(), graph=True).z

        assert torch.autograd.gradcheck(last, (B.clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0\.0"),
        ({"kind": "adam"}, "kind must be 'heavy_ball' or 'nesterov', got 'adam'"),
        ({"halve": 1}, "halve must be True or False, got 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Momentum(**options)
