"""Sharded as a whole and block by block: what a model answers is what it answers in one piece."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from deqlm.models import ImplicitLM
from deqlm_solvers import Stop
from models.families import BLOCKS, VOCAB, make
from models.sharded_blocks_worker import FAMILIES, TOGETHER, batch, work
from models.sharded_blocks_worker import model as whole

BUDGET = Stop(max_iter=6, rtol=0)

SHARDED = {
    "the model": lambda model: [model],
    "its blocks and the model": lambda model: [*model.backbone.layers, model],
    "its blocks alone": lambda model: list(model.backbone.layers),
    "its mixers and the injection": lambda model: [b.mixer for b in model.backbone.layers] + [model.backbone.injection],
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One process that shares its parameters with itself: all that is gathered and freed is, without a second one."""
    from torch.distributed.device_mesh import init_device_mesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meet = Path(tmp_path_factory.mktemp("meet")) / "file"
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
        yield init_device_mesh("cpu", (1,))
        dist.destroy_process_group()


def shard(model: ImplicitLM, what: str, mesh: object) -> ImplicitLM:
    from torch.distributed.fsdp import fully_shard

    for part in SHARDED[what](model):
        fully_shard(part, mesh=mesh)
    return model


def cached(model: ImplicitLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        first = model(ids[:, :4], use_cache=True, stop=BUDGET)
        rest = model(ids[:, 4:], cache=first.cache, mode="sequential", stop=BUDGET)
    return torch.cat([first.logits, rest.logits], dim=1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("what", SHARDED)
@pytest.mark.parametrize("family", BLOCKS)
def test_values_and_gradients_stay(mesh, family, what):
    plain, ids = make(family, depth=2), torch.randint(VOCAB, (2, 7))
    model = shard(copy.deepcopy(plain), what, mesh)
    for each in (plain, model):
        each(ids, labels=ids, stop=BUDGET).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        grad = q.grad.full_tensor() if hasattr(q.grad, "full_tensor") else q.grad
        torch.testing.assert_close(grad, p.grad, rtol=1e-9, atol=1e-11, msg=name)
    torch.testing.assert_close(cached(model, ids), cached(plain, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_backbone_that_is_sharded_by_itself_is_refused(mesh):
    from torch.distributed.fsdp import fully_shard

    model = make("mamba2", depth=1)
    fully_shard(model.backbone, mesh=mesh)
    with pytest.raises(RuntimeError, match="shard the model as a whole"):
        model(torch.randint(VOCAB, (1, 3)))


@pytest.mark.slow
def test_two_processes_with_a_budget_find_what_one_does(tmp_path: Path) -> None:
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    for family in FAMILIES:
        alone, ids = whole(family), batch()
        alone(ids, labels=ids, stop=BUDGET).loss.backward()
        with torch.no_grad():
            logits = alone(ids, stop=BUDGET).logits
            together = {mode: alone(ids, stop=TOGETHER, mode=mode).logits for mode in ("auto", "sequential")}
        for rank in (0, 1):
            got, gradients, refused, by_mode = torch.load(tmp_path / f"rank{rank}.pt")[family]
            torch.testing.assert_close(got, logits[2 * rank : 2 * rank + 2], rtol=1e-9, atol=1e-12)
            for name, p in alone.named_parameters():
                torch.testing.assert_close(gradients[name], p.grad, rtol=1e-8, atol=1e-12, msg=f"{family}: {name}")
            assert "Wrap or shard the whole module" in refused
            assert "or use a budget" in refused
            for mode, here in by_mode.items():
                want = together[mode][2 * rank : 2 * rank + 2]
                torch.testing.assert_close(here, want, rtol=1e-6, atol=1e-7, msg=mode)
