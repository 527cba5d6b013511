"""Gradients: exactness, scale, second order, repeated and mixed use of one graph."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deqlm
from defects.maps import F64, Map, distance, implicit_gradient, iterated, one_step_gradient, weighted
from deqlm import ConvergenceWarning, Implicit, Solve, Stop
from deqlm.testing.gradients.layers import solver_for

ROOT = Path(__file__).resolve().parents[2]
SHARP = Stop(max_iter=1000, rtol=1e-13)
IMPLICIT = Implicit(solve=Solve("anderson", SHARP))
SECOND = IMPLICIT.replace(second_order=True)


def solved(f: Map, z0: Tensor, gradient: deqlm.Gradient = IMPLICIT, **options: object) -> deqlm.Solution:
    return deqlm.solve(f, z0, gradient=gradient, **{"stop": SHARP, **options})


def ours_stays_implicit_when_the_solve_ends_early() -> None:
    f, W, z0 = weighted()
    want = implicit_gradient(f, W, z0)
    with torch.no_grad():
        solution = iterated(f, z0)
    for start in (z0, solution):
        sol = solved(f, start)
        (got,) = torch.autograd.grad(sol.z.sum(), W)
        assert distance(got, want) < 1e-10
    assert int(sol.steps.max()) == 1


def theirs_turns_one_step_when_the_solve_ends_early() -> None:
    from defects import peer

    f, W, z0 = weighted()
    want, one = implicit_gradient(f, W, z0), one_step_gradient(f, W, z0)
    module = peer.deq(core="indexing", ift=True, n_states=3)
    states, _ = module(f, z0)
    (got,) = torch.autograd.grad(states[-1].sum(), W)
    assert len(states) == 1, "three were asked for"
    assert distance(got, one) < 1e-8
    assert distance(got, want) > 0.05


def ours_does_not_depend_on_the_scale_of_the_loss() -> None:
    f, W, z0 = weighted()
    want = implicit_gradient(f, W, z0)
    for scale in (1.0, 1e-9, 1e-20, 1e20):
        sol = solved(f, z0, gradient="implicit")
        (got,) = torch.autograd.grad(scale * sol.z.sum(), W)
        assert distance(got / scale, want) < 1e-4
        assert sol.adjoint.converged.all()


def theirs_depends_on_the_scale_of_the_loss() -> None:
    from defects import peer

    f, W, z0 = weighted()
    want, one = implicit_gradient(f, W, z0), one_step_gradient(f, W, z0)
    module = peer.deq(ift=True, b_tol=1e-6)
    for scale, truth in ((1.0, want), (1e-9, one)):
        (got,) = torch.autograd.grad(scale * peer.point(module, f, z0).sum(), W)
        assert distance(got / scale, truth) < 1e-4
    assert distance(one, want) > 0.05


def slow() -> tuple[Map, Tensor, Tensor, float]:
    """Return z -> W z + 1 with W = .99 I, W, a start (2, 4), and the true entry of the gradient of sum(z*)."""
    W = (0.99 * torch.eye(4, dtype=F64)).requires_grad_()
    return lambda z: z @ W.T + 1, W, torch.zeros(2, 4, dtype=F64), 2 * 100.0 * 100.0


def ours_says_when_the_backward_solve_fails() -> None:
    f, W, z0, want = slow()
    sol = solved(f, z0, gradient="implicit")
    (got,) = torch.autograd.grad(sol.z.sum(), W)
    assert (got / want - 1).abs().max() < 1e-3
    short = Implicit(solve=Solve("fixed_point", Stop(max_iter=40, rtol=1e-6)))
    sol = solved(f, z0, gradient=short)
    with pytest.warns(ConvergenceWarning, match="backward solve"):
        torch.autograd.grad(sol.z.sum(), W)
    assert not sol.adjoint.converged.any()


def theirs_is_silent_when_the_backward_solve_fails() -> None:
    from defects import peer

    f, W, z0, want = slow()
    module = peer.torchdeq.get_deq(ift=True, f_tol=1e-12, f_max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (got,) = torch.autograd.grad(peer.point(module, f, z0).sum(), W)
    assert (got < 0.5 * want).all()


def hessian_product(y: Tensor, W: Tensor) -> Tensor:
    """Return the product of the Hessian of ||y||^2 by W with a matrix of ones to nine."""
    v = torch.arange(1, W.numel() + 1, dtype=W.dtype).reshape(W.shape)
    (g,) = torch.autograd.grad(y.square().sum(), W, create_graph=True)
    return torch.autograd.grad((g * v).sum(), W)[0]


def ours_has_right_second_derivatives_or_refuses() -> None:
    f, W, z0 = weighted(3, 0.7)
    want = hessian_product(iterated(f, z0, 300), W)
    assert distance(hessian_product(solved(f, z0, SECOND).z, W), want) < 1e-8
    with pytest.raises(RuntimeError, match=r"second_order=True"):
        hessian_product(solved(f, z0, IMPLICIT).z, W)
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)
    scalar, start = (lambda z: torch.tanh(w * z + 1)), torch.zeros(1, 1, dtype=F64)
    want = hessian_product(iterated(scalar, start, 300), w)
    assert distance(hessian_product(solved(scalar, start, SECOND).z, w), want) < 1e-8


def theirs_has_wrong_second_derivatives() -> None:
    from defects import peer

    f, W, z0 = weighted(3, 0.7)
    (first,) = torch.autograd.grad(iterated(f, z0, 300).square().sum(), W)
    want = hessian_product(iterated(f, z0, 300), W)
    for kind in ("ift", "hook_ift"):
        (got,) = torch.autograd.grad(peer.point(peer.deq(**{kind: True}), f, z0).square().sum(), W)
        assert distance(got, first) < 1e-8
        assert distance(hessian_product(peer.point(peer.deq(**{kind: True}), f, z0), W), want) > 0.1


def ours_can_be_differentiated_again() -> None:
    f, W, z0 = weighted()
    want = implicit_gradient(f, W, z0)
    y = solved(f, z0).z
    for _ in range(2):
        (got,) = torch.autograd.grad(y.sum(), W, retain_graph=True)
        assert distance(got, want) < 1e-10


def theirs_is_one_step_the_second_time() -> None:
    from defects import peer

    f, W, z0 = weighted()
    want, one = implicit_gradient(f, W, z0), one_step_gradient(f, W, z0)
    y = peer.point(peer.deq(hook_ift=True), f, z0)
    for truth in (want, one):
        (got,) = torch.autograd.grad(y.sum(), W, retain_graph=True)
        assert distance(got, truth) < 1e-8
    assert distance(one, want) > 0.05


def ours_takes_several_solves_in_one_graph() -> None:
    f, W, z0 = weighted()
    want = implicit_gradient(f, W, z0)
    deq = deqlm.DEQ(lambda z, u: f(z), inject="argument", gradient=IMPLICIT, stop=SHARP)
    first, second = deq(z0), deq(z0)
    (got,) = torch.autograd.grad(first.sum() + 2 * second.sum(), W)
    assert distance(got, 3 * want) < 1e-10


HANG = """
import torch
from defects import peer
from defects.maps import weighted
f, W, z0 = weighted(8)
module = peer.deq(hook_ift=True)
outputs = [peer.point(module, f, z0) for _ in range({forwards})]
print("forward", flush=True)
torch.autograd.grad(sum(y.sum() for y in outputs), W)
print("backward", flush=True)
"""


def theirs_hangs_on_several_solves_in_one_graph() -> None:
    def run(forwards: int, seconds: float) -> str:
        command = [sys.executable, "-W", "ignore", "-c", HANG.format(forwards=forwards)]
        process = subprocess.Popen(command, cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True)
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]

    assert run(1, 120).split() == ["forward", "backward"]
    assert run(2, 30).split() == ["forward"]


def ours_runs_in_train_without_grad() -> None:
    f, _, z0 = weighted()
    deq = deqlm.DEQ(lambda z, u: f(z), inject="argument", stop=SHARP).train()
    with torch.no_grad():
        y = deq(z0)
    assert not y.requires_grad
    torch.testing.assert_close(y, iterated(f, z0).detach(), rtol=1e-9, atol=1e-9)


def theirs_raises_in_train_without_grad() -> None:
    from defects import peer

    f, _, z0 = weighted()
    with torch.no_grad(), pytest.raises(RuntimeError, match="hook"):
        peer.point(peer.deq(hook_ift=True), f, z0)


def ours_has_a_gradient_in_eval() -> None:
    f, W, z0 = weighted()
    deq = deqlm.DEQ(lambda z, u: f(z), inject="argument", gradient=IMPLICIT, stop=SHARP).eval()
    (got,) = torch.autograd.grad(deq(z0).sum(), W)
    assert distance(got, implicit_gradient(f, W, z0)) < 1e-10


def theirs_has_no_gradient_in_eval() -> None:
    from defects import peer

    f, _, z0 = weighted()
    assert peer.point(peer.deq(ift=True).train(), f, z0).requires_grad
    assert not peer.point(peer.deq(ift=True).eval(), f, z0).requires_grad


def half_layer() -> nn.Linear:
    linear = nn.Linear(6, 6)
    with torch.no_grad():
        linear.weight.mul_(0.5)
    return linear


def ours_runs_backward_outside_autocast() -> None:
    linear, z0 = half_layer(), torch.zeros(3, 6)
    stop = Stop(rtol=2e-2)
    (want,) = torch.autograd.grad(deqlm.solve(lambda z: linear(z) + 1, z0).z.sum(), linear.weight)
    for gradient in deqlm.GRADIENTS:
        solver = solver_for(gradient)
        with torch.autocast("cpu", torch.bfloat16):
            y = deqlm.solve(lambda z: linear(z) + 1, z0, solver=solver, gradient=gradient, stop=stop).z
        assert y.dtype == torch.float32
        (got,) = torch.autograd.grad(y.sum(), linear.weight)
        if gradient == "implicit":
            assert distance(got, want) < 0.1


def theirs_raises_in_backward_after_autocast() -> None:
    from defects import peer

    linear, z0 = half_layer(), torch.zeros(3, 6)
    for kind in ("ift", "hook_ift"):
        with torch.autocast("cpu", torch.bfloat16):
            y = peer.point(peer.torchdeq.get_deq(**{kind: True}), lambda z: linear(z) + 1, z0)
        with pytest.raises(RuntimeError, match=r"same dtype|type of value"):
            y.float().sum().backward()


def ours_finds_weights_changed_before_backward() -> None:
    f, W, z0 = weighted()
    y = solved(f, z0).z
    with torch.no_grad():
        W.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), W)


def theirs_is_wrong_after_weights_changed_before_backward() -> None:
    """The last tanh saves its output only, so autograd itself does not notice that W changed."""
    from defects import peer

    f, W, z0 = weighted()
    want = implicit_gradient(f, W, z0)
    y = peer.point(peer.deq(ift=True), f, z0)
    with torch.no_grad():
        W.mul_(0.5)
    (got,) = torch.autograd.grad(y.sum(), W)
    assert distance(got, want) > 0.05
