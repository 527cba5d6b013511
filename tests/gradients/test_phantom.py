"""The phantom gradient: a few damped steps, their limit and their reported growth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Phantom, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, wrap
from gradients.maps import symmetric

F64 = torch.float64


def cotangent(A: Tensor, gradient: Phantom, g: Tensor) -> Tensor:
    """Return the gradient for x of the solution of z = A z + x, which is the estimate of (I - A^T)^-1 g."""
    x = torch.randn(len(g), len(A), dtype=F64, requires_grad=True)
    sol = deqlm.solve(lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), gradient=gradient, stop=SHARP)
    assert sol.converged.all()
    return torch.autograd.grad(sol.z, x, g)[0]


def jordan(n: int, diagonal: float, above: float) -> Tensor:
    return diagonal * torch.eye(n, dtype=F64) + above * torch.diag(torch.ones(n - 1, dtype=F64), 1)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("damping", [0.3, 0.8, 1.0])
def test_value_and_gradient_are_those_of_the_steps_written_out(steps: int, damping: float) -> None:
    layer = TanhLayer(5)
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    deq = wrap(layer, Phantom(steps, damping), stop=Stop(rtol=1e-2))
    with torch.no_grad():
        z = deq(x)
    for _ in range(steps):
        z = (1 - damping) * z + damping * layer(z, x)
    y = deq(x)
    torch.testing.assert_close(y, z, rtol=1e-13, atol=1e-14)
    g = torch.randn_like(y)
    inputs = [layer.W, layer.b, x]
    for a, b in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(z, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("damping", [0.5, 0.8])
@pytest.mark.parametrize("A", [symmetric([0.9, 0.5, -0.6]), jordan(3, 0.5, 2.0)], ids=["symmetric", "non-normal"])
def test_error_is_the_cut_series_and_within_its_norm_bound(A: Tensor, steps: int, damping: float) -> None:
    g = torch.randn(2, 3, dtype=F64)
    eye = torch.eye(3, dtype=F64)
    exact = torch.linalg.solve(eye - A.T, g.T)
    cut = torch.linalg.matrix_power((1 - damping) * eye + damping * A.T, steps)
    error = exact - cotangent(A, Phantom(steps, damping), g).T
    torch.testing.assert_close(error, cut @ exact, rtol=1e-9, atol=1e-10)
    assert (error.norm(dim=0) <= torch.linalg.matrix_norm(cut, 2) * exact.norm(dim=0) * (1 + 1e-9)).all()


def test_error_of_a_non_normal_map_exceeds_the_power_of_its_spectral_radius() -> None:
    A, g = jordan(3, 0.5, 2.0), torch.randn(2, 3, dtype=F64)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) - A.T, g.T).T
    error = (exact - cotangent(A, Phantom(3, 1.0), g)).norm(dim=1)
    assert (error > 3 * 0.5**3 * exact.norm(dim=1)).all()


@pytest.mark.parametrize(
    ("spectrum", "damping"),
    [([0.8, 0.3, -0.5], 0.8), ([-1.5, 0.5, 0.1], 0.5)],
    ids=["contraction", "expanding, tamed by the damping"],
)
def test_many_steps_give_the_implicit_gradient(spectrum: list[float], damping: float) -> None:
    A, g = symmetric(spectrum), torch.randn(2, 3, dtype=F64)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) - A.T, g.T).T
    torch.testing.assert_close(cotangent(A, Phantom(200, damping), g), exact, rtol=1e-10, atol=1e-11)


def test_many_steps_do_not_help_where_the_damped_map_expands() -> None:
    A, g = symmetric([1.3, 0.5, 0.1]), torch.randn(2, 3, dtype=F64)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) - A.T, g.T).T
    errors = [(cotangent(A, Phantom(k, 0.8), g) - exact).norm() for k in (2, 8)]
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("slope", [0.9, 0.2, -0.7])
@pytest.mark.parametrize("damping", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("steps", [2, 4])
def test_growth_is_exact_where_there_is_one_eigenvalue(slope: float, damping: float, steps: int) -> None:
    stop = Stop(max_iter=2, rtol=0)
    deq = deqlm.DEQ(lambda z: slope * z, solver="fixed_point", gradient=Phantom(steps, damping), stop=stop)
    sol = deq(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=F64, requires_grad=True), with_stats=True)[1]
    want = abs(1 - damping + damping * slope)
    if want < 1e-6:
        return
    torch.testing.assert_close(sol.adjoint.growth, torch.full_like(sol.residual, want), rtol=1e-6, atol=1e-9)


def test_growth_tends_to_the_largest_eigenvalue_of_the_damped_map() -> None:
    A = symmetric([0.9, 0.4, -0.5])
    x = torch.randn(4, 3, dtype=F64)
    sol = deqlm.solve(
        lambda z, x: z @ A.T + x,
        torch.zeros_like(x),
        args=(x,),
        solver="fixed_point",
        stop=Stop(rtol=1e-2),
        gradient=Phantom(40, 0.8),
    )
    torch.testing.assert_close(sol.adjoint.growth, torch.full((4,), 0.2 + 0.8 * 0.9, dtype=F64), rtol=0.02, atol=0)
    assert "growth per term 0.92" in repr(sol.adjoint)
    assert not sol.adjoint.ran


def test_growth_above_one_where_anderson_converged_on_an_expanding_map() -> None:
    A = symmetric([1.5, *torch.linspace(-0.9, 0.9, 29).tolist()])
    x = torch.randn(4, 30, dtype=F64)
    sol = deqlm.solve(
        lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), stop=Stop(rtol=1e-3), gradient=Phantom(60, 0.8)
    )
    assert sol.converged.all()
    growth = sol.adjoint.growth
    assert (growth > 1.2).all()
    assert (growth < 1.41).all()


def test_growth_is_absent_for_one_step_and_unknown_at_the_very_solution() -> None:
    x = torch.randn(2, 3, dtype=F64)
    assert deqlm.DEQ(torch.tanh, gradient=Phantom(1), on_failure="ignore")(x, with_stats=True)[1].adjoint.growth is None
    sol = deqlm.DEQ(lambda z: 0.5 * z, gradient=Phantom(4), stop=SHARP)(x, with_stats=True)[1]
    assert sol.adjoint.growth.isnan().all()


@pytest.mark.parametrize("masked", [False, True])
def test_checkpoint_has_the_bits_of_all_steps_and_evaluates_again_in_backward(masked: bool) -> None:
    class Counted(TanhLayer):
        calls = 0

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            Counted.calls += 1
            return super().forward(super().forward(super().forward(z, u), u), u)

    layer, found, stored = Counted(5), [], []
    x = torch.randn(3, 4, 5, dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True]] * 3) if masked else None
    for checkpoint in (False, True):
        kept: set[int] = set()

        def keep(t: Tensor, kept: set[int] = kept) -> Tensor:
            kept.add(t.data_ptr())
            return t

        stop = Stop(max_iter=3, rtol=1e-12, per="token") if masked else Stop(max_iter=3, rtol=0)
        deq = wrap(layer, Phantom(6, checkpoint=checkpoint), stop=stop, solver="fixed_point", on_failure="ignore")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y, sol = deq(x, with_stats=True, token_mask=mask)
        before = Counted.calls
        found.append((y, sol.adjoint.growth, *torch.autograd.grad(y.sum(), [layer.W, layer.b, x])))
        assert Counted.calls - before == (6 if checkpoint else 0)
        stored.append(len(kept))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert stored[1] < stored[0] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps must be a whole number >= 1, got 0"),
        ({"steps": 2.0}, r"steps must be a whole number >= 1, got 2\.0"),
        ({"steps": True}, r"steps must be a whole number >= 1, got True"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0\.0"),
        ({"damping": 1.5}, r"damping must be in \(0, 1\], got 1\.5"),
        ({"checkpoint": 1}, r"checkpoint must be True or False, got 1"),
        ({"damping": float("nan")}, r"damping must be in \(0, 1\], got nan"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phantom(**options)
