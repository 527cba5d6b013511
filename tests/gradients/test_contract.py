"""What every registered gradient method promises."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Gradient, options
from gradients.maps import EXACT, NAMES, SHARP, TanhLayer, dense_gradients, gradients, sharp, solver_for, wrap

F64 = torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_parameters_args_and_captured_tensors(name: str) -> None:
    layer = TanhLayer(5, size=0.3)
    u = torch.randn(3, 5, dtype=F64, requires_grad=True)
    captured = torch.randn(5, dtype=F64, requires_grad=True)
    gradient = sharp(name)
    sol = deqlm.solve(
        lambda z, u: layer(z, u + captured),
        torch.zeros(3, 5, dtype=F64),
        args=(u,),
        gradient=gradient,
        solver=solver_for(gradient),
        stop=SHARP,
    )
    got = gradients(sol.z, layer, u, captured)
    W, b, du = dense_gradients(layer, sol.z.detach(), sol.z.detach() + 1)
    for ours, truth in zip(got, (W, b, du, b), strict=True):
        assert ours is not None
        assert torch.cosine_similarity(ours.flatten(), truth.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_layer_keywords_get_gradients(name: str) -> None:
    class Scaled(TanhLayer):
        def forward(self, z: Tensor, u: Tensor, *, gain: Tensor) -> Tensor:
            return gain * super().forward(z, u)

    gain = torch.full((3, 1), 0.9, dtype=F64, requires_grad=True)
    wrap(Scaled(4), name)(torch.randn(3, 4, dtype=F64), gain=gain).sum().backward()
    assert gain.grad is not None
    assert (gain.grad != 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradient_of_a_row_ignores_its_neighbours(name: str, dtype: torch.dtype) -> None:
    deq = wrap(TanhLayer(6, dtype=dtype), name, stop=deqlm.Stop(max_iter=60, rtol=1e-4), on_failure="ignore")
    x = torch.randn(4, 6, dtype=dtype)
    seen = []
    for others in (1.0, 30.0, torch.nan):
        batch = torch.cat((x[:1], x[1:] * others)).requires_grad_()
        seen.append((gradients(deq(batch), deq, batch)[-1])[0])
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_second_backward_gives_the_same(name: str) -> None:
    deq = wrap(TanhLayer(5), name)
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    y = deq(x)
    first, second = gradients(y, deq, x), gradients(y, deq, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_several_solves_in_one_graph(name: str) -> None:
    deq = wrap(TanhLayer(5), name)
    a, b = torch.randn(2, 3, 5, dtype=F64)
    together = [deq(a), deq(b)]
    both = gradients(torch.cat(together), deq)
    apart = [gradients(deq(t), deq) for t in (a, b)]
    only_first = gradients(together[0], deq)
    for total, one, two, alone in zip(both, *apart, only_first, strict=True):
        torch.testing.assert_close(total, one + two, rtol=1e-12, atol=1e-13)
        assert torch.equal(alone, one)


@pytest.mark.parametrize("name", NAMES)
def test_a_solve_feeds_the_next(name: str) -> None:
    gradient = sharp(name)
    layer = TanhLayer(4, size=0.2)
    deq = wrap(layer, gradient)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)

    def plain(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(60):
            z = layer(z, x)
        return z

    ours, truth = gradients(deq(deq(x)), layer, x), gradients(plain(plain(x)), layer, x)
    for got, want in zip(ours, truth, strict=True):
        assert torch.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.9
        if gradient.exact:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_on_the_module(name: str) -> None:
    deq = wrap(TanhLayer(4), name)

    def look() -> list[tuple]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        state = [(sorted(m.__dict__), *(len(getattr(m, h)) for h in hooks)) for m in deq.modules()]
        return state + [(p._backward_hooks, p._post_accumulate_grad_hooks) for p in deq.parameters()]

    before = look()
    deq(torch.randn(2, 4, dtype=F64)).sum().backward()
    assert look() == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backward", [False, True])
def test_the_graph_goes_with_its_last_reference(name: str, backward: bool) -> None:
    class Watched(TanhLayer):
        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            out = super().forward(z, u)
            seen.append(weakref.ref(out))
            return out

    seen: list[weakref.ref] = []
    deq = wrap(Watched(4), name)
    gc.collect()
    gc.disable()
    try:
        y, sol = deq(torch.randn(2, 4, dtype=F64), with_stats=True)
        if backward:
            y.sum().backward()
        del y, sol
        assert [ref for ref in seen if ref() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e-20), (torch.float32, 1e20), (F64, 1e-200), (F64, 1e200)]
)
def test_the_scale_of_the_loss_changes_nothing(name: str, dtype: torch.dtype, scale: float) -> None:
    deq = wrap(TanhLayer(5, size=0.9, dtype=dtype), name, stop=deqlm.Stop(rtol=1e-4))
    x = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    found = []
    for factor in (1.0, scale):
        y, sol = deq(x, with_stats=True)
        found.append((torch.autograd.grad((y * factor).sum(), [*deq.parameters(), x]), sol.adjoint))
    (plain, adjoint), (scaled, scaled_adjoint) = found
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(
            b.double() / scale, a.double(), rtol=tolerance, atol=tolerance * a.abs().max().item()
        )
    assert adjoint.ran == scaled_adjoint.ran
    if adjoint.ran:
        assert torch.equal(adjoint.steps, scaled_adjoint.steps)
        assert adjoint.converged.all()
        assert scaled_adjoint.converged.all()


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_has_gradients(name: str) -> None:
    deq = wrap(TanhLayer(4), name)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    train = gradients(deq.train()(x), deq, x)
    evaluated = gradients(deq.eval()(x), deq, x)
    assert all(torch.equal(a, b) for a, b in zip(train, evaluated, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty_batch_and_empty_rows(name: str, shape: tuple[int, int]) -> None:
    deq = wrap(TanhLayer(shape[1]) if shape[1] else torch.nn.Identity(), name, inject="add", on_failure="raise")
    x = torch.randn(*shape, dtype=F64, requires_grad=True)
    y, sol = deq(x, with_stats=True)
    assert y.shape == shape
    assert sol.status.shape == shape[:1]
    y.sum().backward()
    assert x.grad is None or x.grad.shape == shape
    assert all(p.grad is None or (p.grad == 0).all() for p in deq.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_start_that_is_already_the_solution(name: str) -> None:
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64)
    solution = wrap(layer, name)(x).detach()
    deq = wrap(layer, name, stop=deqlm.Stop(rtol=1e-6), start=lambda u: solution)
    y, sol = deq(x, with_stats=True)
    assert sol.steps.tolist() == [1, 1]
    y.sum().backward()
    torch.testing.assert_close(y, solution, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_grad_mode_decides_whether_there_is_a_graph(name: str) -> None:
    deq = wrap(TanhLayer(4), name)
    x = torch.randn(2, 4, dtype=F64)
    assert deq(x).requires_grad
    with torch.no_grad():
        assert not deq(x).requires_grad
    with torch.inference_mode():
        assert not deq(x).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_where_nothing_asks_for_a_gradient(name: str) -> None:
    deq = wrap(TanhLayer(4), name).requires_grad_(False)
    assert not deq(torch.randn(2, 4, dtype=F64)).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_and_inputs_may_be_mixed(name: str) -> None:
    deq = wrap(TanhLayer(4), name)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    all_of_them = gradients(deq(x), deq.layer, x)
    deq.layer.W.requires_grad_(False)
    (only_x,) = torch.autograd.grad((0.5 * (y := deq(x)).square() + y).sum(), x)
    torch.testing.assert_close(only_x, all_of_them[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_caller_tensors_are_left_alone(name: str) -> None:
    gradient = sharp(name)
    z0, x = torch.zeros(2, 4, dtype=F64), torch.randn(2, 4, dtype=F64)
    layer = TanhLayer(4)
    sol = deqlm.solve(layer, z0, args=(x,), gradient=gradient, solver=solver_for(gradient), stop=SHARP)
    sol.z.sum().backward()
    for t in (z0, x):
        assert not t.requires_grad
        assert t.grad is None
    assert (z0 == 0).all()


def check_exact(gradient: Gradient) -> None:
    """Assert dense float64 truth at 1e-10 on maps that are nearly as hard as can be."""
    for size in (0.5, 0.97):
        layer = TanhLayer(6, size)
        x = torch.randn(3, 6, dtype=F64, requires_grad=True)
        y = wrap(layer, gradient, stop=deqlm.Stop(max_iter=2000, rtol=1e-14))(x)
        g = torch.randn(3, 6, dtype=F64)
        got = torch.autograd.grad(y, [layer.W, layer.b, x], g)
        for ours, truth in zip(got, dense_gradients(layer, y.detach(), g), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def check_finite_differences(gradient: Gradient) -> None:
    """Assert gradcheck for a matrix weight, a bias and an input."""

    def solved(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return deqlm.solve(
            lambda z, x: torch.tanh(z @ W.T + b + x),
            torch.zeros_like(x),
            args=(x,),
            solver=solver_for(gradient),
            gradient=gradient,
            stop=SHARP,
        ).z

    inputs = [0.3 * torch.randn(3, 3, dtype=F64), torch.randn(3, dtype=F64), torch.randn(2, 3, dtype=F64)]
    assert torch.autograd.gradcheck(solved, [t.requires_grad_() for t in inputs], fast_mode=False)


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_match_a_dense_solve(name: str) -> None:
    check_exact(sharp(name))


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_pass_gradcheck(name: str) -> None:
    check_finite_differences(sharp(name))


def test_a_wrong_gradient_fails_the_exactness_tests() -> None:
    @options
    class OnePercentOff(Gradient):
        exact = True

        def connect(self, f, z, adjoint):
            y = sharp("implicit").connect(f, z, adjoint)
            return y + 0.01 * (y - y.detach())

    with pytest.raises(AssertionError, match="not close"):
        check_exact(OnePercentOff())
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check_finite_differences(OnePercentOff())


@pytest.mark.parametrize("name", ["one_step", "phantom"])
def test_truncated_methods_fail_the_exactness_test_and_do_not_claim_it(name: str) -> None:
    assert name not in EXACT
    with pytest.raises(AssertionError, match="not close"):
        check_exact(sharp(name))
