"""Every row says how it ended, of blocks that others wrote too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import SOLVERS, Status, Stop

STEPS = [name for name in SOLVERS if "." not in name and name not in ("deer", "fallback")]


def gpt2() -> nn.Module:
    """Return a block of GPT-2 as transformers has it."""
    models = pytest.importorskip("transformers.models.gpt2.modeling_gpt2")
    from transformers import GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_head=2, n_layer=1, attn_implementation="eager")
    return models.GPT2Block(config, layer_idx=0).eval()


class Residual(nn.Module):
    """z + mlp(norm(z))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.mlp(self.norm(z))


@pytest.mark.parametrize("make", [gpt2, Residual])
@pytest.mark.parametrize("solver", STEPS)
def test_no_row_of_a_pre_norm_block_is_called_converged(make, solver) -> None:
    layer, x = make(), torch.randn(3, 6, 16)
    deq = deqlm.DEQ(layer, solver=solver, on_failure="ignore", stop=Stop(max_iter=300))
    with torch.no_grad():
        y, sol = deq(x, with_stats=True)
        left, first = ((layer(z + x) - z).flatten(1).norm(dim=1) for z in (y, torch.zeros_like(x)))
    assert bool(((sol.status != Status.CONVERGED) | (left <= first / 2)).all())


@pytest.mark.parametrize("make", [gpt2, Residual])
def test_with_a_norm_after_the_sum_every_row_converges(make) -> None:
    deq = deqlm.DEQ(nn.Sequential(make(), nn.LayerNorm(16)), on_failure="raise")
    assert bool(deq(torch.randn(3, 6, 16), with_stats=True)[1].converged.all())
