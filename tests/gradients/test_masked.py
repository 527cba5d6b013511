"""Tokens that do not count: value with grad, value without and gradient belong to one map, in which they stay put."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Implicit, OneStep, Phantom, Solve, Unrolled
from deqlm.testing.gradients.layers import SHARP

F64 = torch.float64
TOKENS = SHARP.replace(per="token")
MASK = torch.tensor([[True, True, True], [True, True, False], [False, True, True]])

Map = Callable[..., Tensor]


def see_all(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Every token sees the mean of all, masked ones included."""
    return torch.tanh(z @ W.T + 0.3 * z.mean(1, keepdim=True) + x)


def solved(f: Map, z0: Tensor, x: Tensor, W: Tensor, **options: object) -> Tensor:
    settings = {"stop": TOKENS, "gradient": Implicit(solve=Solve("anderson", SHARP)), **options}
    return deqlm.solve(lambda z, x: f(z, x, W), z0, args=(x,), token_mask=MASK, **settings).z


def iterated(f: Map, z0: Tensor, x: Tensor, W: Tensor) -> Tensor:
    z = z0
    for _ in range(150):
        z = torch.where(MASK[..., None], f(z, x, W), z0)
    return z


def inputs(fill: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    W = torch.randn(4, 4, dtype=F64)
    W = 0.4 * W / torch.linalg.matrix_norm(W, 2)
    x = torch.randn(3, 3, 4, dtype=F64)
    x = torch.where(MASK[..., None], x, fill) if fill else x
    return torch.randn(3, 3, 4, dtype=F64), x.requires_grad_(), W.requires_grad_()


def real(z: Tensor) -> Tensor:
    return torch.where(MASK[..., None], z, 0.0).square().sum() + (z[MASK] ** 3).sum()


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point", "newton", "newton_krylov"])
@pytest.mark.parametrize("per", ["row", "token"])
def test_the_implicit_gradient_is_that_of_the_masked_map(solver: str, per: str) -> None:
    z0, x, W = inputs()
    z0.requires_grad_()
    adjoint = Implicit(solve=Solve("anderson", SHARP.replace(per=per)))
    stop = TOKENS.replace(max_iter=900)
    y, want = solved(see_all, z0, x, W, solver=solver, stop=stop, gradient=adjoint), iterated(see_all, z0, x, W)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-11)
    got, truth = (torch.autograd.grad(real(z), [x, W, z0]) for z in (y, want))
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "gradient", [Implicit(), Implicit(second_order=True), Phantom(3), OneStep(), "unrolled"], ids=str
)
def test_the_value_is_that_without_grad(gradient: object) -> None:
    z0, x, W = inputs()
    y = solved(see_all, z0, x, W, gradient=gradient, solver="fixed_point")
    with torch.no_grad():
        z = solved(see_all, z0, x, W, gradient=gradient, solver="fixed_point")
    torch.testing.assert_close(y.detach(), z, rtol=1e-11, atol=1e-12)
    assert torch.equal(z[~MASK], z0[~MASK])


@pytest.mark.parametrize("gradient", [Phantom(60, 1.0), "unrolled", Unrolled(checkpoint=True)], ids=str)
def test_gradients_of_steps_are_those_of_the_masked_map(gradient: object) -> None:
    z0, x, W = inputs()
    y = solved(see_all, z0, x, W, gradient=gradient, solver="fixed_point")
    got, truth = (torch.autograd.grad(real(z), [x, W]) for z in (y, iterated(see_all, z0, x, W)))
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-10)


def test_second_derivatives_are_those_of_the_masked_map() -> None:
    z0, x, W = inputs()
    gradient = Implicit(solve=Solve("anderson", SHARP), second_order=True)

    def penalty(z: Tensor) -> tuple[Tensor, ...]:
        (g,) = torch.autograd.grad(real(z), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, W])

    got, truth = penalty(solved(see_all, z0, x, W, gradient=gradient)), penalty(iterated(see_all, z0, x, W))
    torch.testing.assert_close(got, truth, rtol=1e-8, atol=1e-9)


def apart(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    return torch.tanh(z @ W.T + x)


def divided(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Divides by zero at masked tokens, whose value and derivative are NaN."""
    count = torch.where(MASK, 2.0, 0.0).to(F64)[..., None]
    return torch.tanh(z @ W.T + x) * 0.5 + 0.1 * (z @ W.T) * (count / count)


def rooted(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Finite everywhere, with an infinite derivative at masked tokens, which are zero there."""
    return torch.tanh(0.2 * torch.sqrt((z @ W.T).square()) + torch.where(MASK[..., None], x, 0.0))


def attending(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Attention in which masked tokens see nothing: the softmax of a row of -inf."""
    scores = (z @ W.T @ z.mT).masked_fill(~(MASK[:, :, None] & MASK[:, None, :]), -torch.inf)
    return torch.tanh(0.3 * torch.softmax(scores, -1) @ z + x)


@pytest.mark.parametrize(
    ("f", "fill"), [(apart, math.nan), (apart, math.inf), (divided, 0.0), (rooted, 0.0), (attending, 0.0)]
)
@pytest.mark.parametrize("gradient", [Implicit(), Phantom(60, 1.0), OneStep(), "unrolled"], ids=str)
def test_what_f_makes_of_a_masked_token_reaches_no_gradient(f: Map, fill: float, gradient: object) -> None:
    _, x, W = inputs(fill)
    z0 = torch.where(MASK[..., None], 0.5, torch.zeros(3, 3, 4, dtype=F64))
    if isinstance(gradient, Implicit):
        gradient = Implicit(solve=Solve("anderson", SHARP))
    y = solved(f, z0, x, W, gradient=gradient, solver="fixed_point")
    got = torch.autograd.grad(real(y), [W, x])
    assert all(g[MASK].isfinite().all() if g.shape == x.shape else g.isfinite().all() for g in got)
    if isinstance(gradient, OneStep):
        return
    truth = torch.zeros_like(W)
    for row in range(3):
        keep = MASK[row]
        x_row = x.detach()[row : row + 1, keep]
        z = torch.full_like(x_row, 0.5)
        for _ in range(150):
            z = _of_real_tokens(f, z, x_row, W)
        truth += torch.autograd.grad(z.square().sum() + (z**3).sum(), W)[0]
    torch.testing.assert_close(got[0], truth, rtol=1e-8, atol=1e-9)


def _of_real_tokens(f: Map, z: Tensor, x: Tensor, W: Tensor) -> Tensor:
    if f is divided:
        return torch.tanh(z @ W.T + x) * 0.5 + 0.1 * (z @ W.T)
    if f is rooted:
        return torch.tanh(0.2 * torch.sqrt((z @ W.T).square()) + x)
    if f is attending:
        return torch.tanh(0.3 * torch.softmax(z @ W.T @ z.mT, -1) @ z + x)
    return apart(z, x, W)


def test_a_start_that_is_nan_at_masked_tokens() -> None:
    z0, x, W = inputs()
    spoiled = torch.where(MASK[..., None], z0, torch.nan)
    zero = torch.where(MASK[..., None], z0, 0.0)
    got, want = solved(see_all, spoiled, x, W), solved(see_all, zero, x, W)
    assert torch.equal(got, want)
    assert torch.equal(torch.autograd.grad(real(got), W)[0], torch.autograd.grad(real(want), W)[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0])
@pytest.mark.parametrize("gradient", [Implicit(), Implicit(second_order=True), Phantom(), "unrolled"], ids=str)
def test_a_cotangent_of_a_masked_token_moves_nothing_but_its_start(value: float, gradient: object) -> None:
    z0, x, W = inputs()
    z0.requires_grad_()
    y = solved(see_all, z0, x, W, gradient=gradient, solver="fixed_point")
    g = torch.where(MASK[..., None], 1.0, value).expand(y.shape).to(F64)
    got = torch.autograd.grad(y, [x, W], g, retain_graph=True)
    assert torch.equal(got[1], torch.autograd.grad(y, W, torch.where(MASK[..., None], g, 0.0), retain_graph=True)[0])
    assert got[0].isfinite().all()
    (start,) = torch.autograd.grad(y, z0, g)
    assert start[~MASK].isfinite().all() == math.isfinite(value)


def test_no_graph_where_nothing_asks_for_a_gradient() -> None:
    z0, x, W = inputs()
    for gradient in (Implicit(), Phantom(), OneStep(), "unrolled"):
        y = solved(see_all, z0, x.detach(), W.detach(), gradient=gradient, solver="fixed_point")
        assert not y.requires_grad


def test_a_bad_row_beside_masked_ones_adds_zero() -> None:
    z0, x, W = inputs()
    for gradient in (Implicit(), Phantom(), OneStep(), "unrolled"):
        options = {"gradient": gradient, "solver": "fixed_point", "on_failure": "ignore"}
        (clean,) = torch.autograd.grad(solved(see_all, z0, x, W, **options)[1:].square().sum(), W)
        spoiled = x.detach().clone()
        spoiled[0, 1] = torch.nan
        (got,) = torch.autograd.grad(solved(see_all, z0, spoiled, W, **options)[1:].square().sum(), W)
        torch.testing.assert_close(got, clean, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", [Implicit(), Phantom(60, 1.0)], ids=str)
def test_a_layer_whose_tokens_see_padding(gradient: object) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, dtype=F64)
    x = torch.randn(2, 5, 8, dtype=F64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    sharp = Implicit(solve=Solve("anderson", SHARP)) if gradient == Implicit() else gradient
    deq = DEQ(layer, stop=TOKENS, gradient=sharp)
    with torch.no_grad():
        z = deq(x, token_mask=mask)
    y = deq(x, token_mask=mask)
    torch.testing.assert_close(y[mask], z[mask], rtol=1e-9, atol=1e-10)
    direction = [torch.randn_like(p) for p in layer.parameters()]
    grads = torch.autograd.grad(y[mask].sin().sum(), list(layer.parameters()))
    slope = sum((g * v).sum() for g, v in zip(grads, direction, strict=True))
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, v in zip(layer.parameters(), direction, strict=True):
                p += step * v
            values.append(deq(x, token_mask=mask)[mask].sin().sum())
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-6)


class SeesPadding(nn.Module):
    """A causal layer in which every token sees the mean of the tokens so far, masked ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        with torch.no_grad():
            self.linear.weight.mul_(0.5)

    def forward(self, z: Tensor) -> Tensor:
        count = torch.arange(1, z.shape[1] + 1, dtype=z.dtype)[:, None]
        return torch.tanh(self.linear(z) + 0.3 * z.cumsum(1) / count)


@pytest.mark.parametrize("solver", ["anderson", "newton", "dogleg", "newton_krylov"])
@pytest.mark.parametrize("mode", [deqlm.Chunked(2), deqlm.Chunked(2, start="previous"), "sequential"], ids=str)
def test_masked_tokens_stay_where_they_start_in_every_mode(mode: object, solver: str) -> None:
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
    layer, (start, x, _) = SeesPadding(), inputs()
    deq = DEQ(layer, causal=True, mode=mode, solver=solver, stop=TOKENS, on_failure="raise")
    y = deq(x, token_mask=mask, start=start)
    torch.testing.assert_close(y[~mask], start[~mask], rtol=0, atol=0)
    torch.testing.assert_close(y[mask], layer(y + x)[mask], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [deqlm.Newton, deqlm.Dogleg])
def test_a_jacobian_of_the_user_moves_no_masked_token(solver: type) -> None:
    z0, x, W = inputs()

    def jacobian(z: Tensor) -> Tensor:
        of_all = torch.autograd.functional.jacobian(
            lambda z: see_all(z, x.detach(), W).reshape(3, -1), z.reshape(3, 3, 4)
        )
        return torch.stack([of_all[b, :, b].reshape(12, 12) for b in range(3)])

    with torch.no_grad():
        y = solved(see_all, z0, x, W, solver=solver(jacobian=jacobian), on_failure="raise")
    torch.testing.assert_close(y, iterated(see_all, z0, x, W), rtol=1e-10, atol=1e-11)
