"""Buffers move once per call, however a layer moves them, in train() and in eval(), and under threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from deqlm import DEQ, Stop, Unrolled
from deqlm.wrap.buffers import Buffer, moved, watch
from deqlm.wrap.replay import Replay

MOVES: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "in place": lambda m, mean: (m.count.add_(1), m.mean.lerp_(mean, 0.1)),
    "assigned": lambda m, mean: (setattr(m, "count", m.count + 1), setattr(m, "mean", 0.9 * m.mean + 0.1 * mean)),
    "set": lambda m, mean: (m.count.set_(m.count + 1), m.mean.copy_(mean)),
    "data": lambda m, mean: (m.count.data.add_(1), m.mean.data.lerp_(mean, 0.1)),
    "data copied": lambda m, mean: (m.count.data.copy_(m.count + 1), m.mean.data.copy_(mean)),
    "data assigned": lambda m, mean: (setattr(m.count, "data", m.count + 1), setattr(m.mean, "data", mean)),
    "numpy": lambda m, mean: (m.count.numpy().__iadd__(1), m.mean.numpy().__imul__(0.9)),
    "grown": lambda m, mean: (m.count.data.add_(1), setattr(m.mean, "data", torch.cat([m.mean, mean]))),
}
every_move = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)


class Moving(nn.Module):
    """Counts its evaluations in a buffer, in train() and in eval()."""

    def __init__(self, move: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight.mul_(0.6)
        self.move = move
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("empty", None)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.tanh(self.linear(z))
        with torch.no_grad():
            self.move(self, h.mean(0))
        return h


@every_move
@pytest.mark.parametrize("gradient", ["implicit", "phantom", "one_step", None])
@pytest.mark.parametrize("training", [True, False])
def test_a_buffer_moves_once_per_call(move: Callable, gradient: str | None, training: bool) -> None:
    layer = Moving(move).train(training)
    deq = DEQ(layer, gradient=gradient or "implicit")
    x = torch.randn(4, 6)
    for call in (1, 2):
        with torch.set_grad_enabled(gradient is not None):
            y = deq(x)
        if gradient is not None:
            y.sum().backward()
        assert layer.count.item() == call
    assert layer.mean.numel() in (6, 18)


def test_a_module_that_makes_u_moves_its_buffers_once_too() -> None:
    inject = Moving(MOVES["data"])
    DEQ(nn.Tanh(), inject=inject, on_failure="ignore")(torch.randn(4, 6)).sum().backward()
    assert inject.count.item() == 1


@every_move
def test_backward_with_checkpoints_leaves_buffers_alone(move: Callable) -> None:
    layer = Moving(move)
    deq = DEQ(layer, solver="fixed_point", gradient=Unrolled(checkpoint=True), stop=Stop(max_iter=8, rtol=0))
    y = deq(torch.randn(4, 6))
    before = copy.deepcopy(layer.state_dict())
    y.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_what_does_not_move_is_left_out_whatever_its_values() -> None:
    module = nn.Module()
    for name, value in {
        "nan": torch.tensor([torch.nan, 1.0]),
        "inf": torch.tensor(torch.inf),
        "complex": torch.tensor([complex(torch.nan, 1)]),
        "int": torch.arange(3),
        "bool": torch.ones(2, dtype=torch.bool),
        "none": torch.zeros(0, 3),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "meta": torch.zeros(2, device="meta"),
        "coo": torch.eye(2).to_sparse(),
        "strided": torch.arange(6).reshape(2, 3).T,
    }.items():
        module.register_buffer(name, value)
    module.register_buffer("nothing", None)
    assert moved(watch(module), module) == []
    buffers = watch(module)
    for name in ("nan", "inf", "complex", "int", "bool", "strided"):
        module._buffers[name].data.zero_()
    assert [b.name for b in moved(buffers, module)] == ["nan", "inf", "complex", "int", "bool", "strided"]


def test_a_table_is_not_copied_in_eval() -> None:
    module = nn.Module()
    module.register_buffer("table", torch.zeros(2**20 + 1, dtype=torch.int8))
    module.register_buffer("small", torch.zeros(2**10))
    values = {training: [b.value is not None for b in watch(module.train(training))] for training in (True, False)}
    assert values == {True: [True, True], False: [False, True]}
    kept = watch(module)
    module.table = module.table + 1
    for buffer in moved(kept, module):
        buffer.put_back()
    assert not module.table.any()


@pytest.mark.parametrize("grad", [True, False])
def test_a_lazy_layer_begins_with_what_it_is_given(grad: bool) -> None:
    layer = nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(6), nn.Tanh())
    x = 1 + torch.randn(16, 6)
    with torch.set_grad_enabled(grad):
        y = DEQ(layer, batch_dims=0, on_failure="ignore")(x)
    once = nn.BatchNorm1d(6)
    once(y.detach() + x)
    assert layer[0].num_batches_tracked == 1
    torch.testing.assert_close(layer[0].running_mean, once.running_mean, rtol=0.02, atol=0.02)
    assert not layer[0]._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_scripted_layer_is_a_layer() -> None:
    plain = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()).double()
    with torch.no_grad():
        plain[1].weight.mul_(0.3)
    x = torch.randn(16, 6).double()
    scripted = torch.jit.trace(copy.deepcopy(plain), (x,), check_trace=False)
    scripted.load_state_dict(plain.state_dict())
    y, z = (DEQ(layer, batch_dims=0)(x) for layer in (plain, scripted))
    torch.testing.assert_close(y, z)
    assert [b.tolist() for b in scripted.buffers()] == [b.tolist() for b in plain.buffers()]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, z: Tensor) -> Tensor:
        return 0.3 * torch.tanh(self.linear(self.norm(z)))


def in_threads(work: Callable[[], None], count: int = 4) -> None:
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # shown below
            raised.append(error)

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not raised
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"


@pytest.mark.parametrize("gradient", ["implicit", Unrolled(checkpoint=True)])
def test_threads_lose_no_update(gradient: object) -> None:
    layer = Normed()
    deq = DEQ(layer, batch_dims=0, gradient=gradient, solver="fixed_point", on_failure="ignore")
    in_threads(lambda: [deq(torch.randn(8, 8)).sum().backward() for _ in range(8)])
    assert layer.norm.num_batches_tracked == 32


def test_threads_of_nested_solves_do_not_wait_for_each_other() -> None:
    inner = DEQ(Normed(), batch_dims=0, on_failure="ignore")
    outer = DEQ(nn.Sequential(inner, nn.BatchNorm1d(8), nn.Tanh()), batch_dims=0, on_failure="ignore")
    turns = iter([inner, outer, inner, outer])
    in_threads(lambda deq=None: [d(torch.randn(8, 8)).sum().backward() for d in [next(turns)] for _ in range(3)])
    assert inner.layer.norm.num_batches_tracked == 12
    assert outer.layer[1].num_batches_tracked == 6


def test_an_error_in_a_layer_ends_its_turn() -> None:
    layer = Normed()
    deq = DEQ(layer, batch_dims=0, on_failure="ignore")
    with pytest.raises(RuntimeError):
        deq(torch.randn(8, 9))
    in_threads(lambda: deq(torch.randn(8, 8)), 2)


def test_a_layer_in_eval_has_no_turns() -> None:
    layer = Normed().eval()
    with Replay(layer, torch.device("cpu")) as held:
        in_threads(lambda: DEQ(layer, batch_dims=0, on_failure="ignore")(torch.randn(8, 8)), 1)
    assert held.sealed


def test_a_turn_is_no_part_of_the_module() -> None:
    deq = DEQ(Normed(), batch_dims=0, on_failure="ignore")
    deq(torch.randn(8, 8)).sum().backward()
    for twin in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
        twin(torch.randn(8, 8))
        assert twin.layer.norm.num_batches_tracked == 2
    assert deq.layer.norm.num_batches_tracked == 1


def test_a_buffer_that_is_no_tensor_yet_is_given_back() -> None:
    module = nn.Module()
    module.register_buffer("cache", None)
    buffer = Buffer(module, "cache")
    module.cache = torch.ones(2)
    assert moved([buffer], module) == [buffer]
    buffer.put_back()
    assert module.cache is None


class Late(nn.Module):
    """Makes a counter when it is first evaluated, and drops what it no longer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(2))

    def forward(self, z: Tensor) -> Tensor:
        if "count" not in self._buffers:
            self.register_buffer("count", torch.zeros(()))
        if "scratch" in self._buffers:
            del self.scratch
        self.count += 1
        return 0.5 * z.cos()


def test_a_buffer_that_comes_or_goes_does_so_once() -> None:
    layer = Late()
    deq = DEQ(layer)
    for call in (1, 2):
        deq(torch.zeros(2, 3))
        assert {name: value.item() for name, value in layer.named_buffers()} == {"count": call}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_the_vectors_of_a_spectral_norm_move_as_in_an_explicit_layer(cached: bool, calls: int, grad: bool) -> None:
    """Once for a call, and once for all calls inside ``parametrize.cached()``."""

    def vectors(wrap: Callable[[nn.Module], nn.Module]) -> Tensor:
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(torch.ones(4) / 2)
        whole = wrap(nn.Sequential(layer, nn.Tanh()))
        with torch.set_grad_enabled(grad), nn.utils.parametrize.cached() if cached else nullcontext():
            for _ in range(calls):
                whole(torch.randn(3, 4))
        return torch.stack((norm._u, norm._v))

    assert torch.equal(vectors(lambda layer: DEQ(layer, on_failure="ignore")), vectors(lambda layer: layer))
