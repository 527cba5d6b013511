"""A DEQ within what else PyTorch offers: other weights for one call, inference, copies, checkpoints, memory formats."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deqlm
from deqlm import DEQ, Implicit, Solve, Stop

SHARP = Stop(rtol=1e-10, max_iter=300)
EXACT = Implicit(solve=Solve(stop=SHARP))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        self.norm = nn.BatchNorm1d(4).double()
        nn.init.orthogonal_(self.linear.weight, 0.5)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z) + 0.1 * self.norm(z))


def iterated(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(100):
        z = layer(z + x)
    return z


def made() -> DEQ:
    return DEQ(Layer(), gradient=EXACT, stop=SHARP, batch_dims=0)


def draw() -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, requires_grad=True)


def test_one_call_with_other_parameters_and_buffers() -> None:
    deq, other, x = made(), Layer(), draw()
    given = {f"layer.{name}": value for name, value in [*other.named_parameters(), *other.named_buffers()]}
    kept = {name: buffer.clone() for name, buffer in deq.named_buffers()}
    y = torch.func.functional_call(deq, given, (x,))
    assert other.norm.num_batches_tracked == 1
    assert all(torch.equal(buffer, kept[name]) for name, buffer in deq.named_buffers())
    want = iterated(other, x)
    leaves = [x, *other.parameters()]
    for ours, theirs in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_inference_mode_inside_and_around() -> None:
    deq = made().eval()
    x = draw().detach()
    want = deq(x)
    with torch.inference_mode():
        born_inside = x.clone()
        torch.testing.assert_close(deq(x), want)
        torch.testing.assert_close(made()(x).shape, x.shape)
    torch.testing.assert_close(deq(born_inside), want)
    deq(born_inside).sum().backward()


def test_copies_of_a_module_that_was_called() -> None:
    deq, x = made(), draw()
    deq(x).sum().backward()
    deq.eval()
    file = io.BytesIO()
    torch.save(deq, file)
    file.seek(0)
    for twin in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), deq(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around(reentrant: bool) -> None:
    deq, x = made(), draw()
    y = deq(x)
    want = torch.autograd.grad(y.sum(), [x, *deq.parameters()])
    checkpoint(deq, x, use_reentrant=reentrant).sum().backward()
    for ours, theirs in zip([x.grad, *(p.grad for p in deq.parameters())], want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "masked"),
    [("newton", True), ("newton_krylov", True), ("newton_krylov", False), ("dogleg", False), ("fallback", True)],
)
def test_a_checkpoint_around_a_solver_that_differentiates(solver: str, masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 8, dropout=0.0, batch_first=True).double()
    stop = deqlm.Stop(rtol=1e-10, max_iter=400, per="token")
    deq = deqlm.DEQ(layer, solver=solver, stop=stop, on_failure="raise")
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    given = {"token_mask": torch.tensor([[True, True, False, False], [True] * 4])} if masked else {}
    want = torch.autograd.grad(deq(x, **given).square().sum(), [x, *deq.parameters()])
    y = checkpoint(deq, x, use_reentrant=False, **given)
    got = torch.autograd.grad(y.square().sum(), [x, *deq.parameters()])
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_a_call_after_a_call() -> None:
    deq, x = made().eval(), draw()
    y, want = deq(deq(x)), iterated(deq.layer, iterated(deq.layer, x))
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), x)[0] for t in (y, want)), rtol=1e-7, atol=1e-9)


class Marked(Tensor):
    """A subclass of a user."""


def test_a_subclass_stays_one_and_gets_its_gradient() -> None:
    deq = made().eval()
    x = draw()
    y = deq(x.as_subclass(Marked))
    assert type(y) is Marked
    y.sum().backward()
    want = draw().detach().copy_(x.detach()).requires_grad_()
    deq(want).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.as_subclass(Tensor), want.grad)


def test_a_start_that_wants_a_gradient_gets_none_and_harms_none() -> None:
    deq, x = made().eval(), draw()
    start = torch.zeros_like(x).requires_grad_()
    y = deq(x, start=start)
    y.sum().backward()
    assert start.grad is None
    with torch.no_grad():
        assert not deq(x, start=start).requires_grad
    torch.testing.assert_close(y, iterated(deq.layer, x))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("grad", [True, False])
def test_channels_last_comes_back_as_channels_last(dims: int, tree: bool, grad: bool) -> None:
    how = torch.channels_last if dims == 2 else torch.channels_last_3d
    conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(3, 3, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(0.3)
    x = torch.randn(2, 3, *[4] * dims)
    last = x.contiguous(memory_format=how).requires_grad_(grad)

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": 0.5 * torch.tanh(conv(z["a"])) + last, "b": 0.5 * z["b"]}

    with torch.set_grad_enabled(grad):
        y = deqlm.solve(f, {"a": torch.zeros_like(last), "b": x}).z["a"] if tree else DEQ(conv)(last)
        plain = y if tree else DEQ(conv)(x)
    assert y.is_contiguous(memory_format=how)
    torch.testing.assert_close(y, plain, rtol=1e-3, atol=1e-3)
    if grad:
        y.sum().backward()
    if not tree:
        assert plain.is_contiguous()


def test_other_default_dtypes_change_nothing() -> None:
    deq, x = made(), draw()
    want = deq(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            y = copy.deepcopy(deq)(x)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(y, want)
