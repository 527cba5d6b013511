"""Chunks of measured size: the choice, given what chunks took."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deqlm
from deqlm.layers import Attention
from deqlm.sequence.chunk_size import FIRST, ChunkSizeTuner, sizes_of
from deqlm.sequence.modes import Chunked
from deqlm_solvers import FixedPoint, Solve, Stop

SIZES = [2**k for k in range(10)]


def learned(seconds, evaluations, most=10**6, length=512, calls=6):
    """Return what is chosen after some calls, for evaluations of so many ``seconds``, and so many of them."""
    sizes = ChunkSizeTuner(most)
    for _ in range(calls):
        for first, end in sizes.cuts(length):
            count = evaluations(end - first)
            sizes.note(end - first, seconds=seconds(end - first) * count, evaluations=count, passed=count < most)
    return sizes


@settings(max_examples=25, deadline=None)
@given(
    fixed=st.floats(1e-6, 1e-2),
    per_token=st.floats(0, 1e-3),
    growth=st.floats(0, 3),
    least=st.integers(1, 20),
)
def test_the_size_with_the_least_time_per_token_is_chosen(fixed, per_token, growth, least):
    def seconds(size):
        return fixed + per_token * size

    def evaluations(size):
        return math.ceil(least + growth * size)

    def price(size):
        return seconds(size) * evaluations(size) / size

    sizes = learned(seconds, evaluations)
    assert sizes.untried is None or sizes.untried > 512, "the whole length is the largest size"
    assert price(sizes.best) <= 1.05 * min(map(price, SIZES))


@pytest.mark.parametrize(
    ("seconds", "evaluations", "best"),
    [
        (lambda size: 1e-3, lambda size: 5, 512),  # a call costs the same, and tokens settle together
        (lambda size: 1e-3 * size, lambda size: 2 + size, 1),  # work alone counts, and the prefix grows
        (lambda size: 4e-4 + 6e-6 * size, lambda size: 4 + int(1.3 * size), 16),
        (lambda size: 4e-4 + 6e-6 * size, lambda size: 5 + size // 16, 64),
    ],
)
def test_known_answers(seconds, evaluations, best):
    assert learned(seconds, evaluations).best == best


def test_one_slow_chunk_changes_nothing():
    sizes = ChunkSizeTuner(most=100)
    for number, (first, end) in enumerate(sizes.cuts(500)):
        size = end - first
        sizes.note(size, seconds=(4 + size) * (20 + size) + (1e6 if number == 1 else 0), evaluations=4 + size)
    assert sizes.best == 8


def test_sizes_that_do_not_converge_are_not_taken_and_too_large_ones_not_tried():
    sizes = learned(lambda size: 1.0, lambda size: 2 * size, most=100)
    assert sizes.best == 16
    assert max(sizes.chunks) == 32, "64 tokens would need 128 evaluations"
    never = learned(lambda size: 1.0, lambda size: 100, most=100)
    assert never.best == FIRST
    assert set(never.chunks) == {FIRST}


def test_what_is_known_lives_as_long_as_its_owner():
    owner = nn.Identity()
    assert sizes_of(owner, ("a",), 10) is sizes_of(owner, ("a",), 10)
    assert sizes_of(owner, ("a",), 10) is not sizes_of(owner, ("b",), 10)
    assert sizes_of(len, ("a",), 10) is not None
    assert sizes_of((), ("a",), 10) is not sizes_of((), ("a",), 10), "a tuple cannot be referred to weakly"


@torch.no_grad()
def test_calls_agree_whatever_the_clock_says(monkeypatch):
    deq = deqlm.DEQ(
        Attention(8, n_head=2).double(),
        causal=True,
        mode=Chunked("auto"),
        solver=FixedPoint(damping=0.8),
        stop=Stop(max_iter=400, rtol=1e-10),
        on_failure="raise",
    )
    x = 0.1 * torch.randn(2, 150, 8, dtype=torch.float64)
    want = deqlm.DEQ(deq.layer, causal=True, solver=deq.solve.solver, stop=deq.solve.stop)(x)
    ticks = iter(range(10**6))
    monkeypatch.setattr("deqlm.sequence.chunked_solve.time.perf_counter", lambda: next(ticks) ** 1.5)
    seen = []
    for _ in range(3):
        y, sol = deq(x, with_stats=True)
        torch.testing.assert_close(y, want, rtol=1e-8, atol=1e-9)
        assert sol.cost.row_evaluations >= int(sol.steps.sum())
        seen.append(sol.cost.evaluations)
    how = Solve(deq.solve.solver, deq.solve.stop.replace(per="token"))
    known = sizes_of(deq.layer, (how, 2, x.shape[2:], x.dtype, x.device, torch.get_num_threads(), False), 400)
    assert len(known.chunks) >= 3, "the calls have noted their chunks"
    noted = [chunk.evaluations for chunks in known.chunks.values() for chunk in chunks]
    assert all(0 < evaluations <= max(seen) for evaluations in noted)


@torch.no_grad()
def test_a_budget_takes_the_first_size():
    layer, x = Attention(8, n_head=2), torch.randn(1, 40, 8)
    given = {"causal": True, "solver": "fixed_point", "stop": Stop(max_iter=5, rtol=0)}
    y = deqlm.DEQ(layer, mode=Chunked("auto"), **given)(x)
    assert torch.equal(y, deqlm.DEQ(layer, mode=Chunked(FIRST), **given)(x))
