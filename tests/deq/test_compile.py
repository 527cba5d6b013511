"""Models that are compiled as a whole: a solve inside runs as it does outside, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deqlm
from deqlm import DEQ, Stop
from deqlm.models import AttentionOptions, LMOptions
from deqlm.testing.gradients.layers import solver_for
from gradients.maps import NAMES

TIGHT = Stop(max_iter=200, rtol=1e-6)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    def __init__(self, layer: nn.Module, **options: object) -> None:
        super().__init__()
        self.first, self.deq, self.last = nn.Linear(5, 5), DEQ(layer, stop=TIGHT, **options), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.deq(torch.relu(self.first(x)), with_stats=True)
        return self.last(y)


def contraction() -> nn.Sequential:
    layer = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    layer[0].weight.data.mul_(0.5)
    return layer


def trained(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the value and the gradients of all parameters, every one of which must have one."""
    module.zero_grad(set_to_none=True)
    y = run(x)
    y.square().sum().backward()
    grads = [p.grad for p in module.parameters()]
    assert all(g is not None for g in grads)
    return [y.detach(), *grads]


@pytest.mark.parametrize("gradient", NAMES)
def test_a_compiled_model_trains_like_a_plain_one(gradient: str) -> None:
    model, x = Model(contraction(), gradient=gradient, solver=solver_for(gradient)), torch.randn(3, 5)
    want = trained(model, model, x)
    got = trained(torch.compile(model, backend="aot_eager"), model, x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_compiled_function_around_a_solve() -> None:
    W = (0.2 * torch.randn(5, 5)).requires_grad_()

    def solved(x: Tensor) -> Tensor:
        return 2 * deqlm.solve(lambda z, x: torch.tanh(z @ W + x), torch.zeros_like(x), args=(x,), stop=TIGHT).z

    x = torch.randn(3, 5)
    want = torch.autograd.grad(solved(x).square().sum(), W)
    got = torch.autograd.grad(torch.compile(solved, backend="aot_eager")(x).square().sum(), W)
    torch.testing.assert_close(got, want)


def test_the_whole_graph_in_one_is_refused() -> None:
    model = Model(contraction())
    with pytest.raises(Exception, match=r"a solve ends when values say so.*Leave out fullgraph=True"):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(3, 5))


def normed() -> nn.Sequential:
    """Return a layer of which a compiler saves tensors that are its own, to be given away in the first backward."""
    layer = nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.LayerNorm(5))
    layer[0].weight.data.mul_(0.3)
    layer[2].weight.data.mul_(0.3)
    return layer


@pytest.mark.parametrize("gradient", ["implicit", "neumann"])
def test_the_backward_of_a_compiled_layer_can_be_asked_again(gradient: str) -> None:
    layer, x = normed(), torch.randn(3, 5)
    fast = DEQ(torch.compile(layer, backend="aot_eager"), stop=TIGHT, gradient=gradient)
    want = trained(DEQ(layer, stop=TIGHT, gradient=gradient), layer, x)
    torch.testing.assert_close(trained(fast, layer, x), want, rtol=1e-4, atol=1e-5)
    assert torch._functorch.config.donated_buffer


def test_a_compiled_layer_that_a_shorter_gradient_met_first() -> None:
    layer, x = normed(), torch.randn(3, 5)
    compiled = torch.compile(layer, backend="aot_eager")
    for gradient in ("phantom", "implicit"):
        options = {"stop": TIGHT, "gradient": gradient}
        want = trained(DEQ(layer, **options), layer, x)
        torch.testing.assert_close(trained(DEQ(compiled, **options), layer, x), want, rtol=1e-4, atol=1e-5)


def test_a_compiled_layer_that_gives_its_buffers_away_is_refused() -> None:
    layer, x = normed(), torch.randn(3, 5)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=False)
    compiled(x.clone().requires_grad_()).sum().backward()
    deq = DEQ(compiled, stop=TIGHT)
    with pytest.raises(RuntimeError, match=r"donated_buffer = False before it is compiled"):
        trained(deq, layer, x)


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


class Settings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.deq, self.options = DEQ(contraction()), {"stop": TIGHT}

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deq(self.first(x), **self.options))


def test_a_compiled_model_is_two_graphs_whatever_the_solve_is_told() -> None:
    model, count = Settings(), Counting()
    compiled = torch.compile(model, backend=count)
    keys = list(model.state_dict())
    compiled(torch.randn(3, 5))
    assert count.graphs == 2
    for stop in (Stop(max_iter=30), Stop(rtol=1e-3), Stop(max_iter=4, rtol=0)):
        model.deq.solve = model.deq.solve.replace(stop=stop)
        compiled(torch.randn(3, 5))
    assert count.graphs == 2
    compiled(torch.randn(4, 5))
    before = count.graphs
    for rows in (6, 7):
        compiled(torch.randn(rows, 5))
    assert count.graphs == before
    assert [name.removeprefix("_orig_mod.") for name in compiled.state_dict()] == keys


def test_a_layer_that_is_compiled_alone_is_not_compiled_for_every_call() -> None:
    count = Counting()
    deq = DEQ(torch.compile(contraction(), backend=count), stop=TIGHT, on_failure="ignore")
    for rows in (3, 3, 4):
        deq(torch.randn(rows, 5))
    before = count.graphs
    for rows, stop in ((4, Stop(max_iter=5)), (6, Stop(max_iter=3, rtol=0)), (7, TIGHT)):
        deq(torch.randn(rows, 5), stop=stop)
    assert count.graphs == before


@pytest.mark.parametrize("gradient", NAMES)
def test_a_layer_that_is_compiled_alone(gradient: str) -> None:
    layer, x = contraction(), torch.randn(3, 5)
    plain = DEQ(layer, stop=TIGHT, gradient=gradient, solver=solver_for(gradient))
    fast = DEQ(torch.compile(layer, backend="aot_eager"), stop=TIGHT, gradient=gradient, solver=solver_for(gradient))
    torch.testing.assert_close(trained(fast, layer, x), trained(plain, layer, x), rtol=1e-5, atol=1e-6)


class Checkpointed(nn.Module):
    def __init__(self, layer: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = layer, reentrant

    def forward(self, z: Tensor) -> Tensor:
        return checkpoint(self.layer, z, use_reentrant=self.reentrant)


class Secretive(torch.autograd.Function):
    """Scales by a weight that autograd sees only when backward runs: as reentrant checkpoints do."""

    @staticmethod
    def forward(ctx, z: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.run, ctx.z = run, z.detach()
        return run(ctx.z)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            z = ctx.z.requires_grad_()
            out = ctx.run(z)
        out.backward(g)
        return z.grad, None


@pytest.mark.parametrize("gradient", ["one_step", "phantom", "implicit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_in_the_layer(gradient: str, reentrant: bool) -> None:
    layer, x = contraction(), torch.randn(3, 5)
    options = {"stop": TIGHT, "gradient": gradient}
    deq = DEQ(Checkpointed(layer, reentrant), **options)
    if reentrant and gradient == "implicit":
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            trained(deq, layer, x)
        return
    if reentrant:
        # a reentrant checkpoint gives its layer a gradient only where its input wants one
        x = x.clone().requires_grad_()
    torch.testing.assert_close(trained(deq, layer, x), trained(DEQ(layer, **options), layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_parameters_that_only_a_function_of_ones_own_knows_are_not_lost() -> None:
    layer, x = contraction(), torch.randn(3, 5)
    deq = DEQ(lambda z: Secretive.apply(z, layer), stop=TIGHT)
    assert deq(x).requires_grad


def test_parameters_swapped_for_one_call() -> None:
    deq, x = DEQ(contraction(), stop=TIGHT), torch.randn(3, 5)
    swapped = {name: (0.5 * p.detach()).requires_grad_() for name, p in deq.named_parameters()}
    y = torch.func.functional_call(deq, swapped, (x,))
    got = torch.autograd.grad(y.sum(), list(swapped.values()))
    for p, new in zip(deq.parameters(), swapped.values(), strict=True):
        p.data = new.detach().clone()
    torch.testing.assert_close(got, torch.autograd.grad(deq(x).sum(), list(deq.parameters())))


def test_a_model_checkpointed_as_a_whole() -> None:
    deq, x = DEQ(contraction(), stop=TIGHT), torch.randn(3, 5, requires_grad=True)
    want = trained(deq, deq, x)
    got = trained(partial(checkpoint, deq, use_reentrant=False), deq, x)
    torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_a_compiled_language_model_trains_like_a_plain_one() -> None:
    model = LMOptions(vocab_size=7, d_model=8, n_layer=1, mixer=AttentionOptions(n_head=2)).make()
    ids = torch.randint(0, 7, (2, 5))

    def run(model: nn.Module, ids: Tensor) -> Tensor:
        return model(ids, labels=ids).loss

    want = trained(partial(run, model), model, ids)
    got = trained(partial(run, torch.compile(model, backend="aot_eager")), model, ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
