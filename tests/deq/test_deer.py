"""Newton along the sequence in a DEQ, in chunks, in language models, with gradients and under a cap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import Chunked, Deer, FixedPoint, Simultaneous, Solve, Status, Stop
from deqlm.layers import Attention, Block, Mamba2
from deqlm.models import Backbone, ImplicitLM
from models.families import contract

TIGHT = Stop(max_iter=100_000, rtol=1e-11)
WIDTH = 8


class Recurrent(nn.Module):
    """tanh of the token before and of the token itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(3, 3).double()
        self.own = nn.Linear(3, 3).double()

    def forward(self, z: Tensor) -> Tensor:
        shifted = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return torch.tanh(self.before(shifted) + 0.3 * self.own(z))


def model(mixer: nn.Module, reach: float) -> ImplicitLM:
    torch.manual_seed(0)
    return contract(ImplicitLM(Backbone([Block(mixer)]), vocab_size=13).double().eval(), reach)


@pytest.mark.parametrize("mode", [Simultaneous(), Chunked(5)])
def test_a_deq_has_the_answer_and_gradient_of_plain_iteration(mode):
    layer = Recurrent()
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for solver in (FixedPoint(), Deer(colours=2), Deer(), Deer(lags=0)):
        layer.zero_grad()
        y, sol = deqlm.DEQ(layer, causal=True, solver=solver, stop=TIGHT, mode=mode)(x, with_stats=True)
        assert sol.converged.all()
        y.square().sum().backward()
        found.append((y.detach(), layer.before.weight.grad.clone(), sol.cost))
    for y, grad, cost in found[1:]:
        assert (y - found[0][0]).abs().max() <= 1e-8
        assert torch.allclose(grad, found[0][1], rtol=1e-5)
        assert cost.jvps > 0


def test_states_with_tokens_need_no_causal_module():
    layer = Recurrent()
    z0 = torch.zeros(2, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        sol = deqlm.solve(layer, z0, solver={"name": "deer", "colours": 2}, stop=TIGHT)
        plain = deqlm.solve(layer, z0, solver="fixed_point", stop=TIGHT.replace(per="token"))
        assert sol.converged.all()
        assert (sol.z - plain.z).abs().max() <= 1e-8
        with pytest.raises(ValueError, match="token 0 of row 0 changes with token 19"):
            deqlm.solve(lambda z: 0.1 * layer(z).flip(1), z0, solver=Deer(colours=2), stop=TIGHT)


def test_a_language_model_without_grad():
    ids = torch.randint(13, (2, 10), generator=torch.Generator().manual_seed(1))
    for lm in (model(Mamba2(WIDTH, d_state=4, headdim=8), 0.5), model(Attention(WIDTH, n_head=2), 0.3)):
        logits = []
        for solver in (FixedPoint(), Deer(colours=4), Deer()):
            lm.no_grad = Solve(solver, TIGHT)
            with torch.no_grad():
                out = lm(ids, mode=Simultaneous())
            assert out.solution.converged.all()
            logits.append(out.logits)
        for other in logits[1:]:
            assert (other - logits[0]).abs().max() <= 1e-8


def test_damping_holds_the_first_step_of_a_long_chain():
    """Near its start at zero an RMS norm is steep, and blocks of one lag alone grow along the sequence."""
    lm = model(Mamba2(WIDTH, d_state=4, headdim=8), 0.5)
    ids = torch.randint(13, (1, 64), generator=torch.Generator().manual_seed(1))
    status = []
    for damping in (0.0, 0.01):
        lm.no_grad = Solve(Deer(colours=4, damping=damping), TIGHT.replace(max_iter=33 * 20))
        with torch.no_grad():
            sol = lm(ids, mode=Simultaneous(), on_failure="ignore").solution
        status.append(sol.status.item())
    assert status == [Status.DIVERGED, Status.CONVERGED]
    assert sol.steps.item() <= 15


def test_the_cap_of_a_deq_holds():
    x = torch.randn(1, 40, 3, dtype=torch.float64)
    for options in ({"solver": Deer(memory_cap="40kB")}, {"solver": Deer(), "memory_cap": "40kB"}):
        deq = deqlm.DEQ(Recurrent(), causal=True, stop=TIGHT, **options)
        with torch.no_grad(), pytest.raises(MemoryError, match=r"(KiB|MiB).* is above memory_cap=39\.1 KiB"):
            deq(x)
