"""Layers z + F(z) are told apart from what contracts, expands or is singular, and a norm after the sum is tried."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import deqlm
from deqlm import Stop
from deqlm.diagnostics import Cause, Probes
from diagnostics.layers import LAYERS, WIDTH, PreNorm, Residual, made

QUICK = Probes(krylov=8, rows=1, starts=1)


def diagnosed(name: str, **options):
    layer, x = made(name)
    return deqlm.diagnose(deqlm.DEQ(layer, **options), x, probes=QUICK)


@pytest.mark.parametrize("name", LAYERS)
def test_residual_layers_run_away(name):
    found = diagnosed(name)
    assert found.cause is found.character is Cause.RUNAWAY
    assert not any(found.passed)
    assert "CONVERGED" not in found.status
    assert found.adjoint is None
    assert found.suggestion.worked
    assert found.suggestion.wrap == ("group_norm" if name == "resnet" else "layer_norm")
    text = " ".join(str(found).split())
    assert Cause.RUNAWAY.text in text
    assert "f hands its argument on" in text
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "solver"),
    [("gpt2", "broyden"), *(("mlp", solver) for solver in ("fixed_point", "broyden", "newton_krylov", "fallback"))],
)
def test_whatever_the_solver_is(name, solver):
    found = diagnosed(name, solver=solver)
    assert found.cause is Cause.RUNAWAY
    assert found.suggestion.worked
    assert found.suggestion.wrap == "layer_norm"


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float64, {}),
        (torch.float32, {"stop": Stop(per="token")}),
        (torch.float32, {"causal": True}),
        (torch.float32, {"batch_dims": 0}),
        (torch.float32, {"solver": "fixed_point", "gradient": "phantom", "stop": Stop(max_iter=8, rtol=0)}),
        (torch.bfloat16, {"stop": Stop(rtol=3e-2)}),
    ],
    ids=["float64", "token", "causal", "one problem", "budget", "bfloat16"],
)
def test_in_every_setting(dtype, options):
    layer, x = made("gpt2")
    found = deqlm.diagnose(deqlm.DEQ(layer.to(dtype), **options), x.to(dtype), probes=QUICK)
    assert found.cause is Cause.RUNAWAY
    assert found.suggestion.worked


@pytest.mark.parametrize("name", ["gpt2", "rows", "resnet"])
def test_the_line_to_paste_works(name):
    layer, x = made(name)
    line = deqlm.diagnose(deqlm.DEQ(layer), x, probes=QUICK).suggestion.text.partition(": ")[2]
    deq = eval(line, {"deqlm": deqlm, "nn": nn, "layer": layer})
    y, sol = deq(x, with_stats=True)
    assert bool(sol.converged.all())
    assert bool((deq.layer(y + x) - y).norm() <= 1e-3 * y.norm())


def test_the_line_for_a_map_works():
    f, x = made("rows")
    text = deqlm.diagnose(lambda z: f(z + x), torch.zeros_like(x), probes=QUICK).suggestion.text
    norm, _, call = text.partition(": ")[2].partition("; ")
    scope = {"deqlm": deqlm, "nn": nn, "f": lambda z: f(z + x), "z0": torch.zeros_like(x)}
    exec(norm, scope)
    assert bool(eval(call, scope).converged.all())


def test_a_layer_with_further_arguments_is_told_where_the_norm_goes():
    torch.manual_seed(0)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    deq = deqlm.DEQ(PreNorm(causal=False))
    found = deqlm.diagnose(deq, torch.randn(3, 8, WIDTH), mask, probes=QUICK)
    assert found.suggestion.worked
    assert f"return self.norm(z)`, where self.norm = nn.LayerNorm({WIDTH})" in found.suggestion.text


def test_what_worked_can_be_applied():
    layer, x = made("gpt2")
    deq = deqlm.DEQ(layer)
    made_deq = deqlm.diagnose(deq, x, probes=QUICK).suggestion.apply(deq)
    y, sol = made_deq(x, with_stats=True)
    assert bool(sol.converged.all())
    assert y.mean(-1).abs().max() < 1e-3
    assert deq.layer is layer


def test_a_warm_start_far_away_is_judged_by_its_own_scale():
    torch.manual_seed(0)
    layer = Residual()
    found = deqlm.diagnose(layer, 30 * torch.randn(3, WIDTH), probes=QUICK)
    assert found.cause is not Cause.HEALTHY


@pytest.mark.parametrize(
    ("f", "cause"),
    [
        (lambda z: z + 1, Cause.SINGULAR),
        (lambda z: 1.5 * z + 1, Cause.HEALTHY),
        (torch.exp, Cause.DIVERGENCE),
        (lambda z: z * z + 2 * z + 3, Cause.DIVERGENCE),
        (lambda z: z - 0.5 * (z - 1e9), Cause.HEALTHY),
        (lambda z: 0.5 * z + 1e9, Cause.HEALTHY),
    ],
    ids=["translation", "expanding", "exp", "quadratic", "far solution of a residual layer", "far solution"],
)
def test_what_is_no_runaway(f, cause):
    found = deqlm.diagnose(f, torch.zeros(2, 3), probes=QUICK)
    assert found.cause is cause


def test_a_post_norm_block_is_healthy():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    found = deqlm.diagnose(deqlm.DEQ(layer), torch.randn(3, 8, WIDTH), probes=QUICK)
    assert found.healthy
    assert found.skip.residual_layer
    assert all(growth < 10 for growth in found.plain.growth)


def test_norms_that_do_not_help_are_no_advice():
    torch.manual_seed(0)
    W = torch.randn(WIDTH, WIDTH)
    layer = deqlm.DEQ(lambda z, u: z + 0.01 * torch.tanh(z @ W + u), inject="argument", solver="fixed_point")
    found = deqlm.diagnose(layer, torch.randn(2, WIDTH), probes=QUICK)
    assert found.cause is Cause.RUNAWAY
    assert found.suggestion.worked is False
    assert "layer_norm, and" in found.suggestion.tried
    assert "norm(z + F(z))" in found.suggestion.text
