"""A start changes what is spent and, within the tolerance, nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deqlm
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from deqlm_solvers import FixedPoint, Stop
from models.families import BLOCKS, VOCAB, contract, make

EXACT = Stop(max_iter=500, rtol=1e-11)
MODES = [Simultaneous(), Sequential(), Chunked(3)]


@pytest.fixture(params=BLOCKS)
def model(request):
    return contract(make(request.param, depth=1)).eval()


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 16), (2, 1, 16), (1, 1, 1)])
def test_a_model_finds_the_same_answer_from_any_start(model, mode, shape):
    ids = torch.randint(VOCAB, (2, 7))
    with torch.no_grad():
        want = model(ids, stop=EXACT)
        got = model(ids, stop=EXACT, mode=mode, start=torch.randn(shape))
    assert got.solution.converged.all()
    assert (got.logits - want.logits).abs().max() <= 1e-9 * want.logits.abs().max()


def test_a_start_at_the_fixed_point_costs_one_evaluation(model):
    ids = torch.randint(VOCAB, (2, 7))
    with torch.no_grad():
        z = model(ids, stop=EXACT).solution.z
        assert model(ids, stop=Stop(rtol=1e-8), start=z).solution.steps.tolist() == [1, 1]


def test_starts_are_not_read_at_padding(model):
    e = model.embedding(torch.randint(VOCAB, (2, 7)))
    mask = torch.arange(7)[None] >= torch.tensor([0, 3])[:, None]
    with torch.no_grad():
        start = torch.randn(2, 7, 16, dtype=torch.float64)
        want = model(embeddings=e, mask=mask, start=start).solution.z
        got = model(embeddings=e, mask=mask, start=start.masked_fill(~mask[..., None], torch.nan)).solution.z
    assert torch.equal(got, want)
    assert not got[~mask].any()


def test_training_starts_there_too(model):
    ids = torch.randint(VOCAB, (2, 5))
    start = torch.randn(2, 5, 16, dtype=torch.float64)
    model.solve = deqlm.Solve(FixedPoint(), Stop(max_iter=1, rtol=0))
    model.gradient = deqlm.Phantom(1, 1.0)
    context = model.backbone.open(model.embedding(ids))
    u = model.backbone.project(model.embedding(ids), context)
    twice = model.backbone(model.backbone(start, u, context), u, context)
    torch.testing.assert_close(model(ids, start=start).state, twice)


@pytest.mark.parametrize("shape", [(2, 6, 16), (3, 7, 16), (7, 16), (16,), (2, 7, 16, 1)])
def test_starts_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match="start must be of the state's shape"):
        model(torch.randint(VOCAB, (2, 7)), start=torch.zeros(shape))
    with pytest.raises(ValueError, match="start must be of the state's shape"):
        deqlm.DEQ(nn.Tanh())(torch.zeros(2, 7, 16), start=torch.zeros(shape))


def test_starts_that_are_no_states_are_refused(model):
    ids = torch.randint(VOCAB, (2, 7))
    with pytest.raises(TypeError, match="start must be a tensor"):
        model(ids, start=3)
    with pytest.raises(TypeError, match="the structure of the state"):
        model(ids, start=[torch.zeros(2, 7, 16)])
    with pytest.raises(ValueError, match="floating point"):
        model(ids, start=torch.zeros(2, 7, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="None for an explicit model"):
        make("llama", implicit=False)(ids, start=torch.zeros(2, 7, 16))


def test_a_deq_starts_where_the_call_says():
    layer = nn.Linear(4, 4).double()
    layer.weight.data.mul_(0.5)
    deq = deqlm.DEQ(layer, stop=Stop(rtol=1e-10), start=torch.ones(4, dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        want, sol = deq(x, with_stats=True)
        got, again = deq(x, start=want, with_stats=True)
    assert int(again.steps.max()) == 1 < int(sol.steps.min())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_deq_on_a_tree_starts_from_a_tree():
    def layer(z):
        return {"a": 0.5 * z["a"], "b": 0.5 * z["b"] + 0.1 * z["a"].sum(1, keepdim=True)}

    x = {"a": torch.randn(2, 3), "b": torch.randn(2, 1)}
    deq = deqlm.DEQ(layer, stop=Stop(max_iter=2, rtol=0))
    with torch.no_grad():
        moved = deq(x, start={"b": torch.ones(1, 1), "a": torch.ones(2, 3)})
    assert not torch.equal(moved["a"], deq(x)["a"])
    with pytest.raises(TypeError, match="the structure of the state"):
        deq(x, start=torch.ones(2, 3))
