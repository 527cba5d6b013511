"""A layer whose parts talk to other processes is solved in step only: by a budget."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from deqlm import DEQ, Implicit, Phantom, Solve, Stop
from deqlm.models import ImplicitLM
from models.families import VOCAB, make

WAITING = r"below the DEQ: processes would wait .* the whole module that holds the DEQ.*Stop\(rtol=0\)"
REFUSED = f"is sharded {WAITING}"
BUDGET = Stop(max_iter=20, rtol=0)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that takes itself for one of two; what is refused is refused before they would talk."""
    monkeypatch.setattr(dist, "get_world_size", lambda *group: 2)


def layer() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    nn.init.orthogonal_(made[0].weight, 0.5)
    return made


@pytest.mark.parametrize("part", ["the layer", "part '0' of the layer"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_tolerance_is_refused(mesh: DeviceMesh, two: None, part: str, grad: bool) -> None:
    deq = DEQ(layer())
    fully_shard(deq.layer if part == "the layer" else deq.layer[0], mesh=mesh)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=f"^{part} {REFUSED}"):
        deq(torch.ones(2, 4))


def test_the_backward_solve_needs_a_budget_too(mesh: DeviceMesh, two: None) -> None:
    deq = DEQ(layer(), stop=BUDGET, solver="fixed_point")
    fully_shard(deq.layer[0], mesh=mesh)
    with pytest.raises(RuntimeError, match=REFUSED):
        deq(torch.ones(2, 4))
    with torch.no_grad():
        deq(torch.ones(2, 4))


@pytest.mark.parametrize("gradient", [Phantom(), Implicit(solve=Solve("fixed_point", BUDGET))])
def test_a_budget_is_solved(mesh: DeviceMesh, two: None, gradient: object) -> None:
    deq = DEQ(layer(), stop=BUDGET, solver="fixed_point", gradient=gradient)
    twin = copy.deepcopy(deq)
    fully_shard(deq.layer[0], mesh=mesh)
    x = torch.randn(2, 4)
    got, want = deq(x), twin(x)
    torch.testing.assert_close(got, want)
    for y in (got, want):
        y.sum().backward()
    ours, theirs = deq.layer[0].weight.grad.full_tensor(), twin.layer[0].weight.grad
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("what", ["deq", "around"])
def test_a_module_that_is_sharded_as_a_whole_is_solved(mesh: DeviceMesh, two: None, what: str) -> None:
    deq = DEQ(layer())
    model = nn.Sequential(deq)
    fully_shard(deq if what == "deq" else model, mesh=mesh)
    model(torch.ones(2, 4)).sum().backward()


def test_one_process_waits_for_nobody(mesh: DeviceMesh) -> None:
    deq = DEQ(layer())
    fully_shard(deq.layer[0], mesh=mesh)
    deq(torch.ones(2, 4)).sum().backward()


def test_a_model_whose_blocks_are_sharded_is_refused(mesh: DeviceMesh, two: None) -> None:
    model: ImplicitLM = make("llama", torch.float32)
    for block in model.backbone.layers:
        fully_shard(block, mesh=mesh)
    with pytest.raises(RuntimeError, match=REFUSED):
        model(torch.randint(VOCAB, (2, 5)))


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * torch.tanh(z)


def test_statistics_of_all_processes_are_refused(mesh: DeviceMesh, two: None) -> None:
    deq, x = DEQ(Normed(nn.SyncBatchNorm(4))), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match=f"^part 'norm' of the layer averages over the rows .* {WAITING}"):
        deq(x)
    deq.eval()(x)
    DEQ(Normed(nn.BatchNorm1d(4)))(x)


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
def test_buffers_that_are_sent_are_refused(mesh: DeviceMesh) -> None:
    x = torch.randn(2, 4)
    layer = Normed(nn.BatchNorm1d(4))
    sending, silent = (DistributedDataParallel(layer, broadcast_buffers=send) for send in (True, False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_world_size", lambda *group: 2)
        with pytest.raises(RuntimeError, match=f"^the layer sends its buffers {WAITING}"):
            DEQ(sending)(x)
        with torch.no_grad():
            DEQ(silent)(x)
