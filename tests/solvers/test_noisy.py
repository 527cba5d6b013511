"""Noise on the path: it dies away, is the same for all rows, and can be repeated or drawn anew."""

from __future__ import annotations

import pytest
import torch

import deqlm
from deqlm_solvers import FixedPoint, Layout, Noisy, Solve, Stop
from deqlm_solvers.loop.loop import run

B = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def shrinks(z):
    return 0.5 * torch.tanh(z) + B[: len(z)]


def test_without_noise_it_is_plain_iteration():
    for damping in (1.0, 0.7):
        quiet, plain = Noisy(noise=0.0, damping=damping), FixedPoint(damping=damping, impl="torch")
        one, other = (Solve(s, Stop(rtol=1e-9))(shrinks, 0 * B) for s in (quiet, plain))
        torch.testing.assert_close(one.z, other.z, rtol=0, atol=1e-15)
        assert torch.equal(one.steps, other.steps)


def test_steps_are_those_of_a_loop_by_hand():
    generator, z = torch.Generator().manual_seed(5), 0 * B
    for k in range(4):
        fz = shrinks(z)
        size = 0.3 * 0.6**k * fz.square().mean(1, keepdim=True).sqrt()
        z = z + 0.8 * (fz - z) + size * torch.randn(4, dtype=torch.float64, generator=generator)
    solver = Noisy(noise=0.3, decay=0.6, damping=0.8, seed=5)
    torch.testing.assert_close(Solve(solver, Stop(max_iter=4, rtol=0))(shrinks, 0 * B).z, z, rtol=1e-12, atol=1e-14)


def test_a_seed_repeats_and_none_draws_from_torch():
    budget = Stop(max_iter=3, rtol=0)
    one, again = (Solve(Noisy(seed=1), budget)(shrinks, 0 * B).z for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, Solve(Noisy(seed=2), budget)(shrinks, 0 * B).z)
    fresh = Solve(Noisy(seed=None), budget)
    torch.manual_seed(0)
    first, second = fresh(shrinks, 0 * B).z, fresh(shrinks, 0 * B).z
    torch.manual_seed(0)
    assert torch.equal(fresh(shrinks, 0 * B).z, first)
    assert not torch.equal(first, second)


def test_a_fixed_seed_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Solve(Noisy(), Stop())(shrinks, 0 * B)
    assert torch.equal(torch.get_rng_state(), before)


def test_its_steps_can_be_differentiated():
    shift = B.clone().requires_grad_()
    solver, stop = Noisy(noise=0.2), Stop(max_iter=30, rtol=0)

    def solved(shift):
        return run(solver, lambda z: 0.5 * torch.tanh(z) + shift, 0 * B, stop, Layout(), graph=True).z

    assert torch.autograd.gradcheck(solved, shift)
    deq = deqlm.DEQ(torch.nn.Linear(4, 4), solver=Noisy(noise=0.01), gradient="unrolled", on_failure="ignore")
    deq(torch.randn(3, 4)).sum().backward()
    assert deq.layer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [{"noise": -1.0}, {"noise": float("inf")}, {"decay": 1.0}, {"damping": 0.0}, {"seed": -1}, {"seed": 1.5}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        Noisy(**wrong)
