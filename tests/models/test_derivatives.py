"""Solvers that differentiate f, in calls without grad: they find the point of plain iteration, and leave no graph."""

from __future__ import annotations

import pytest
import torch

from deqlm.sequence.modes import Chunked, Simultaneous
from deqlm_solvers import FixedPoint, Solve, Stop
from models.families import VOCAB, contract, make

EXACT = Stop(max_iter=5000, rtol=1e-11)
SOLVERS = ["newton", "newton_krylov", {"name": "fallback", "solvers": ["fixed_point", "newton_krylov"]}]


def graph(out):
    held = [t for layer in out.cache.layers for t in layer if isinstance(t, torch.Tensor)]
    return [t for t in (out.logits, out.state, out.solution.z, *held) if t.requires_grad]


@pytest.mark.parametrize(
    ("mode", "context"), [(Simultaneous(), torch.no_grad), (Chunked(2), torch.inference_mode)], ids=["whole", "chunks"]
)
@pytest.mark.parametrize("solver", SOLVERS, ids=["newton", "newton_krylov", "fallback"])
@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_newton_finds_the_point_without_grad(family, solver, mode, context):
    model = contract(make(family, depth=1, no_grad=Solve(FixedPoint(), EXACT)))
    ids = torch.randint(VOCAB, (2, 4))
    mask = torch.tensor([[True] * 4, [False, True, True, True]])
    with context():
        want = model(ids, mask=mask, use_cache=True)
        rest = model(ids[:, :1], cache=want.cache)
    model.no_grad = Solve(solver, EXACT)
    with context():
        got = model(ids, mask=mask, mode=mode, use_cache=True)
        after = model(ids[:, :1], cache=got.cache)
    assert got.solution.converged.all()
    assert not graph(got)
    torch.testing.assert_close(got.logits[mask], want.logits[mask], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(after.logits, rest.logits, rtol=1e-8, atol=1e-8)


def test_a_solver_that_ends_with_a_derivative_commits_plain_tensors():
    """The last evaluation of a budget of Newton steps carries tangents."""
    model = contract(make("mamba2", depth=1, on_failure="ignore", no_grad=Solve("newton", Stop(max_iter=70, rtol=0))))
    with torch.no_grad():
        out = model(torch.randint(VOCAB, (2, 2)), use_cache=True)
        assert not graph(out)
        assert model(torch.randint(VOCAB, (2, 1)), cache=out.cache).logits.isfinite().all()


@pytest.mark.parametrize("solver", ["newton", "newton_krylov"])
def test_newton_with_grad_and_what_it_gives_to_weights(solver):
    model = contract(make("llama", depth=1, solve=Solve(FixedPoint(), EXACT), gradient="implicit"))
    ids, grads = torch.randint(VOCAB, (2, 4)), []
    for how in ("fixed_point", solver):
        model.solve = Solve(how, EXACT)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
