"""Parts of a row that one norm cannot see are named, and what is told of looks at every one of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import deqlm
from deqlm import Anderson, Implicit, Solve, Stop
from deqlm.diagnostics import Cause, Probes

QUICK = Probes(krylov=8, starts=1)
F64 = torch.float64


def graph(nodes: int, decay: float, features: int = 4):
    """Return a map on a ring in which what node 0 gets falls by ``decay`` at each node, and half of it returns."""
    torch.manual_seed(0)
    W = torch.randn(features, features, dtype=F64)
    W = decay * W / torch.linalg.matrix_norm(W, 2)
    u = torch.zeros(nodes, features, dtype=F64)
    u[0] = 1

    def f(z):
        return torch.cat([z[-1:], z[:-1]]) @ W + u

    return f, torch.zeros_like(u)


def test_nodes_of_many_orders_of_size_are_named():
    f, z0 = graph(16, 0.1)
    found = deqlm.diagnose(f, z0, batch_dims=0, probes=QUICK)
    assert found.converged
    assert found.cause is Cause.UNLIKE_PARTS
    assert (found.parts.per, found.parts.dim, found.parts.count) == ("token", 0, 16)
    assert found.parts.open
    assert set(found.parts.open) <= set(found.parts.below)
    text = " ".join(str(found).split())
    assert "of 16 tokens along dimension 0 are below the tolerance of their row" in text
    assert Cause.UNLIKE_PARTS.text in text
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_advice_sees_every_node_forward_and_backward():
    f, z0 = graph(12, 0.1)
    found = deqlm.diagnose(f, z0, batch_dims=0, probes=QUICK)
    assert found.suggestion.worked
    assert found.suggestion.options["stop"] == Stop(per="token", token_dim=0)
    assert found.suggestion.options["gradient"].solve.stop.per == "token"
    assert "batch_dims=1" in found.suggestion.text
    again = deqlm.diagnose(f, z0, batch_dims=0, probes=QUICK, **found.suggestion.options)
    assert again.healthy
    assert again.parts is None


def test_nodes_that_are_solved_but_hidden_from_the_backward_solve_are_named_too():
    f, z0 = graph(10, 0.1)
    exact = Stop(rtol=1e-15, max_iter=200)
    hidden = deqlm.diagnose(f, z0, batch_dims=0, solver="fixed_point", stop=exact, probes=QUICK)
    assert hidden.cause is Cause.UNLIKE_PARTS
    assert hidden.parts.below
    assert not hidden.parts.open
    assert "solved, but the backward solve does not see them" in " ".join(str(hidden).split())
    plain = {"solver": "fixed_point", "stop": exact, "gradient": "unrolled"}
    assert deqlm.diagnose(f, z0, batch_dims=0, probes=QUICK, **plain).parts is None


def test_a_small_tensor_of_a_tree_is_named():
    def f(state):
        return {"big": 0.5 * state["big"] + 1e6, "small": 0.9 * state["small"] + 1e-3}

    z0 = {"big": torch.zeros(2, 3), "small": torch.zeros(2, 2)}
    found = deqlm.diagnose(f, z0, probes=QUICK)
    assert found.cause is Cause.UNLIKE_PARTS
    assert (found.parts.per, found.parts.dim, found.parts.below) == ("leaf", None, (1,))
    assert found.suggestion.options["stop"] == Stop(per="leaf")
    assert found.suggestion.worked


def test_small_tokens_of_a_sequence_are_named():
    size = torch.tensor([1.0, 1.0, 1e-6, 1.0])[:, None]

    def f(z):
        return 0.9 * z + size

    found = deqlm.diagnose(f, torch.zeros(2, 4, 3), probes=QUICK)
    assert found.cause is Cause.UNLIKE_PARTS
    assert found.parts.below == (2,)
    by_token = {"stop": Stop(per="token"), "gradient": "phantom"}
    assert deqlm.diagnose(f, torch.zeros(2, 4, 3), probes=QUICK, **by_token).parts is None


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), torch.randn(2, 5, 16)),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU()), torch.randn(4, 6)),
        (nn.Sequential(nn.Linear(6, 6), nn.Tanh()), torch.randn(4, 5, 6)),
    ],
    ids=["transformer", "relu rows", "tanh tokens"],
)
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_parts_that_are_alike_are_no_news(layer, x, batch_dims):
    found = deqlm.diagnose(deqlm.DEQ(layer, batch_dims=batch_dims), x, probes=QUICK)
    assert found.converged
    assert found.parts is None


def test_parts_that_are_zero_are_solved():
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None]
    found = deqlm.diagnose(lambda z: (0.5 * z + 1) * mask, torch.zeros(2, 4, 3), probes=QUICK)
    assert found.healthy
    assert found.parts is None


def test_a_tolerance_that_is_absolute_is_the_users_word():
    f, z0 = graph(12, 0.1)
    absolute = Stop(rtol=0, atol=1e-4)
    per_node = Implicit(solve=Solve(Anderson(), Stop(max_iter=200, rtol=1e-6, per="token", token_dim=0)))
    found = deqlm.diagnose(f, z0, batch_dims=0, stop=absolute, gradient=per_node, probes=QUICK)
    assert found.parts is None
