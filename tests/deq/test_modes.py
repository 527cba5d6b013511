"""Every way PyTorch has of running, copying and saving a module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop, Unrolled

METHODS = {"implicit": "implicit", "phantom": "phantom", "one_step": "one_step", "unrolled": "unrolled"}
METHODS["checkpoint"] = Unrolled(checkpoint=True)
every_gradient = pytest.mark.parametrize("gradient", METHODS.values(), ids=METHODS.keys())


def layer() -> nn.Module:
    made = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(0.5)
    return made


def wrap(module: nn.Module, gradient: object = "implicit", **options: object) -> DEQ:
    solver = "fixed_point" if gradient == "unrolled" or isinstance(gradient, Unrolled) else "anderson"
    return DEQ(module, gradient=gradient, **{"solver": solver, "stop": Stop(rtol=1e-4), **options})


def grads(deq: DEQ, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(deq(x).square().sum(), [*deq.parameters()]))


@every_gradient
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_the_value_is_the_solver_s_point(gradient: object, context: Callable) -> None:
    deq = wrap(layer(), gradient)
    x = torch.randn(3, 6)
    with context():
        y, sol = deq(x, with_stats=True)
    assert not y.requires_grad
    assert sol.adjoint is None
    assert sol.converged.all()
    assert sol.cost.evaluations == int(sol.steps.max())
    torch.testing.assert_close(y, deq(x).detach(), rtol=1e-3, atol=1e-4)


def test_inference_mode_with_inference_inputs_and_dropout() -> None:
    module = nn.Sequential(nn.Dropout(0.2), layer(), nn.BatchNorm1d(6)).train()
    with torch.no_grad():
        module[2].weight.mul_(0.1)
    deq = wrap(module, on_failure="ignore")
    with torch.inference_mode():
        x = torch.randn(5, 6)
        y = deq(x)
        deq(y)
    assert module[2].num_batches_tracked == 2
    deq(torch.randn(5, 6)).sum().backward()


def test_a_deq_built_in_inference_mode_runs_in_it() -> None:
    with torch.inference_mode():
        assert wrap(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6)), on_failure="ignore")(torch.randn(5, 6)).shape == (5, 6)


@pytest.mark.parametrize(
    "start", [None, torch.ones(6), nn.Parameter(torch.ones(6))], ids=["none", "tensor", "parameter"]
)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_compute_the_same(way: str, used: bool, start: object) -> None:
    deq = wrap(layer(), deqlm.Phantom(3), inject=nn.Linear(4, 6), start=start)
    x = torch.randn(3, 4)
    if used:
        deq(x).sum().backward()
    if way == "deepcopy":
        twin = copy.deepcopy(deq)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(deq))
    elif way == "torch.save":
        buffer = io.BytesIO()
        torch.save(deq, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        blank = (
            None
            if start is None
            else type(start)(torch.zeros(6))
            if isinstance(start, nn.Parameter)
            else torch.zeros(6)
        )
        twin = wrap(layer(), deqlm.Phantom(3), inject=nn.Linear(4, 6), start=blank)
        twin.load_state_dict(deq.state_dict())
    assert twin.solve == deq.solve
    assert twin.gradient == deq.gradient
    assert torch.equal(twin(x), deq(x))
    with torch.no_grad():
        next(twin.layer.parameters()).add_(1.0)
    assert not torch.equal(twin(x), deq(x))


def test_state_dict_holds_the_layer_and_nothing_of_a_solve() -> None:
    deq = wrap(layer())
    deq(torch.randn(3, 6)).sum().backward()
    assert set(deq.state_dict()) == {f"layer.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


@every_gradient
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_layer_gives_the_same_gradients(gradient: object, backend: str) -> None:
    torch._dynamo.reset()
    module = layer()
    x = torch.randn(3, 6)
    plain = grads(wrap(module, gradient), x)
    compiled = grads(wrap(torch.compile(module, backend=backend), gradient), x)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_gradient
@pytest.mark.filterwarnings("ignore")
def test_inductor_compiled_layer_gives_the_same_gradients(gradient: object) -> None:
    torch._dynamo.reset()
    module = layer()
    x = torch.randn(3, 6)
    plain = grads(wrap(module, gradient), x)
    compiled = grads(wrap(torch.compile(module), gradient), x)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class ToFloat(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.float()


@every_gradient
@pytest.mark.parametrize("ends_in", ["bfloat16", "float32"])
def test_autocast_around_forward_with_backward_outside(gradient: object, ends_in: str) -> None:
    module = layer() if ends_in == "bfloat16" else nn.Sequential(layer(), ToFloat())
    deq = wrap(module, gradient, stop=Stop(rtol=2e-2))
    x = torch.randn(8, 6)
    want = grads(deq, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert str(module(x).dtype) == f"torch.{ends_in}"
        y = deq(x)
    assert y.dtype == torch.float32
    got = torch.autograd.grad(y.square().sum(), [*deq.parameters()])
    for ours, truth in zip(got, want, strict=True):
        assert ours.dtype == torch.float32
        if truth.norm() > 1e-4:
            assert (ours - truth).norm() <= 0.06 * truth.norm()


@every_gradient
def test_autocast_is_really_in_force_in_f_and_in_its_recomputation(gradient: object) -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(input)
            seen.append(out.dtype)
            return 0.3 * torch.tanh(out)

    deq = wrap(Watched(6, 6), gradient, stop=Stop(rtol=5e-2))
    with torch.autocast("cpu", torch.bfloat16):
        y = deq(torch.randn(3, 6))
    y.sum().backward()
    assert set(seen) == {torch.bfloat16}


def test_second_order_under_autocast() -> None:
    sharp = deqlm.Solve("anderson", Stop(rtol=1e-2))
    deq = wrap(layer(), deqlm.Implicit(solve=sharp, second_order=True), stop=Stop(rtol=1e-2), on_failure="ignore")
    x = torch.randn(4, 6, requires_grad=True)
    norms = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = deq(x)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        norms.append(torch.autograd.grad(g.square().sum(), x)[0])
    assert (norms[0] - norms[1]).norm() <= 0.15 * norms[0].norm()


@every_gradient
def test_half_precision_modules(gradient: object) -> None:
    loose = Stop(rtol=2e-2)
    method = deqlm.Implicit(solve=deqlm.Solve("anderson", loose)) if gradient == "implicit" else gradient
    deq = wrap(layer(), method, stop=loose)
    x = torch.randn(8, 6)
    want = grads(deq, x)
    for ours, truth in zip(grads(deq.to(torch.bfloat16), x.bfloat16()), want, strict=True):
        assert ours.dtype == torch.bfloat16
        if truth.norm() > 1e-4:
            assert (ours.float() - truth).norm() <= 0.1 * truth.norm()


def test_to_double_and_back() -> None:
    deq = wrap(layer())
    x = torch.randn(3, 6)
    y = deq(x)
    torch.testing.assert_close(deq.double()(x.double()).float(), y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(deq.float()(x), y)


def test_inputs_that_are_views_or_not_contiguous() -> None:
    deq = wrap(layer())
    x = torch.randn(6, 3)
    torch.testing.assert_close(deq(x.T), deq(x.T.contiguous()))
    torch.testing.assert_close(deq(x[:, :1].T.expand(4, 6)), deq(x[:, :1].T.repeat(4, 1)))
