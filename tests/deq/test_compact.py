"""Rows that are done leave the batch of a layer, with the inputs that are theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop

B, N = 16, 640


class Layer(nn.Module):
    """One gain per row, given as an argument; remembers how many rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(0.1 * torch.ones(N))
        self.seen: list[int] = []

    def forward(self, z: Tensor, gain: Tensor) -> Tensor:
        self.seen.append(z.shape[0])
        return gain[:, None] * torch.tanh(z) + self.shift


def gains() -> Tensor:
    gain = torch.full((B,), 0.3)
    gain[3] = 0.97
    return gain


def test_a_deq_knows_which_inputs_are_per_row() -> None:
    x, gain = torch.randn(B, N), gains()
    layer = Layer()
    stop = Stop(max_iter=200, rtol=1e-5)
    y, sol = DEQ(layer, stop=stop)(x, gain, with_stats=True)
    assert sol.converged.all()
    assert min(layer.seen) == 1
    assert sol.cost.row_evaluations == sum(layer.seen[: sol.cost.evaluations])
    whole = Layer()
    other, all_rows = DEQ(whole, stop=stop.replace(compact=False))(x, gain, with_stats=True)
    assert set(whole.seen) == {B}
    torch.testing.assert_close(y, other, rtol=1e-5, atol=1e-5)
    assert sol.cost.row_evaluations < 0.6 * all_rows.cost.row_evaluations


def test_rows_leave_again_and_again() -> None:
    gain = torch.full((B,), 0.2, dtype=torch.float64)
    gain[:8], gain[:3], gain[0] = 0.8, 0.93, 0.98
    layer, stop = Layer().double(), Stop(max_iter=2000, rtol=1e-10)
    x = torch.randn(B, N, dtype=torch.float64)
    y, sol = DEQ(layer, solver="fixed_point", stop=stop)(x, gain, with_stats=True)
    assert sol.converged.all()
    assert len({rows for rows in layer.seen if rows != B}) >= 2
    whole = DEQ(Layer().double(), solver="fixed_point", stop=stop.replace(compact=False))(x, gain)
    torch.testing.assert_close(y, whole, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_whole_batch() -> None:
    x, gain = torch.randn(B, N, dtype=torch.float64), gains().double()
    grads = []
    for compact in (True, False):
        layer = Layer().double()
        DEQ(layer, stop=Stop(max_iter=300, rtol=1e-12, compact=compact))(x, gain).square().sum().backward()
        assert layer.shift.grad is not None
        grads.append(layer.shift.grad)
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)


def test_solve_gathers_args_and_finds_out_what_was_captured() -> None:
    x, gain = torch.randn(B, N), gains()
    seen: list[int] = []

    def f(z: Tensor, u: Tensor, gain: Tensor) -> Tensor:
        seen.append(z.shape[0])
        return gain[:, None] * torch.tanh(z) + u

    stop = Stop(max_iter=200, rtol=1e-5)
    given = deqlm.solve(f, torch.zeros(B, N), args=(x, gain), stop=stop)
    assert min(seen) == 1
    assert given.cost.row_evaluations == sum(seen)
    seen.clear()
    captured = deqlm.solve(lambda z: f(z, x, gain), torch.zeros(B, N), stop=stop)
    assert set(seen[:8]) == {B}
    assert len([rows for rows in seen if rows != B]) <= 1, "one probe fails, then all rows stay"
    torch.testing.assert_close(given.z, captured.z, rtol=1e-4, atol=1e-4)


def test_a_table_as_long_as_the_batch_keeps_the_rows() -> None:
    """Its first dimension happens to be that of the batch; the probe sees that it is not per row."""
    table = torch.randn(B, N)
    seen: list[int] = []

    def f(z: Tensor, gain: Tensor, table: Tensor) -> Tensor:
        seen.append(z.shape[0])
        return gain[:, None] * torch.tanh(z) + table.mean(0)

    sol = deqlm.solve(f, torch.zeros(B, N), args=(gains(), table), stop=Stop(max_iter=200, rtol=1e-5))
    assert sol.converged.all()
    assert len([rows for rows in seen if rows != B]) <= 1


def test_rows_stay_where_the_layer_draws_noise() -> None:
    layer = Layer()
    noisy = nn.Dropout(0.2)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.noisy = layer, noisy

        def forward(self, z: Tensor, gain: Tensor) -> Tensor:
            return self.noisy(self.layer(z, gain))

    _, sol = DEQ(Noisy(), stop=Stop(max_iter=300, rtol=1e-5), on_failure="ignore")(
        torch.randn(B, N), gains(), with_stats=True
    )
    assert set(layer.seen) == {B}
    assert sol.cost.row_evaluations == B * sol.cost.evaluations


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
@pytest.mark.parametrize("normed", [nn.BatchNorm1d(N), nn.BatchNorm1d(N).eval()])
def test_rows_stay_where_the_layer_mixes_them(normed: nn.BatchNorm1d) -> None:
    seen: list[int] = []

    def layer(z: Tensor, gain: Tensor) -> Tensor:
        seen.append(z.shape[0])
        return gain[:, None] * torch.tanh(normed(z) if normed.training else z)

    DEQ(layer, stop=Stop(max_iter=200, rtol=1e-5), on_failure="ignore")(torch.randn(B, N), gains())
    narrow = [rows for rows in seen if rows != B]
    assert (len(narrow) <= 1) is normed.training
