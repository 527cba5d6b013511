"""torch.func, forward mode, vectorized backward, and compilation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import deqlm
from defects.maps import F64, small_layer
from deqlm import Implicit, Solve, Stop
from deqlm.testing.gradients.layers import solver_for

SHARP = Stop(max_iter=500, rtol=1e-12)
SECOND = Implicit(solve=Solve("anderson", SHARP), second_order=True)
A = 0.5 * torch.linalg.qr(torch.arange(1.0, 17.0, dtype=F64).reshape(4, 4) ** 0.5).Q
CLEAR = r"no solve by a vectorized backward .* torch\.func\.jacrev"


@contextmanager
def torch_may_warn() -> Iterator[None]:
    """Ignore what torch's own transforms and compiler warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def solved(u: Tensor, gradient: str | deqlm.Gradient = SECOND) -> Tensor:
    """Return the solution of z = tanh(A z + u), rows in the first dimension."""
    solver = solver_for(gradient)
    z0 = torch.zeros_like(u)
    return deqlm.solve(
        lambda z, u: torch.tanh(z @ A.T + u), z0, args=(u,), solver=solver, gradient=gradient, stop=SHARP
    ).z


def iterated(u: Tensor) -> Tensor:
    """Return it by many iterations."""
    z = torch.zeros_like(u)
    for _ in range(60):
        z = torch.tanh(z @ A.T + u)
    return z


def transforms(f: Callable[[Tensor], Tensor], u: Tensor) -> list[Callable[[], object]]:
    """Return calls that differentiate ``f`` or map it over the rows of ``u``."""
    func = torch.func
    return [
        lambda: func.grad(lambda u: f(u).sum())(u),
        lambda: func.jvp(f, (u,), (u,)),
        lambda: func.jacrev(f)(u),
        lambda: func.jacfwd(f)(u),
        lambda: func.hessian(lambda u: f(u).sum())(u),
        lambda: func.vmap(lambda u: f(u[None])[0])(u),
    ]


def ours_is_transformed_or_says_why_not() -> None:
    u = torch.randn(3, 4, dtype=F64)
    for want, got in zip(transforms(iterated, u), transforms(solved, u), strict=True):
        with torch_may_warn():
            torch.testing.assert_close(got(), want(), rtol=1e-7, atol=1e-8)
    for transformed in transforms(lambda u: solved(u, deqlm.Reversible()), u)[:-1]:
        with torch_may_warn(), pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func: it evaluates"):
            transformed()
    with torch_may_warn(), forward_ad.dual_level():
        assert forward_ad.unpack_dual(solved(forward_ad.make_dual(u, u))).tangent is not None
    leaf = u.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=CLEAR):
        torch.autograd.grad(solved(leaf), leaf, torch.ones(2, 3, 4, dtype=F64), is_grads_batched=True)


def theirs_raises_in_transforms() -> None:
    from defects import peer

    def f(u: Tensor) -> Tensor:
        return peer.point(peer.deq(ift=True), lambda z: torch.tanh(0.5 * z + u), torch.zeros_like(u))

    for transformed in transforms(f, torch.randn(3, 4, dtype=F64)):
        with torch_may_warn(), pytest.raises(RuntimeError, match=r"setup_context|data-dependent"):
            transformed()


def ours_solves_a_batch_as_a_loop_would() -> None:
    u = torch.randn(5, 4, dtype=F64)
    looped = torch.cat([solved(row[None]) for row in u])
    torch.testing.assert_close(solved(u), looped, rtol=1e-10, atol=1e-11)
    mapped = torch.func.vmap(lambda u: solved(u[None])[0])(u)
    torch.testing.assert_close(mapped, looped, rtol=1e-10, atol=1e-11)


def theirs_fails_under_vmap() -> None:
    from defects import peer

    def one(u: Tensor) -> Tensor:
        return peer.run("anderson", lambda z: torch.tanh(0.5 * z + u), torch.zeros(1, 4, dtype=F64))[0]

    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(one)(torch.randn(3, 4, dtype=F64))


def ours_has_functional_jacobian_and_hessian() -> None:
    u = torch.randn(1, 4, dtype=F64)
    functional = torch.autograd.functional
    torch.testing.assert_close(functional.jacobian(solved, u), functional.jacobian(iterated, u), rtol=1e-8, atol=1e-9)
    ours, want = (functional.hessian(lambda u, f=f: f(u).square().sum(), u) for f in (solved, iterated))
    torch.testing.assert_close(ours, want, rtol=1e-7, atol=1e-8)


def ours_stands_beside_compiled_code() -> None:
    """A layer that is one graph, in a DEQ; a model compiled around a DEQ, whose solve runs eagerly."""
    torch._dynamo.reset()
    layer, x = small_layer(), torch.randn(3, 4, dtype=F64)
    plain = deqlm.DEQ(layer, stop=SHARP)
    want = torch.autograd.grad(plain(x).square().sum(), [*layer.parameters()])
    with torch_may_warn():
        whole = deqlm.DEQ(torch.compile(layer, backend="eager", fullgraph=True), stop=SHARP)
        around = torch.compile(lambda x: plain(1.0 * x), backend="eager")
        for compiled in (whole, around):
            y = compiled(x)
            torch.testing.assert_close(y, plain(x), rtol=1e-10, atol=1e-11)
            got = torch.autograd.grad(y.square().sum(), [*layer.parameters()])
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def theirs_has_no_whole_graph() -> None:
    from defects import peer

    def solve(z0: Tensor) -> Tensor:
        return peer.run("anderson", lambda z: 0.5 * z + 1, z0)[0]

    torch._dynamo.reset()
    with torch_may_warn(), pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(solve, backend="eager", fullgraph=True)(torch.zeros(2, 3))
