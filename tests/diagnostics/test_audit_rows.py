"""The audit where rows run away, where tokens are masked, and where the backward solve looks at every token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import Anderson, Implicit, Solve, Stop, audit_gradient
from deqlm.diagnostics.audit.exact import Truth
from diagnostics.layers import made

F64 = torch.float64


@pytest.mark.parametrize("name", ["rows", "mlp, bounded"])
def test_rows_that_ran_away_are_compared_with_nothing(name):
    layer, x = made(name)
    audit = audit_gradient(deqlm.DEQ(layer), x, gradients=["implicit", "phantom"], repeats=1)
    assert "no fixed point" in audit.no_exact
    assert all(audit[method].verdict not in ("exact", "WRONG") for method in ("implicit", "phantom"))
    assert "run" not in audit["implicit"].verdict
    if "ran away" in audit.no_exact:
        assert any("ran away" in note for note in audit["implicit"].notes)


def test_a_state_that_grew_in_float64_is_no_fixed_point():
    layer, x = made("rows")
    deq = deqlm.DEQ(layer, solver="fixed_point", stop=Stop(max_iter=30), on_failure="ignore")
    audit = audit_gradient(deq, x, gradients="implicit", repeats=1)
    assert "no fixed point found in float64" in audit.no_exact


class Mean(nn.Module):
    """tanh(W z_t + mean over tokens of z): real tokens read masked ones."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(0.4 * torch.randn(3, 3, dtype=F64))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.W + 0.5 * z.mean(1, keepdim=True))


def test_the_exact_gradient_is_that_of_the_masked_map():
    torch.manual_seed(0)
    layer, x = Mean(), torch.randn(2, 5, 3, dtype=F64)
    mask = torch.tensor([[True, True, True, False, False], [True, True, True, True, False]])
    deq = deqlm.DEQ(layer, stop=Stop(max_iter=300, rtol=1e-12, per="token"), on_failure="ignore")
    with torch.no_grad():
        state = deq(x, token_mask=mask)
    weights = torch.randn(2, 5, 3, dtype=F64) * mask[..., None]
    truth = Truth(deq, (x, (), {}), lambda y: (y * weights).sum(), state, mask)
    z = torch.zeros_like(x)
    for _ in range(200):
        z = torch.where(mask[..., None], layer(z + x), 0.0)
    (want,) = torch.autograd.grad((z * weights).sum(), layer.W)
    torch.testing.assert_close(truth.at_fixed_point.groups["parameters"], want.flatten(), rtol=1e-9, atol=1e-12)


def test_a_backward_solve_by_token_is_judged_in_its_own_terms():
    torch.manual_seed(0)
    by_token = {"per": "token", "token_dim": 1}
    gradient = Implicit(solve=Solve(Anderson(), Stop(max_iter=200, rtol=1e-9, **by_token)))
    deq = deqlm.DEQ(Mean(), gradient=gradient, stop=Stop(max_iter=300, rtol=1e-12, **by_token))
    audit = audit_gradient(deq, torch.randn(2, 5, 3, dtype=F64), gradients="implicit", repeats=1)
    assert audit["implicit"].verdict == "exact"


def test_a_diagnosis_looks_at_the_masked_map():
    torch.manual_seed(0)
    W = torch.eye(3)
    mask = torch.tensor([[True, True, False]])

    def f(z):
        return torch.where(mask[..., None], 0.3 * z @ W + 0.5 * z.sum(1, keepdim=True), 5 * z) + 1

    found = deqlm.diagnose(f, torch.zeros(1, 3, 3), token_mask=mask, stop=Stop(per="token"))
    assert found.healthy
    assert found.contraction.radius[0] < 1.5
