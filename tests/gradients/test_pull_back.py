"""The product with a transposed Jacobian is that of torch.autograd.grad."""

from __future__ import annotations

import pytest
import torch

from deqlm.gradients import pull_back as module
from deqlm.gradients.pull_back import pull_back


@pytest.fixture(params=["engine", "public"])
def entry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "public":
        monkeypatch.setattr(module, "_engine", None)
    else:
        assert module._engine is not None, "this version of torch has lost the entry; the public function serves"


@pytest.mark.usefixtures("entry")
def test_it_is_the_product_and_leaves_no_trace() -> None:
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    out = torch.tanh(z @ weight)
    for _ in range(3):
        w = torch.randn_like(out)
        got = pull_back(out, z, w)
        truth = (w * (1 - out.detach() ** 2)) @ weight.detach().T
        assert got is not None
        assert not got.requires_grad
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)
    assert z.grad is None
    assert weight.grad is None


@pytest.mark.usefixtures("entry")
def test_none_where_nothing_depends_on_the_source() -> None:
    z, other = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert pull_back(2 * other, z, torch.ones(2, 3)) is None
