"""Which solve a cotangent gets: by the forward solver, by what the dtype resolves, by parts; and what stands in."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Anderson, Implicit, Newton, NewtonKrylov, Solve, Status, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, dense_gradients, wrap
from gradients.maps import symmetric

F64 = torch.float64
NEWTON = ["newton", "newton_krylov"]


def roots(A: Tensor, t: Tensor, solver: str, **options: object) -> deqlm.Solution:
    """Solve A z + z^3 = t per row."""
    stop = Stop(max_iter=40 * (len(A) + 1), rtol=1e-11, atol=1e-11)
    start = torch.zeros_like(t)
    return deqlm.solve(lambda z, t: z - (z @ A.T + z**3 - t), start, args=(t,), solver=solver, stop=stop, **options)


def stretched(n: int) -> Tensor:
    """Return a matrix whose eigenvalues are spread evenly from 1 to 1000."""
    return torch.diag(torch.logspace(0, 3, n, dtype=F64)) + torch.triu(torch.ones(n, n, dtype=F64), 1)


@pytest.mark.parametrize("solver", NEWTON)
@pytest.mark.parametrize("n", [4, 30, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("second_order", [False, True])
def test_the_backward_of_newton_is_as_strong_as_newton(solver: str, n: int, second_order: bool) -> None:
    A, t = stretched(n), torch.ones(2, n, dtype=F64, requires_grad=True)
    with torch.no_grad():
        t[1] *= 3
    sol = roots(A, t, solver, gradient=Implicit(second_order=second_order), on_failure="raise")
    (got,) = torch.autograd.grad(sol.z.sum(), t)
    jacobians = A + torch.diag_embed(3 * sol.z.detach() ** 2)
    want = torch.linalg.solve(jacobians.mT, torch.ones(2, n, dtype=F64))
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert sol.adjoint.converged.all()
    assert sol.adjoint.choices == ()
    assert sol.adjoint.cost.vjps >= (n if solver == "newton" else 1)


@pytest.mark.parametrize("solver", NEWTON)
def test_a_row_without_a_derivative_is_told_and_leaves_the_others(solver: str) -> None:
    A = torch.stack([torch.eye(3, dtype=F64), torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=F64))])
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]], dtype=F64, requires_grad=True)
    f = lambda z, A, x: z - ((A @ z[..., None])[..., 0] - x)  # noqa: E731
    sol = deqlm.solve(f, x.detach(), args=(A, x), solver=solver, on_failure="ignore", stop=Stop(max_iter=200))
    assert sol.converged.all()
    (got,) = torch.autograd.grad(sol.z.sum(), x)
    torch.testing.assert_close(got[0], torch.ones(3, dtype=F64))
    assert got[1].norm() <= 10
    assert sol.adjoint.status.tolist() == [Status.CONVERGED, Status.STALLED]


def test_an_adjoint_that_anderson_cannot_solve_is_solved_by_gmres_and_says_so() -> None:
    A = stretched(40)
    x = torch.randn(3, 40, dtype=F64, requires_grad=True)
    with torch.no_grad():
        x[1] = 0
    f = lambda z, x: z - (z @ A.T - x)  # noqa: E731
    start = torch.linalg.solve(A, x.detach().T).T
    sol = deqlm.solve(f, start, args=(x,), stop=Stop(rtol=1e-9, atol=1e-9), on_failure="raise")
    g = torch.randn(3, 40, dtype=F64)
    g[1] = 0
    (got,) = torch.autograd.grad(sol.z, x, g)
    torch.testing.assert_close(got, torch.linalg.solve(A.T, g.T).T, rtol=1e-5, atol=1e-8)
    assert sol.adjoint.choices == ("anderson", "gmres")
    assert sol.adjoint.picked.tolist() == [1, 0, 1]
    assert "picked: 1 anderson, 2 gmres" in repr(sol.adjoint)
    assert sol.adjoint.cost.vjps > 200


def test_a_solve_that_was_asked_for_has_no_stand_in() -> None:
    A = stretched(40)
    x = torch.randn(3, 40, dtype=F64, requires_grad=True)
    f = lambda z, x: z - (z @ A.T - x)  # noqa: E731
    start = torch.linalg.solve(A, x.detach().T).T
    asked = Implicit(solve=Solve(Anderson(), Stop(max_iter=200, rtol=1e-6)))
    sol = deqlm.solve(f, start, args=(x,), stop=Stop(rtol=1e-9, atol=1e-9), gradient=asked, on_failure="ignore")
    sol.z.sum().backward()
    assert not sol.adjoint.converged.any()
    assert sol.adjoint.picked is None


class Mixing(nn.Module):
    """Rows that hang together, stiff enough that Anderson gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.logspace(0, 3, 8, dtype=F64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z - (z * self.scale + 0.3 * z.mean(0, keepdim=True) - x)


def test_rows_that_mix_are_solved_as_one_where_nothing_else_helps() -> None:
    layer, x = Mixing(), torch.randn(3, 8, dtype=F64, requires_grad=True)
    system = torch.kron(torch.eye(3, dtype=F64), torch.diag(layer.scale.detach()))
    system = system + torch.kron(torch.full((3, 3), 0.1, dtype=F64), torch.eye(8, dtype=F64))
    start = torch.linalg.solve(system, x.detach().flatten()).view(3, 8)
    sol = deqlm.solve(layer, start, args=(x,), stop=Stop(rtol=1e-9, atol=1e-9), on_failure="raise")
    (got,) = torch.autograd.grad(sol.z.sum(), x)
    want = torch.linalg.solve(system.T, torch.ones(24, dtype=F64)).view(3, 8)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)
    assert sol.adjoint.converged.all()


@pytest.mark.parametrize(
    ("solver", "want"), [("newton", Newton), ("newton_krylov", NewtonKrylov), ("anderson", Anderson)]
)
def test_the_choice_is_told_and_survives_a_config(solver: str, want: type) -> None:
    deq = DEQ(nn.Identity(), solver=solver)
    assert type(deq.gradient.backward(deq.solve.solver).solver) is want
    again = Implicit.from_dict(deq.gradient.to_dict())
    assert again == deq.gradient
    asked = Implicit(solve=Solve("newton", Stop(rtol=1e-9, per="token")))
    assert Implicit.from_dict(asked.to_dict()) == asked


@pytest.mark.parametrize("solve", ["anderson", None, 3])
def test_what_is_no_solve_is_refused(solve: object) -> None:
    with pytest.raises(ValueError, match=r"solve must be a Solve\(solver, stop\), or 'auto'"):
        Implicit(solve=solve)


@pytest.mark.parametrize("cap", ["1GiB", "2KiB"])
def test_a_memory_cap_holds_for_the_solve_that_is_chosen(cap: str) -> None:
    x = torch.ones(20, 30, dtype=F64, requires_grad=True)
    options = {"args": (x,), "solver": "newton", "memory_cap": cap}
    f = lambda z, x: 0.5 * torch.cos(z) + x  # noqa: E731
    if cap == "1GiB":
        deqlm.solve(f, torch.zeros_like(x), **options).z.sum().backward()
        return
    with pytest.raises(MemoryError):
        deqlm.solve(f, torch.zeros_like(x), **options)


def chain(z: Tensor, W: Tensor, u: Tensor) -> Tensor:
    return torch.cat([z.new_zeros(1, 4), z[:-1]]) @ W + u


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("solver", ["anderson", "newton", "newton_krylov"])
def test_small_nodes_of_a_graph_have_a_right_gradient_with_a_tolerance_per_token(scale: float, solver: str) -> None:
    W = (0.2 * torch.randn(4, 4, dtype=F64)).requires_grad_()
    u, weights = torch.zeros(20, 4, dtype=F64), torch.arange(80.0, dtype=F64).view(20, 4).sin()
    u[0] = 1

    def loss(z: Tensor) -> Tensor:
        return scale * (F.normalize(z, dim=1, eps=1e-200) * weights).sum()

    z = torch.zeros_like(u)
    for _ in range(40):
        z = chain(z, W, u)
    tight = Stop(rtol=1e-12, max_iter=300, per="token", token_dim=0)
    gradient = Implicit(solve=Solve(solver, tight))
    sol = deqlm.solve(lambda z: chain(z, W, u), torch.zeros_like(u), batch_dims=0, stop=tight, gradient=gradient)
    got, want = (torch.autograd.grad(loss(y), W)[0] / scale for y in (sol.z, z))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9 * want.abs().max().item())
    assert sol.adjoint.converged.all()


def test_the_scale_of_the_loss_leaves_the_steps_of_a_tolerance_per_token() -> None:
    layer = TanhLayer(5, size=0.9)
    gradient = Implicit(solve=Solve("anderson", Stop(rtol=1e-9, max_iter=300, per="token")))
    deq = wrap(layer, gradient, stop=SHARP.replace(per="token"))
    y, sol = deq(torch.randn(3, 4, 5, dtype=F64), with_stats=True)
    steps = []
    for scale in (1.0, 1e-30, 1e30):
        (scale * y[:, 1:].sum()).backward(retain_graph=True)
        steps.append(sol.adjoint.steps.tolist())
        assert sol.adjoint.converged.all()
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("grad_of", ["small", "big", "both"])
def test_a_small_leaf_has_a_right_gradient_with_a_tolerance_per_leaf(grad_of: str) -> None:
    w = torch.tensor([0.5, 0.3], dtype=F64, requires_grad=True)

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"big": w[0] * z["big"] + 1e8, "small": w[1] * z["small"] + 1e-17 * z["big"] + 1e-9}

    tight = Stop(rtol=1e-11, max_iter=300, per="leaf")
    start = {"big": torch.zeros(2, 3, dtype=F64), "small": torch.zeros(2, 3, dtype=F64)}
    sol = deqlm.solve(f, start, stop=tight, gradient=Implicit(solve=Solve("anderson", tight)))
    z = {name: torch.zeros(2, 3, dtype=F64) for name in start}
    for _ in range(120):
        z = f(z)
    parts = ["small", "big"] if grad_of == "both" else [grad_of]
    got, want = (torch.autograd.grad(sum(y[p].square().sum() for p in parts), w)[0] for y in (sol.z, z))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-6), (F64, 1e-6), (torch.bfloat16, 2**-5), (torch.float16, 2**-8)]
)
def test_the_default_tolerance_is_what_the_dtype_resolves(dtype: torch.dtype, rtol: float) -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).to(dtype)
    layer[0].weight.data.mul_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, sol = DEQ(layer)(torch.randn(4, 8, dtype=dtype), with_stats=True)
        y.float().square().sum().backward()
    assert sol.converged.all()
    assert (sol.relative <= max(1e-4, rtol)).all()
    assert sol.adjoint.converged.all()
    assert (sol.adjoint.residual <= 1.1 * rtol).all()


@pytest.mark.parametrize("solver", ["newton", "dogleg", "newton_krylov"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_gradient_after_every_newton(dtype: torch.dtype, solver: str) -> None:
    layer, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(3, 5, 8)
    grads = []
    for to, chosen in ((F64, "anderson"), (dtype, solver)):
        copied = copy.deepcopy(layer).to(to)
        y, sol = DEQ(copied, solver=chosen)(x.to(to), with_stats=True)
        y.to(F64).square().mean().backward()
        assert sol.adjoint.converged.all()
        grads.append(copied[0].weight.grad.double())
    assert (grads[1] - grads[0]).norm() < 0.1 * grads[0].norm()


def test_under_autocast_the_default_tolerance_is_that_of_autocast() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    layer[0].weight.data.mul_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, sol = DEQ(layer)(torch.randn(4, 8), with_stats=True)
        y.square().sum().backward()
    assert sol.converged.all()
    assert sol.adjoint.converged.all()
    assert sol.adjoint.cost.vjps < 20


def test_a_plain_stop_keeps_its_number() -> None:
    assert Stop().rtol == 1e-4
    assert Stop(rtol="auto").to_dict()["rtol"] == "auto"
    assert Stop.from_dict({"rtol": "auto"}) == Stop(rtol="auto")
    assert not Stop(rtol="auto").is_budget
    with pytest.raises(ValueError, match=r"rtol must be .*'auto'"):
        Stop(rtol="car")
    sol = Solve(stop=Stop(rtol="auto"))(lambda z: 0.5 * z + 1, torch.zeros(1, 1, dtype=torch.bfloat16))
    assert sol.converged.all()


def test_symmetric_truth_by_every_route() -> None:
    A = symmetric([0.9, 0.5, -0.7, 0.2])
    g, x = torch.randn(2, 4, dtype=F64), torch.randn(2, 4, dtype=F64, requires_grad=True)
    want = torch.linalg.solve(torch.eye(4, dtype=F64) - A.T, g.T).T
    for name in ("anderson", "broyden", "newton", "newton_krylov"):
        gradient = Implicit(solve=Solve(name, SHARP))
        sol = deqlm.solve(lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), gradient=gradient, stop=SHARP)
        torch.testing.assert_close(torch.autograd.grad(sol.z, x, g)[0], want, rtol=1e-11, atol=1e-11)


def test_no_gradient_scale_is_lost_in_float16() -> None:
    layer = TanhLayer(6, size=0.6, dtype=torch.float32).half()
    x = torch.randn(3, 6).half()
    y = wrap(layer, Implicit(), stop=Stop(rtol=1e-2), on_failure="ignore")(x)
    found = []
    for scale in (1.0, 2.0**12, 2.0**30):
        (g,) = torch.autograd.grad(y.float().sum() * scale, layer.W, retain_graph=True)
        found.append(g)
    torch.testing.assert_close(found[1] / 2.0**12, found[0], rtol=2e-2, atol=1e-3)
    assert not found[2].isfinite().all()
    z = y.detach().double()
    W, _, _ = dense_gradients(layer.double(), z, torch.ones_like(z))
    torch.testing.assert_close(found[0].double(), W, rtol=2e-2, atol=2e-2)
