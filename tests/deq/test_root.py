"""F(z) = 0: known roots, the implicit gradient, the method that is told, and the statuses of every solve."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import Status, Stop, root

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("f", "start", "want"),
    [
        (lambda z: z**2 - 2, 1.0, math.sqrt(2)),
        (lambda z: z**3 - 8, 100.0, 2.0),
        (torch.sin, 0.5, 0.0),
        (lambda z: torch.exp(z) - 1, 2.0, 0.0),
        (lambda z: torch.cos(z) - z, 0.0, 0.7390851332151607),
        (lambda z: 1e3 * (z - 5), 0.0, 5.0),
        (lambda z: torch.atan(z - 1), 3.0, 1.0),
    ],
    ids=["square", "far", "zero", "zero with rounding", "cosine", "steep", "overshoots"],
)
def test_known_roots(f, start: float, want: float, dtype: torch.dtype) -> None:
    sol = root(f, torch.full((3, 2), start, dtype=dtype))
    assert sol.converged.all()
    slack = 1e-7 if dtype == F64 else 3e-5
    torch.testing.assert_close(sol.z, torch.full((3, 2), want, dtype=dtype), rtol=slack, atol=slack)
    assert torch.allclose(sol.residual, f(sol.z).norm(dim=1).double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n", [3, 100])
def test_the_gradient_is_that_of_the_implicit_function_theorem(n: int) -> None:
    A = (2 * torch.eye(n, dtype=F64) + 0.5 * torch.randn(n, n, dtype=F64) / n**0.5).requires_grad_()
    b = torch.randn(4, n, dtype=F64, requires_grad=True)
    sol = root(lambda z, b: z @ A.T + 0.1 * z**3 - b, torch.zeros(4, n, dtype=F64), args=(b,))
    assert sol.converged.all()
    loss = sol.z.square().sum()
    z = sol.z.detach()
    J = A.detach() + torch.diag_embed(0.3 * z**2)
    w = torch.linalg.solve(J.mT, (2 * z)[..., None]).squeeze(-1)
    got_b, got_A = torch.autograd.grad(loss, [b, A])
    torch.testing.assert_close(got_b, w, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got_A, -w.T @ z, rtol=1e-4, atol=1e-6)
    assert sol.adjoint.converged.all()


def test_gradcheck() -> None:
    a = torch.rand(2, 3, dtype=F64).add_(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: root(lambda z: z**3 + z - a, torch.zeros_like(a)).z, a)


def test_it_says_what_it_did() -> None:
    few = root(lambda z: z**2 - 2, torch.ones(2, 1, dtype=F64))
    many = root(lambda z: z + 0.1 * z**3 - 1, torch.zeros(2, 100, dtype=F64))
    assert few.choices == ("dogleg", "newton", "newton_krylov", "broyden")
    assert many.choices == ("newton_krylov", "broyden", "anderson")
    assert "picked: 2 dogleg" in few.summary()
    asked = root(lambda z: z**2 - 2, torch.ones(2, 1, dtype=F64), solver="broyden", stop={"rtol": 1e-9})
    assert asked.solver.name == "broyden"
    assert asked.converged.all()


def test_a_map_without_a_root_fails_as_every_solve_does() -> None:
    f = lambda z: z**2 + 1  # noqa: E731
    with pytest.warns(deqlm.ConvergenceWarning, match=r"print\(deqlm.diagnose\(lambda z: z - F\(z\), z0\)\)"):
        sol = root(f, torch.full((2, 1), 0.7, dtype=F64))
    assert sol.failed.all()
    with pytest.raises(deqlm.ConvergenceError):
        root(f, torch.full((2, 1), 0.7, dtype=F64), on_failure="raise", stop=Stop(max_iter=9))
    start = torch.tensor([[1.0], [torch.nan]], dtype=F64)
    mixed = root(lambda z: z**2 - 2, start, on_failure="ignore")
    assert mixed.status.tolist() == [Status.CONVERGED, Status.NONFINITE]


@pytest.mark.parametrize("solver", [None, "anderson", "newton", "dogleg", "fixed_point", "df_sane"])
@pytest.mark.parametrize("start", [0.7, torch.nan])
def test_the_advice_is_about_roots(solver: str | None, start: float) -> None:
    z0 = torch.full((2, 1), start, dtype=F64)
    options = {"solver": solver, "stop": Stop(max_iter=60, rtol=1e-8, atol=1e-10)}
    with pytest.warns(deqlm.ConvergenceWarning) as warned:
        sol = root(lambda z: z.exp() + 1, z0, **options)
    with pytest.raises(deqlm.ConvergenceError) as raised:
        root(lambda z: z.exp() + 1, z0, on_failure="raise", **options)
    for text in (str(warned[0].message), str(raised.value), sol.summary(), repr(sol)):
        told = text.split("print(")[0]
        for wrong in ("norm after the sum", "f expands", "FixedPoint(", "scale the layer", "layer", "fixed point"):
            assert wrong not in told


def test_the_advice_for_a_singular_backward_solve_is_about_that() -> None:
    a = torch.zeros(2, 1, dtype=F64, requires_grad=True)
    sol = root(lambda z: z**2 + a, torch.zeros(2, 1, dtype=F64))
    with pytest.warns(deqlm.ConvergenceWarning, match="I - J is singular or nearly so"):
        sol.z.sum().backward()
    assert "set atol" not in repr(sol.adjoint)


def test_trees_complex_numbers_and_one_problem() -> None:
    start = {"x": torch.ones(3, 2, dtype=F64), "y": torch.ones(3, 1, dtype=F64)}
    sol = root(lambda z: {"y": z["y"] - 2, "x": z["x"] * z["y"] - 1}, start)
    torch.testing.assert_close(sol.z["x"], torch.full((3, 2), 0.5, dtype=F64))
    sol = root(lambda z: z**2 + 1, torch.full((1, 1), 0.1 + 0.7j, dtype=torch.complex128))
    assert abs(sol.z.item() - 1j) < 1e-7
    sol = root(lambda z: z - z.mean() - torch.arange(3.0, dtype=F64) + z.sum(), torch.zeros(3, dtype=F64), batch_dims=0)
    assert sol.converged


def test_noise_of_f_is_held() -> None:
    sol = root(lambda z: z - F.dropout(torch.ones_like(z), 0.5), torch.zeros(2, 8, dtype=F64))
    assert sol.converged.all()
    assert set(sol.z.unique().round().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize(
    ("f", "error", "text"),
    [
        (3, TypeError, "F must be a function or a module, got int"),
        (lambda z: z[:, :1], ValueError, r"the shape of F\(z\) must be that of z, \(2, 3\), got \(2, 1\)"),
        (lambda z: (z, z), TypeError, "F must return the structure of z, a tensor, got"),
        (lambda z: 1.0, TypeError, "F must return tensors, got float"),
        (lambda z: z.double(), ValueError, r"the dtype of F\(z\) must be that of z, torch.float32, got torch.float64"),
    ],
)
def test_what_is_no_function_of_a_root_is_named(f, error, text: str) -> None:
    with pytest.raises(error, match=text):
        root(f, torch.zeros(2, 3))


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match="unknown option 'tol'"):
        root(torch.sin, torch.zeros(2, 3), tol=1e-3)
    with pytest.raises(ValueError, match="fallback cannot run a budget"):
        root(torch.sin, torch.zeros(2, 3), stop=Stop(max_iter=4, rtol=0))


def test_parameters_of_a_module_get_gradients() -> None:
    layer = nn.Linear(3, 3, dtype=F64)

    def f(z: Tensor) -> Tensor:
        return z + 0.3 * torch.tanh(layer(z)) - 1

    root(f, torch.zeros(2, 3, dtype=F64)).z.sum().backward()
    assert layer.weight.grad.abs().sum() > 0
