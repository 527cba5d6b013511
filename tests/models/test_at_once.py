"""Rows that leave at once, in every mode: the bill is the sum of the steps, of commits, probes and last looks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deqlm
from deqlm.sequence.chunk_evaluator import ChunkEvaluator
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm_solvers import Anderson, FixedPoint, Solve, Stop
from deqlm_solvers.loop.evaluator import Evaluator
from models.families import BLOCKS, VOCAB, contract, make

MODES = [Simultaneous(), Chunked(3), Chunked(4, start="previous"), Chunked("auto"), Sequential(), Auto(), Frontier(3)]
LENGTH = 34  # more than one solve in mode Auto


@pytest.fixture(params=BLOCKS, scope="module")
def model(request):
    torch.manual_seed(0)
    return contract(make(request.param, depth=1)).eval()


class Bill:
    """Rows evaluated by commits, probes and last looks at all rows, counted where they are called.

    A window makes an evaluation of all rows when it probes those that move on.
    """

    def __init__(self, patch, window):
        self.rows = 0
        commit, narrow = ChunkEvaluator.commit, ChunkEvaluator.narrow

        def committing(piece, z, **more):
            before = piece.count.rows
            made = commit(piece, z, **more)
            self.rows += piece.count.rows - before
            return made

        def narrowing(piece, rows):
            # what is not yet known not to mix is probed, on these rows
            if not piece.apart:
                self.rows += piece.shape[0] if window else len(rows)
            return narrow(piece, rows)

        widen = Evaluator.widen

        def widening(counted, z):
            self.rows += z.shape[0]
            return widen(counted, z)

        patch.setattr(Evaluator, "widen", widening)
        patch.setattr(ChunkEvaluator, "commit", committing)
        patch.setattr(ChunkEvaluator, "narrow", narrowing)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(MODES),
    batch=st.integers(1, 5),
    length=st.sampled_from([1, 5, 5, LENGTH]),
    solver=st.sampled_from([FixedPoint(), FixedPoint(damping=0.8), Anderson(memory=3)]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_the_bill_is_steps_commits_and_probes(model, mode, batch, length, solver, seed):
    if isinstance(mode, Frontier):
        solver = FixedPoint()
    draw = torch.Generator().manual_seed(seed)
    e = model.embedding(torch.randint(VOCAB, (batch, length), generator=draw))
    e = e * torch.logspace(-2.5, 0, batch, dtype=e.dtype)[:, None, None]
    stop = Stop(max_iter=500, rtol=1e-10, per="token", compact="at_once")
    with pytest.MonkeyPatch.context() as patch:
        bill = Bill(patch, window=isinstance(mode, Frontier))
        model.no_grad = Solve(solver, stop)
        out = model(embeddings=e, mode=mode)
    sol = out.solution
    assert sol.converged.all()
    beyond = sol.cost.row_evaluations - int(sol.steps.sum()) - bill.rows
    # of the few evaluations that `Auto` tries all tokens for, those left may not repay the price of leaving
    assert beyond == 0 or (isinstance(mode, Auto) and 0 < beyond <= 2 * batch)
    model.no_grad = Solve(solver, stop.replace(compact=False))
    whole = model(embeddings=e, mode=mode)
    torch.testing.assert_close(out.logits, whole.logits, rtol=1e-7, atol=1e-8)


@torch.no_grad()
def test_chunks_are_probed_once_and_again_where_a_cache_looks_otherwise():
    """A tensor of the cache that is as long as the batch by chance, in one chunk, is found out there."""

    class Counting(torch.nn.Module):
        def forward(self, z):
            return 0.5 * torch.tanh(z) + 0.01 * torch.arange(1.0, z.shape[1] + 1)[:, None].to(z)

        def forward_chunk(self, z, u, cache):
            places = torch.arange(len(cache) + 1.0, len(cache) + z.shape[1] + 1)
            return 0.5 * torch.tanh(z) + 0.01 * places[:, None].to(z), torch.cat([cache, places])

        def empty_cache(self, batch):
            return torch.zeros(0)

    x = torch.randn(4, 12, 3, dtype=torch.float64) * torch.tensor([0.0, 0.1, 1.0, 10.0])[:, None, None]
    stop = Stop(max_iter=200, rtol=1e-10, compact="at_once")
    for mode in (Chunked(2), Frontier(2)):
        deq = deqlm.DEQ(Counting(), causal=True, solver=FixedPoint(), stop=stop, mode=mode, on_failure="raise")
        want = deqlm.DEQ(deq.layer, causal=True, solver=FixedPoint(), stop=stop)(x)
        torch.testing.assert_close(deq(x), want, rtol=1e-8, atol=1e-9)
