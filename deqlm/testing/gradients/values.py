"""The gradient itself: what it reaches, what it ignores, and how near it is to the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.functional import solve
from deqlm.gradients.base import Gradient
from deqlm.testing.check import expect
from deqlm.testing.gradients.layers import (
    F64,
    SHARP,
    TanhLayer,
    dense_gradients,
    gradients,
    sharp,
    solver_for,
    wrap,
)
from deqlm_solvers import Stop

__all__ = [
    "a_second_backward_gives_the_same",
    "a_solve_feeds_the_next",
    "finite_differences_agree",
    "frozen_parameters_may_be_mixed",
    "layer_keywords_get_gradients",
    "matches_a_dense_solve",
    "neighbours_do_not_matter",
    "reaches_parameters_arguments_and_captured_tensors",
    "several_solves_stand_in_one_graph",
    "the_scale_of_the_loss_changes_nothing",
]


def _expect_alike(ours: Tensor | None, truth: Tensor, what: str) -> None:
    if ours is None:
        raise AssertionError(f"no gradient reaches {what}")
    cosine = torch.cosine_similarity(ours.flatten(), truth.flatten(), dim=0)
    expect(cosine > 0.9, "the gradient of {} has cosine {} with the true one, at least 0.9", what, cosine)


def _expect_equal(a: list[Tensor | None], b: list[Tensor | None], seen: str) -> None:
    for one, other in zip(a, b, strict=True):
        same = one is not None and other is not None and torch.equal(one, other)
        expect(same, seen + ": {} and {}", one, other)


def reaches_parameters_arguments_and_captured_tensors(gradient: Gradient) -> None:
    """Parameters, arguments and captured tensors have gradients that point where the true ones do."""
    layer = TanhLayer(5, size=0.3)
    u = torch.randn(3, 5, dtype=F64, requires_grad=True)
    captured = torch.randn(5, dtype=F64, requires_grad=True)
    gradient = sharp(gradient)
    sol = solve(
        lambda z, u: layer(z, u + captured),
        torch.zeros(3, 5, dtype=F64),
        args=(u,),
        gradient=gradient,
        solver=solver_for(gradient),
        stop=SHARP,
    )
    got = gradients(sol.z, layer, u, captured)
    W, b, du = dense_gradients(layer, sol.z.detach(), sol.z.detach() + 1)
    names = ("a weight", "a bias", "an argument", "a captured tensor")
    for ours, truth, what in zip(got, (W, b, du, b), names, strict=True):
        _expect_alike(ours, truth, what)


class _Scaled(TanhLayer):
    """Scales its output by a keyword."""

    def forward(self, z: Tensor, u: Tensor, *, gain: Tensor) -> Tensor:  # type: ignore[override]
        """Return the next state, (B, N)."""
        return gain * super().forward(z, u)


def layer_keywords_get_gradients(gradient: Gradient) -> None:
    """A tensor that is given to the layer by keyword has a gradient in every row."""
    gain = torch.full((3, 1), 0.9, dtype=F64, requires_grad=True)
    wrap(_Scaled(4), gradient)(torch.randn(3, 4, dtype=F64), gain=gain).sum().backward()
    expect(gain.grad is not None and (gain.grad != 0).all(), "the gradient of the keyword is {}", gain.grad)


def neighbours_do_not_matter(gradient: Gradient) -> None:
    """Other rows may change or be NaN and the gradient of a row keeps its bits, in float32 and float64."""
    for dtype in (torch.float32, F64):
        stop = Stop(max_iter=60, rtol=1e-4)
        deq = wrap(TanhLayer(6, dtype=dtype), gradient, stop=stop, on_failure="ignore")
        x = torch.randn(4, 6, dtype=dtype)
        seen = []
        for others in (1.0, 30.0, torch.nan):
            batch = torch.cat((x[:1], x[1:] * others)).requires_grad_()
            of_batch = gradients(deq(batch), deq, batch)[-1]
            seen.append(None if of_batch is None else of_batch[0])
        _expect_equal([seen[0], seen[0]], seen[1:], f"the gradient of a row moved with its neighbours in {dtype}")


def a_second_backward_gives_the_same(gradient: Gradient) -> None:
    """Where the graph is retained, a second backward gives the same bits."""
    deq = wrap(TanhLayer(5), gradient)
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    y = deq(x)
    _expect_equal(gradients(y, deq, x), gradients(y, deq, x), "two backwards differ")


def several_solves_stand_in_one_graph(gradient: Gradient) -> None:
    """The gradient of two calls together is the sum of their gradients."""
    deq = wrap(TanhLayer(5), gradient)
    a, b = torch.randn(2, 3, 5, dtype=F64)
    together = [deq(a), deq(b)]
    both = gradients(torch.cat(together), deq)
    apart = [gradients(deq(t), deq) for t in (a, b)]
    for total, one, two in zip(both, *apart, strict=True):
        expect(None not in (total, one, two), "a parameter has no gradient")
        torch.testing.assert_close(total, one + two, rtol=1e-12, atol=1e-13)  # type: ignore[operator]
    _expect_equal(gradients(together[0], deq), apart[0], "a call in a graph with another, and alone")


def a_solve_feeds_the_next(gradient: Gradient) -> None:
    """The gradient goes through a call whose output is the input of the next one."""
    gradient = sharp(gradient)
    layer = TanhLayer(4, size=0.2)
    deq = wrap(layer, gradient)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)

    def plain(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(60):
            z = layer(z, x)
        return z

    ours, truth = gradients(deq(deq(x)), layer, x), gradients(plain(plain(x)), layer, x)
    for got, want, what in zip(ours, truth, ("a weight", "a bias", "the first input"), strict=True):
        assert want is not None
        _expect_alike(got, want, what)
        if gradient.exact:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def the_scale_of_the_loss_changes_nothing(gradient: Gradient) -> None:
    """A loss times 1e-20 or 1e20 has gradients times that, by the same steps."""
    for dtype, tolerance in ((torch.float32, 1e-5), (F64, 1e-12)):
        for scale in (1e-20, 1e20):
            _expect_scaled(gradient, dtype, tolerance, scale)


def _expect_scaled(gradient: Gradient, dtype: torch.dtype, tolerance: float, scale: float) -> None:
    deq = wrap(TanhLayer(5, size=0.9, dtype=dtype), gradient, stop=Stop(rtol=1e-4))
    x = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    found = []
    for factor in (1.0, scale):
        y, sol = deq(x, with_stats=True)
        found.append((torch.autograd.grad((y * factor).sum(), [*deq.parameters(), x]), sol.adjoint))
    (plain, adjoint), (scaled, scaled_adjoint) = found
    for a, b in zip(plain, scaled, strict=True):
        near = tolerance * a.abs().max().item()
        torch.testing.assert_close(b.double() / scale, a.double(), rtol=tolerance, atol=near)
    expect(adjoint.ran == scaled_adjoint.ran, "the backward solve ran for one scale only")
    if adjoint.ran:
        steps = adjoint.steps, scaled_adjoint.steps
        expect(torch.equal(*steps), "backward steps {}, and {} of the scaled loss", *steps)
        expect(adjoint.converged.all() and scaled_adjoint.converged.all(), "the backward solve did not converge")


def frozen_parameters_may_be_mixed(gradient: Gradient) -> None:
    """A parameter that asks for no gradient changes none of the others."""
    layer = TanhLayer(4)
    deq = wrap(layer, gradient)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    all_of_them = gradients(deq(x), layer, x)
    layer.W.requires_grad_(False)
    (only_x,) = torch.autograd.grad((0.5 * (y := deq(x)).square() + y).sum(), x)
    torch.testing.assert_close(only_x, all_of_them[-1], rtol=1e-12, atol=1e-13)


def matches_a_dense_solve(gradient: Gradient) -> None:
    """Of methods with exact = True: dense float64 truth to 1e-10, on maps that are nearly as hard as can be."""
    gradient = sharp(gradient)
    for size in (0.5, 0.97):
        layer = TanhLayer(6, size)
        x = torch.randn(3, 6, dtype=F64, requires_grad=True)
        y = wrap(layer, gradient, stop=Stop(max_iter=2000, rtol=1e-14))(x)
        g = torch.randn(3, 6, dtype=F64)
        got = torch.autograd.grad(y, [layer.W, layer.b, x], g)
        for ours, truth in zip(got, dense_gradients(layer, y.detach(), g), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def finite_differences_agree(gradient: Gradient) -> None:
    """Of methods with exact = True: gradcheck for a matrix weight, a bias and an input."""
    gradient = sharp(gradient)

    def solved(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return solve(
            lambda z, x: torch.tanh(z @ W.T + b + x),
            torch.zeros_like(x),
            args=(x,),
            solver=solver_for(gradient),
            gradient=gradient,
            stop=SHARP,
        ).z

    inputs = [0.3 * torch.randn(3, 3, dtype=F64), torch.randn(3, dtype=F64), torch.randn(2, 3, dtype=F64)]
    done = torch.autograd.gradcheck(solved, [t.requires_grad_() for t in inputs], fast_mode=False)
    expect(done, "gradcheck fails")
