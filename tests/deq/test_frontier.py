"""The sliding window and the other ways along the tokens for layers of users."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import deqlm
from deqlm.sequence.frozen_prefix import FrozenPrefix
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential
from deqlm_solvers import FixedPoint, Status, Stop

WIDTH, LENGTH = 5, 11
EXACT = Stop(max_iter=300, rtol=1e-12)
MODES = [Frontier(4), Frontier(LENGTH), Chunked("auto"), Chunked(3, start="previous"), Sequential(start="previous")]


class Smooth(nn.Module):
    """tanh of a linear map of the tokens' running mean; no chunks of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()
        self.linear.weight.data.mul_(0.8)

    def forward(self, z, gain=None):
        counts = torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
        y = torch.tanh(self.linear(z.cumsum(1) / counts[:, None]) + 0.5 * z)
        return y if gain is None else y * gain


class SmoothInChunks(Smooth):
    """The same, going on from sums per row and one count for all rows."""

    def forward_chunk(self, z, u, cache, gain=None):
        total, count = cache
        z = z if u is None else z + u
        sums = z.cumsum(1) + total[:, None]
        counts = count + torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
        y = torch.tanh(self.linear(sums / counts[:, None]) + 0.5 * z)
        return y if gain is None else y * gain, (sums[:, -1], counts[-1])

    def empty_cache(self, batch):
        return torch.zeros(batch, WIDTH, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


@pytest.fixture(params=[Smooth, SmoothInChunks])
def layer(request):
    return request.param()


def wrap(layer, mode, **options):
    return deqlm.DEQ(layer, causal=True, mode=mode, **{"solver": FixedPoint(), "stop": EXACT, **options})


def inputs(batch=3, length=LENGTH):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_modes_find_the_same_point_and_gradient(layer, mode):
    x, gain = inputs().requires_grad_(), torch.rand(3, LENGTH, 1, dtype=torch.float64)
    want = wrap(layer, "simultaneous")(x, gain)
    wanted = torch.autograd.grad(want.square().sum(), [x, *layer.parameters()])
    y, sol = wrap(layer, mode)(x, gain, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    for got, right in zip(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mode", [{"name": "frontier", "window": 3}, Chunked(3, start="previous"), Sequential(start="previous")], ids=str
)
def test_modes_honour_a_mask(layer, mode):
    x = inputs()
    mask = torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 7, 4])[:, None]
    with torch.no_grad():
        want = wrap(layer, "simultaneous")(x, token_mask=mask)
        got, sol = wrap(layer, mode)(x, token_mask=mask, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_the_bill_of_a_layer_without_chunks_holds_the_prefix(layer):
    with torch.no_grad():
        _, sol = wrap(layer, Chunked(4), stop=Stop(max_iter=5, rtol=0))(inputs(2), with_stats=True)
    # chunks of 4, 4 and 3 tokens, 5 evaluations each, and a commit of all but the last
    tokens = [4, 8, 11] if type(layer) is Smooth else [4, 4, 3]
    assert sol.cost.evaluations == 17
    assert sol.cost.row_evaluations == 2 * 17
    assert sol.cost.token_evaluations == 2 * (6 * tokens[0] + 6 * tokens[1] + 5 * tokens[2])


def test_a_solve_without_tokens_counts_none():
    with torch.no_grad():
        _, plain = deqlm.DEQ(nn.Tanh())(torch.randn(2, 3), with_stats=True)
        _, tokens = deqlm.DEQ(nn.Tanh(), stop=Stop(per="token"))(torch.randn(2, 3, 4), with_stats=True)
    assert plain.cost.token_evaluations == 0
    assert tokens.cost.token_evaluations == 3 * tokens.cost.row_evaluations
    assert f"{tokens.cost.token_evaluations} tokens" in repr(tokens)


def test_half_precision_states_are_judged_as_they_are(layer):
    if type(layer) is SmoothInChunks:
        pytest.skip("its sums are float64")
    layer, x = layer.bfloat16(), inputs().bfloat16()
    with torch.no_grad():
        z, sol = wrap(layer, Frontier(4), stop=Stop(rtol=0.03))(x, with_stats=True)
        residual = (layer(z + x).float() - z.float()).norm(dim=2)
    assert z.dtype == torch.bfloat16
    assert sol.converged.all()
    torch.testing.assert_close(sol.residual.float(), residual.amax(1), rtol=1e-3, atol=1e-3)


def test_auto_goes_on_in_chunks_from_where_the_solve_of_all_stands():
    def chain(z):
        """Token t is half of token t - 1 plus one: its prefix settles token by token."""
        return torch.cat([torch.ones_like(z[:, :1]), 1 + 0.5 * z[:, :-1]], dim=1)

    x = torch.zeros(1, 100, 1, dtype=torch.float64)
    with torch.no_grad():
        z, sol = wrap(chain, Auto(), stop=Stop(rtol=1e-12))(x, with_stats=True)
        whole = wrap(chain, "simultaneous", stop=Stop(rtol=1e-12))(x)
    assert sol.converged.all()
    torch.testing.assert_close(z, whole, rtol=1e-10, atol=1e-10)
    assert int(sol.steps) > Auto.TRIED


@pytest.mark.parametrize("block", [2, 4, 8])
def test_the_probe_says_which_token_sees_which(block):
    def mixing(z):
        """Each token is the mean of its block."""
        blocks = z.unflatten(1, (-1, block))
        return 0.5 * blocks.mean(2, keepdim=True).expand_as(blocks).flatten(1, 2)

    with pytest.raises(ValueError, match="token 0 of this layer sees token 1, counted from 0"):
        wrap(mixing, Frontier(4))(inputs(2, 16))


def test_a_batch_without_rows(layer):
    with torch.no_grad():
        z, sol = wrap(layer, Frontier(4))(inputs(0), with_stats=True)
    assert z.shape == (0, LENGTH, WIDTH)
    assert sol.steps.shape == (0,)


def test_what_a_window_cannot_honour_is_refused(layer):
    with pytest.raises(ValueError, match="solver must be FixedPoint with mode Frontier"):
        wrap(layer, Frontier(4), solver="anderson")(inputs())
    with pytest.raises(ValueError, match="'unrolled' differentiates the steps of one simultaneous solve"):
        wrap(layer, Frontier(LENGTH), gradient="unrolled")(inputs())
    with pytest.raises(ValueError, match="mode must be 'simultaneous' without causal=True"):
        deqlm.DEQ(layer, mode=Frontier(4))


def test_tokens_that_run_away_do_not_converge():
    """z + F(z), token by token: each would pass by its size alone after some hundred evaluations."""

    class Drift(nn.Module):
        def forward(self, z):
            return z + 1 + 0.1 * torch.tanh(z)

    x = torch.ones(2, 6, 3, dtype=torch.float64)
    stop = Stop(max_iter=400, rtol=1e-2)
    for mode in (Frontier(3), deqlm.Chunked(2), deqlm.Simultaneous()):
        deq = deqlm.DEQ(Drift(), causal=True, solver="fixed_point", stop=stop, mode=mode, on_failure="ignore")
        with torch.no_grad():
            _, sol = deq(x, with_stats=True)
        assert sol.status.tolist() == [Status.DIVERGED] * 2, mode
        assert sol.runaway.all()


def test_a_row_has_run_away_where_one_chunk_has():
    class Late(nn.Module):
        """Tokens from the third on drift, those before contract."""

        def forward(self, z):
            late = torch.arange(z.shape[1])[:, None] >= 2
            return torch.where(late, z + 1 + 0.1 * torch.tanh(z), 0.5 * z)

    deq = deqlm.DEQ(
        Late(),
        causal=True,
        mode=Chunked(2),
        solver="fixed_point",
        stop=Stop(max_iter=400, rtol=1e-2),
        on_failure="ignore",
    )
    with torch.no_grad():
        _, sol = deq(torch.ones(2, 4, 3, dtype=torch.float64), with_stats=True)
    assert sol.status.tolist() == [Status.DIVERGED] * 2
    assert sol.runaway.all()


def test_one_token_that_no_longer_passes_fails_its_row():
    prefix = FrozenPrefix(3, 4, 2, Stop(), torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]]))
    prefix.review(np.array([[0.5, 1.1, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 2.0]]), 0, 4)
    assert prefix.status.tolist() == [Status.MAX_ITER, Status.CONVERGED, Status.CONVERGED]


def test_the_first_step_of_every_token_has_its_own_damping():
    """From 0 half a step leads to .5, and a whole one to 1, where f stays."""
    x = torch.zeros(2, 5, 1, dtype=torch.float64)
    solver = FixedPoint(damping=1.0, first_damping=0.5)
    with torch.no_grad():
        z, sol = wrap(torch.ones_like, Frontier(2), solver=solver)(x, with_stats=True)
    assert (z == 1).all()
    assert (sol.token_steps == 3).all()


@pytest.mark.parametrize("rate", [0.3, 0.95])
def test_a_token_is_frozen_where_its_error_is_within_tolerance(rate):
    """Not its residual alone, which is 1 - rate times its error."""
    x = torch.zeros(1, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        z, sol = wrap(lambda z: rate * z + 1, Frontier(2), stop=Stop(max_iter=300, rtol=1e-3))(x, with_stats=True)
    assert sol.converged.all()
    error = rate * (z * (1 - rate) - 1).abs().amax()
    assert 1e-7 < error <= 1.001e-3


@pytest.mark.parametrize("compact", [False, True])
def test_rows_wait_where_there_are_more_of_them_than_tokens(layer, compact):
    x, gain = inputs(12, 3), torch.linspace(0.05, 1, 12, dtype=torch.float64)[:, None, None]
    stop = EXACT.replace(compact=compact)
    with torch.no_grad():
        want = wrap(layer, "simultaneous", stop=stop)(x, gain)
        z, sol = wrap(layer, Frontier(1), stop=stop)(x, gain, with_stats=True)
    assert sol.converged.all()
    assert len(set(sol.steps.tolist())) > 3, "rows are done at different evaluations"
    torch.testing.assert_close(z, want, rtol=1e-10, atol=1e-10)
