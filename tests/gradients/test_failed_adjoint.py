"""What rows get whose backward solve does not converge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Implicit, OneStep, Solve, Status, Stop
from deqlm.testing.gradients.layers import SHARP

F64 = torch.float64
GAIN = torch.tensor([[0.1], [0.99], [-3.0]], dtype=F64)
"""The backward iteration converges in 12 steps, does not, and explodes."""


def gradient_of(gradient: deqlm.Gradient) -> tuple[Tensor, deqlm.Solution]:
    x = torch.ones(3, 2, dtype=F64, requires_grad=True)
    f = {"args": (x, GAIN), "gradient": gradient, "stop": SHARP, "on_failure": "ignore"}
    sol = deqlm.solve(lambda z, x, gain: gain * z + x, torch.zeros_like(x), **f)
    assert sol.converged.all()
    return torch.autograd.grad(sol.z.sum(), x)[0], sol


def failing(policy: str) -> Implicit:
    stop = Stop(max_iter=14, rtol=1e-10, divergence=1e3)
    return Implicit(solve=Solve("fixed_point", stop), failed=policy)


def test_rows_that_fail_get_what_was_asked_for_and_the_others_their_own() -> None:
    exact, (one_step, _) = 1 / (1 - GAIN), gradient_of(OneStep())
    for policy in ("keep", "one_step", "zero"):
        got, sol = gradient_of(failing(policy))
        assert sol.adjoint.status.tolist() == [Status.CONVERGED, Status.MAX_ITER, Status.DIVERGED]
        torch.testing.assert_close(got[0], exact[0].expand(2), rtol=1e-9, atol=0)
        if policy == "keep":
            assert (got[1] > 5).all()
            assert (got[1] < 0.5 * exact[1]).all()
            assert (got[2] == 0).all()
        elif policy == "one_step":
            assert torch.equal(got[1:], torch.ones(2, 2, dtype=F64))
            assert torch.equal(one_step[1:], torch.ones(2, 2, dtype=F64))
        else:
            assert (got[1:] == 0).all()


def test_where_all_converge_the_policy_changes_no_bit() -> None:
    found = [gradient_of(Implicit(failed=policy))[0] for policy in ("keep", "one_step", "zero")]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_another_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="failed must be 'keep', 'one_step' or 'zero', got 'drop'"):
        Implicit(failed="drop")
