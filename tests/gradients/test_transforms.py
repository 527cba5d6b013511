"""torch.func around solves: against many iterations, loops over samples, and finite answers of autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.parametrizations import weight_norm

import deqlm
from deqlm import DEQ, Equilibrium, Implicit, Solve, Status, Stop, Unrolled
from deqlm.testing.gradients.layers import SHARP

F64 = torch.float64
FIRST = Implicit(solve=Solve("anderson", SHARP))
METHODS = [(FIRST, "anderson"), (Implicit(), "newton"), (Unrolled(), "fixed_point")]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
"""torch warns of itself when it loads its forward mode."""

Map = Callable[..., Tensor]


def weight() -> Tensor:
    return 0.4 * torch.linalg.qr(torch.randn(3, 3, dtype=F64)).Q


def solved(gradient: deqlm.Gradient, solver: str, W: Tensor) -> Map:
    def f(x: Tensor, W: Tensor = W) -> Tensor:
        step = lambda z, x: torch.tanh(z @ W.T + x * x.sin())  # noqa: E731
        return deqlm.solve(step, torch.zeros_like(x), args=(x,), gradient=gradient, solver=solver, stop=SHARP).z

    return f


def iterated(W: Tensor) -> Map:
    def f(x: Tensor, W: Tensor = W) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(50):
            z = torch.tanh(z @ W.T + x * x.sin())
        return z

    return f


def loss(f: Map) -> Map:
    return lambda *given: f(*given).sin().sum()


def row(f: Map) -> Map:
    return lambda x, *more: f(x[None], *more)[0]


OPERATIONS: dict[str, Callable[[Map, Tensor, Tensor], Tensor]] = {
    "grad of a captured weight": lambda f, x, W: grad(lambda W: loss(f)(x, W))(W),
    "vmap of a weight": lambda f, x, W: vmap(f, (None, 0))(x, torch.stack([W, 0.5 * W])),
    "gradients per sample": lambda f, x, W: vmap(grad(loss(row(f)), 1), (0, None))(x, W),
    "vmap in vmap": lambda f, x, W: vmap(vmap(row(f)))(torch.stack([x, 2 * x])),
    "vjp": lambda f, x, W: vjp(f, x)[1](x.cos())[0],
    "jvp of a weight": lambda f, x, W: jvp(lambda W: f(x, W), (W,), (W.cos(),))[1],
    "grad of vmap of grad": lambda f, x, W: grad(lambda x: vmap(grad(loss(row(f))))(x).cos().sum())(x),
    "jacrev of vmap": lambda f, x, W: jacrev(vmap(row(f)))(x),
    "hessian": lambda f, x, W: hessian(loss(f))(x),
    "hessian of a weight, per sample": lambda f, x, W: vmap(hessian(loss(row(f)), 1), (0, None))(x, W),
    "reverse in reverse": lambda f, x, W: jacrev(jacrev(loss(f)))(x),
    "forward in forward": lambda f, x, W: jacfwd(jacfwd(loss(f)))(x),
    "third": lambda f, x, W: jacfwd(jacrev(jacrev(loss(f))))(x[:1]),
    "without grad around it": lambda f, x, W: torch.no_grad()(hessian(loss(f)))(x),
}


QUICK = {"gradients per sample", "hessian", "forward in forward"}


def cases() -> list:
    """Return every operation for every method; slow but for the quick ones of the first."""
    made = []
    for name in OPERATIONS:
        for gradient, solver in METHODS:
            slow = [] if name in QUICK and gradient is FIRST else [pytest.mark.slow]
            made.append(pytest.param(name, gradient, solver, id=f"{name}-{gradient.name}-{solver}", marks=slow))
    return made


@pytest.mark.parametrize(("name", "gradient", "solver"), cases())
def test_every_transform_is_right(name: str, gradient: deqlm.Gradient, solver: str) -> None:
    W, x = weight(), torch.randn(2, 3, dtype=F64)
    got, want = (OPERATIONS[name](f, x, W) for f in (solved(gradient, solver, W), iterated(W)))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("second_order", [False, True])
def test_autograd_goes_on_outside_of_a_transform_as_often_as_it_may(second_order: bool) -> None:
    x, W = torch.randn(2, 3, dtype=F64), weight().requires_grad_()
    gradient = FIRST.replace(second_order=second_order)

    def twice(f: Map, transform: Callable[[Map], Map]) -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad(transform(f)(x, W).sin().sum(), W, create_graph=True)
        return first.detach(), torch.autograd.grad(first.cos().sum(), W)[0]

    for transform in (lambda f: vmap(row(f), (0, None)), lambda f: grad(loss(f))):
        want = twice(iterated(W), transform)
        if second_order:
            for got, right in zip(twice(solved(gradient, "anderson", W), transform), want, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-9)
            continue
        (first,) = torch.autograd.grad(transform(solved(gradient, "anderson", W))(x, W).sin().sum(), W)
        torch.testing.assert_close(first, want[0], rtol=1e-8, atol=1e-9)
        with pytest.raises(RuntimeError, match=r"second_order=True"):
            twice(solved(gradient, "anderson", W), transform)


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {
        "weight norm": nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh()),
        "batch norm in eval()": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()).eval(),
        "a DEQ": nn.Sequential(nn.Linear(4, 4), nn.Tanh(), DEQ(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), stop=SHARP)),
        "a block": nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    }


@pytest.mark.parametrize(
    "name", [*list(layers())[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in list(layers())[2:])]
)
def test_gradients_per_sample_of_a_module_are_those_of_a_loop(name: str) -> None:
    layer = layers()[name].double()
    deq = DEQ(layer, stop=SHARP, gradient=FIRST, causal=False)
    x = 0.3 * torch.randn(3, *([5] if name == "a block" else []), 4, dtype=F64)
    parameters = {key: p.detach() for key, p in deq.named_parameters()}
    got = vmap(grad(lambda p, x: functional_call(deq, p, (x[None],)).sin().sum()), (None, 0))(parameters, x)
    assert deq.last.status.shape == (3, 1)
    assert str(deq.last).startswith("Solution(solve: 3 CONVERGED of 3 rows")
    for i, one in enumerate(x):
        want = torch.autograd.grad(deq(one[None]).sin().sum(), list(deq.parameters()))
        for key, right in zip(parameters, want, strict=True):
            torch.testing.assert_close(got[key][i], right, rtol=1e-8, atol=1e-9)


def test_a_tree_of_complex_states_and_an_equilibrium() -> None:
    eq = Equilibrium(stop=SHARP, gradient=FIRST)

    def f(x: Tensor) -> Tensor:
        def step(s: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"p": 0.4 * torch.sin(s["q"]) + x, "q": (0.3 + 0.2j) * torch.cos(s["p"])}

        z = eq(step, {"p": torch.zeros(2, 3, dtype=F64) + 0j, "q": torch.zeros(2, 3, dtype=F64) + 0j})
        return torch.view_as_real(z["p"]).square().sum(-1)

    x = torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(jacfwd(f)(x), jacrev(f)(x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(vmap(f)(torch.stack([x, 2 * x])), torch.stack([f(x), f(2 * x)]), rtol=1e-8, atol=1e-9)


def test_statuses_masks_and_failed_rows_are_those_of_their_element() -> None:
    x = torch.randn(4, 3, dtype=F64)
    x[1] = torch.nan

    def call(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        options = {"args": (x[None],), "stop": SHARP, "on_failure": "ignore", "gradient": FIRST}
        sol = deqlm.solve(lambda z, x: 0.5 * torch.sin(z) + x, torch.zeros_like(x)[None], **options)
        return sol.z[0].sum(), sol.status[0], sol.cost.row_evaluations * torch.ones(())

    def value(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, *more = call(x)
        return y, tuple(more)

    with pytest.warns(UserWarning, match="not finite in failed rows: inside transforms"):
        g, (status, spent) = vmap(grad(value, has_aux=True))(x)
    assert status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
    assert spent[0] % 4 == 0
    alone, _ = grad(value, has_aux=True)(x[2])
    torch.testing.assert_close(g[2], alone, rtol=1e-10, atol=1e-11)
    assert not g[1].any()


def test_masked_tokens_may_differ_between_elements() -> None:
    layer = nn.Linear(3, 3).double().requires_grad_(False)
    stop = SHARP.replace(per="token")
    x, mask = torch.randn(2, 4, 3, dtype=F64), torch.arange(4) < torch.tensor([[2], [4]])

    def call(x: Tensor, mask: Tensor) -> Tensor:
        f = lambda z, x: torch.tanh(0.3 * layer(z).mean(1, keepdim=True) + x)  # noqa: E731
        sol = deqlm.solve(
            f, torch.zeros_like(x)[None], args=(x[None],), stop=stop, gradient=FIRST, token_mask=mask[None]
        )
        return sol.z[0].sum()

    together = vmap(grad(call))(x, mask)
    torch.testing.assert_close(together, torch.stack([grad(call)(*one) for one in zip(x, mask, strict=True)]))
    assert not together[0, 2:].any()


def test_forward_mode_tells_of_its_solve() -> None:
    W = weight()
    deq = Equilibrium(stop=SHARP, gradient=FIRST)
    x = torch.randn(2, 3, dtype=F64)
    jacfwd(lambda x: deq(lambda z: torch.tanh(z @ W.T + x), torch.zeros_like(x)))(x)
    assert deq.last.adjoint.converged.shape == (6, 2)
    assert deq.last.adjoint.converged.all()
    assert deq.last.adjoint.cost.jvps > 0


def call(**options: object) -> Callable[[Tensor], Tensor]:
    return lambda x: deqlm.solve(lambda z, x: 0.5 * torch.sin(z) + x, torch.zeros_like(x), args=(x,), **options).z


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gradient": Unrolled(checkpoint=True), "solver": "fixed_point"}, "checkpoint=True cannot be transformed"),
        ({"gradient": deqlm.Phantom(checkpoint=True)}, "checkpoint=True cannot be transformed"),
        ({"gradient": "reversible", "solver": "reversible"}, "use gradient='unrolled', whose gradient is the same"),
        ({"states": (1,)}, "states and on_evaluation are not there"),
    ],
    ids=lambda given: str(given)[:30],
)
def test_what_cannot_be_transformed_says_why(options: dict[str, object], told: str) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=told):
        grad(loss(call(**options)))(x)
    if "states" not in options:
        torch.testing.assert_close(vmap(row(call(**options)))(x), call(**options)(x))


def test_other_ways_into_a_transform_are_refused() -> None:
    x = torch.ones(2, 3)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"use torch\.func\.jvp in its place"):
        grad(loss(call()))(x)
    with pytest.raises(RuntimeError, match=r"Use deqlm\.solve, deqlm\.Equilibrium or deqlm\.DEQ inside"):
        vmap(lambda x: Solve("anderson", Stop())(torch.cos, x[None]).z)(x)
    from deqlm.layers import Attention

    deq = DEQ(Attention(4, n_head=2), causal=True, mode=deqlm.Chunked(2))
    with pytest.raises(RuntimeError, match="mode 'chunked' and caches cannot be transformed"):
        vmap(row(deq))(torch.ones(2, 5, 4))
    assert vmap(row(DEQ(deq.layer, causal=True)))(torch.ones(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.slow
def test_a_recurrence_that_is_solved_and_differentiated_by_a_scan() -> None:
    cell, x = nn.GRUCell(3, 3, dtype=F64), torch.randn(2, 4, 3, dtype=F64)

    def looped(x: Tensor) -> Tensor:
        h, states = x.new_zeros(2, 3), []
        for t in range(4):
            h = cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, 1)

    def scanned(x: Tensor) -> Tensor:
        def f(z: Tensor, x: Tensor) -> Tensor:
            before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
            return cell(x.flatten(0, 1), before.flatten(0, 1)).unflatten(0, (2, 4))

        stop = Stop(max_iter=400, rtol=1e-12, per="token")
        return deqlm.solve(f, torch.zeros_like(x), args=(x,), solver=deqlm.Deer(), stop=stop).z

    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(scanned)(x), transform(looped)(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch_dims", [0, None])
def test_a_state_that_is_one_row_without_a_batch(batch_dims):
    def f(a: Tensor) -> Tensor:
        z0 = torch.zeros_like(a) if batch_dims == 0 else torch.zeros((), dtype=a.dtype)
        return deqlm.solve(lambda z, a: torch.cos(a * z), z0, args=(a,), batch_dims=batch_dims, stop=SHARP).z

    a = torch.tensor([0.3, 0.7] if batch_dims == 0 else 0.3, dtype=F64)
    z = f(a)
    expected = -torch.sin(a * z) * z / (1 + torch.sin(a * z) * a)
    torch.testing.assert_close(grad(lambda a: f(a).sum())(a), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(vmap(f)(torch.stack([a, a])), torch.stack([z, z]))
