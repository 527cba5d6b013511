"""The reverse scan as the adjoint of a recurrence: equal to backpropagation through time, refused where it is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import Deer, Implicit, Solve, Stop
from deqlm.testing.solvers.problems import normal

TIGHT = Stop(max_iter=10**5, rtol=1e-13)
B, L, H = 2, 33, 4


def before(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)


class Parallel(nn.Module):
    """A cell of torch at all tokens at once, each after the state before it."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell.double()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h, x = before(z).flatten(0, 1), x.flatten(0, 1)
        if isinstance(self.cell, nn.LSTMCell):
            return torch.stack(self.cell(x, (h[:, 0], h[:, 1])), 1).view_as(z)
        return self.cell(x, h).view_as(z)

    def loop(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        h, states = torch.zeros(x.shape[0], *shape, dtype=x.dtype), []
        for one in x.unbind(1):
            more = self.cell(one, (h[:, 0], h[:, 1]) if isinstance(self.cell, nn.LSTMCell) else h)
            h = torch.stack(more, 1) if isinstance(more, tuple) else more
            states.append(h)
        return torch.stack(states, 1)


def cells() -> list[tuple[Parallel, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [(Parallel(nn.GRUCell(3, H)), (H,)), (Parallel(nn.LSTMCell(3, H)), (2, H))]


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
@pytest.mark.parametrize("which", [0, 1], ids=["gru", "lstm"])
def test_cells_have_the_values_and_gradients_of_the_loop(which, structure):
    f, shape = cells()[which]
    x, g = normal(1, B, L, 3).requires_grad_(), normal(2, B, L, *shape)
    inputs = (x, *f.parameters())
    truth = f.loop(x, shape)
    want = torch.autograd.grad((truth * g).sum(), inputs)
    backward = "auto" if structure == "dense" else Solve(Deer(structure=structure), Stop(max_iter=500, rtol=1e-13))
    solver = Deer(structure=structure)
    sol = deqlm.solve(f, torch.zeros_like(g), args=(x,), solver=solver, stop=TIGHT, gradient=Implicit(solve=backward))
    got = torch.autograd.grad((sol.z * g).sum(), inputs)
    assert (sol.z - truth).abs().max() <= 1e-12
    for one, other in zip(got, want, strict=True):
        assert (one - other).abs().max() <= 1e-12 * max(1.0, other.abs().max())
    assert sol.adjoint.converged.all()
    if structure == "dense":
        width = shape[0] * (shape[1] if which else 1)
        assert sol.adjoint.cost.vjps == width + 2, "the blocks, what tokens see, and the true residual"


def test_the_layer_of_a_deq_and_second_derivatives():
    f, _ = cells()[0]
    x = normal(1, B, 7, 3).requires_grad_()
    eq = deqlm.Equilibrium(solver=Deer(), gradient=Implicit(second_order=True), stop=TIGHT)

    def energy(run):
        (first,) = torch.autograd.grad(run().square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), f.cell.weight_hh)[0]

    want = energy(lambda: f.loop(x, (H,)))
    got = energy(lambda: eq(f, torch.zeros(B, 7, H, dtype=torch.float64), x))
    assert (got - want).abs().max() <= 1e-9 * want.abs().max()


def test_forward_mode_is_a_scan_from_the_first_token():
    f, _ = cells()[0]
    x, v = normal(1, B, L, 3), normal(2, B, L, 3)
    z0 = torch.zeros(B, L, H, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        sol = deqlm.solve(f, z0, args=(dual,), solver=Deer(), stop=TIGHT)
        got = torch.autograd.forward_ad.unpack_dual(sol.z).tangent
    with torch.enable_grad():
        _, want = torch.autograd.functional.jvp(lambda x: f.loop(x, (H,)), x, v)
    assert (got - want).abs().max() <= 1e-12


def test_a_map_that_sees_further_is_solved_by_iteration_or_refused():
    W = normal(0, H, H).mul(0.2).requires_grad_()
    x = normal(1, B, 9, H)
    f = lambda z, x: torch.tanh(0.3 * z.cumsum(1) @ W + x)  # noqa: E731
    z0, grads = torch.zeros_like(x), []
    for solver in (Deer(), deqlm.Newton()):
        sol = deqlm.solve(f, z0, args=(x,), solver=solver, stop=TIGHT)
        grads.append(torch.autograd.grad(sol.z.square().sum(), W)[0])
    assert torch.allclose(*grads, rtol=1e-3)
    sol = deqlm.solve(f, z0, args=(x,), solver=Deer(), stop=TIGHT, gradient=Implicit(solve=Solve(Deer())))
    with pytest.raises(ValueError, match=r"token t sees no others than itself and token t - 1; here token \d of row 0"):
        sol.z.sum().backward()


def test_rows_of_a_backward_solve_keep_apart():
    f, _ = cells()[0]
    x, g = normal(1, B, L, 3), normal(2, B, L, H)

    def gradient(x: Tensor, g: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        z0 = torch.zeros(*x.shape[:2], H, dtype=torch.float64)
        z = deqlm.solve(f, z0, args=(x,), solver=Deer(), stop=TIGHT, on_failure="ignore").z
        return torch.autograd.grad((torch.where(z.isfinite(), z, 0.0) * g).sum(), x)[0]

    want = gradient(x, g)
    assert torch.equal(gradient(x.index_fill(0, torch.tensor([1]), torch.nan), g)[0], want[0])
    assert torch.equal(gradient(x, g.index_fill(0, torch.tensor([1]), 0.0))[1], torch.zeros(L, 3, dtype=torch.float64))


def test_a_long_single_precision_sequence():
    torch.manual_seed(0)
    f = Parallel(nn.GRUCell(3, H))
    x = normal(1, 1, 2048, 3)
    truth = f.loop(x, (H,))
    want = torch.autograd.grad(truth.square().sum(), f.cell.weight_hh)[0]
    f = f.float()
    stop = Stop(max_iter=1000, rtol=1e-5, per="token")
    sol = deqlm.solve(f, torch.zeros(1, 2048, H), args=(x.float(),), solver=Deer(), stop=stop)
    (got,) = torch.autograd.grad(sol.z.square().sum(), f.cell.weight_hh)
    assert sol.converged.all()
    assert (sol.z - truth).abs().max() <= 1e-5
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_options_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="no option but structure"):
        Implicit(solve=Solve(Deer(lags=0)))
    assert Implicit().backward(Deer(structure="diagonal", lags=0)).solver == Deer(structure="diagonal")


def test_no_rows_have_no_gradient_of_their_own():
    x = torch.randn(0, 5, 3, requires_grad=True)
    w = torch.eye(3).mul(0.5).requires_grad_()
    sol = deqlm.solve(lambda z, x: torch.tanh(before(z) @ w + x), torch.zeros(0, 5, 3), args=(x,), solver="deer")
    sol.z.sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any()
