"""Gradients of maps that mix rows, and of batches in which an argument only looks like one per row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Implicit, Solve, Stop

F64 = torch.float64
TIGHT = Stop(max_iter=400, rtol=1e-12)
WEIGHTS = torch.tensor([[1e-3], [1.0], [1e3], [0.0]], dtype=F64)
"""Of the loss, per row: very different rows of the incoming gradient, one of them zero."""


class MeanLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=F64)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.linear(z) + 0.3 * z.mean(0, keepdim=True))


class NormLayer(MeanLayer):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=F64)

    def forward(self, z: Tensor) -> Tensor:
        return 0.3 * torch.tanh(self.norm(self.linear(z))) + 0.2 * z


@pytest.mark.parametrize("layer", [MeanLayer, NormLayer])
def test_the_implicit_gradient_is_exact_though_rows_are_mixed(layer: type[nn.Module]) -> None:
    module, x = layer(), torch.randn(4, 4, dtype=F64)

    def gradients(**options: object) -> list[Tensor]:
        deq = DEQ(module, on_failure="ignore", **options)  # type: ignore[arg-type]
        loss = (WEIGHTS * deq(x).square()).sum()
        return list(torch.autograd.grad(loss, list(module.parameters())))

    implicit = gradients(stop=TIGHT, gradient=Implicit(solve=Solve("anderson", TIGHT)))
    unrolled = gradients(solver="fixed_point", stop=Stop(max_iter=120, rtol=0), gradient="unrolled")
    for got, want in zip(implicit, unrolled, strict=True):
        assert (got - want).norm() <= 1e-8 * want.norm() + 1e-12


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "one_step"])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_shared_table_that_could_be_per_row_keeps_its_gradient(gradient: str, start: float) -> None:
    """A position table of shape (L, D) with L = B: nothing of it may move to another row, equal as its rows may be."""

    class WithPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, dtype=F64)

        def forward(self, z: Tensor, positions: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.linear(z) + positions)

    module = WithPositions()
    x = torch.randn(4, 4, 4, dtype=F64)

    def gradient_of_table(x: Tensor) -> Tensor:
        table = torch.full((4, 4), start, dtype=F64, requires_grad=True)
        y = DEQ(module, gradient=gradient, on_failure="ignore", stop=Stop(rtol=1e-10, max_iter=300))(x, table)
        y[[0, 2, 3]].square().sum().backward()
        assert table.grad is not None
        return table.grad

    spoiled = x.clone()
    spoiled[1] = torch.nan
    torch.testing.assert_close(gradient_of_table(spoiled), gradient_of_table(x), rtol=1e-6, atol=1e-9)


def test_best_f_warns_of_rows_that_did_not_converge() -> None:
    stop = Stop(keep="best_f", max_iter=5)
    with pytest.warns(deqlm.ConvergenceWarning, match="MAX_ITER"):
        deqlm.solve(lambda z: 1 - 2 * z, torch.zeros(1, 1), solver="fixed_point", stop=stop)


def test_cost_counts_every_evaluation_and_product() -> None:
    calls = []
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return torch.tanh(w * z + 1)

    for gradient in ("implicit", "phantom", "one_step", Implicit(second_order=True)):
        calls.clear()
        sol = deqlm.solve(f, torch.zeros(3, 2, dtype=F64), gradient=gradient)
        assert sol.cost.evaluations == len(calls)
        assert sol.cost.row_evaluations == 3 * len(calls)
    (first,) = torch.autograd.grad(sol.z.square().sum(), w, create_graph=True)
    first.backward()
    assert sol.adjoint is not None
    assert sol.adjoint.cost.vjps > 0
    assert sol.adjoint.cost.jvps > 0


def test_the_adjoint_has_the_batch_shape() -> None:
    w = torch.tensor(0.5, requires_grad=True)
    sol = deqlm.solve(lambda z: w * z + 1, torch.zeros(2, 3, 4), batch_dims=2)
    sol.z.sum().backward()
    assert sol.adjoint is not None
    assert sol.adjoint.status is not None
    assert sol.adjoint.status.shape == sol.adjoint.residual.shape == sol.adjoint.steps.shape == (2, 3)
