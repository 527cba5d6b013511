"""Mamba2: transformers' own as the oracle, and the token-by-token definition for what transformers lacks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from deqlm.layers import Context, GatedRMSNorm, Mamba2
from deqlm.ops.native.library import SOURCE
from deqlm.testing.mixers.inputs import inputs
from deqlm_solvers.native.build import build
from layers.mixers import F64, MIXERS


class Shifted(nn.Linear):
    """A projection whose output is shifted by ``u``: injection, written into transformers' mixer."""

    u: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.u


def twins(**more) -> tuple[Mamba2Mixer, Mamba2, Mamba2Config]:
    sizes = {"hidden_size": 32, "expand": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 16}
    config = Mamba2Config(num_hidden_layers=1, chunk_size=16, **(sizes | more))
    theirs = Mamba2Mixer(config, 0)
    ours = Mamba2(32, d_state=16, headdim=8, ngroups=config.n_groups, dt_limit=config.time_step_limit)
    with torch.no_grad():  # steps over the whole range, so that memory and limits matter
        theirs.dt_bias.uniform_(-4, 4)
    ours.load_state_dict(theirs.state_dict())
    theirs.in_proj.__class__ = Shifted
    theirs.in_proj.u = torch.zeros(())
    return theirs, ours, config


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)  # transformers computes in float32


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.01, 0.1)])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_equals_transformers(injected, limit, n_groups):
    theirs, ours, _ = twins(time_step_limit=limit, n_groups=n_groups)
    z, u = inputs(ours, length=37, dtype=torch.float32)
    z.requires_grad_()
    if injected:
        theirs.in_proj.u = u
    y, want = ours(z, u if injected else None), theirs(z)
    assert_near(y, want)
    g = torch.randn_like(y)
    pairs = [(z, z), *((dict(theirs.named_parameters())[name], p) for name, p in ours.named_parameters())]
    mine = torch.autograd.grad(y, [p for _, p in pairs], g)
    for got, wanted in zip(mine, torch.autograd.grad(want, [p for p, _ in pairs], g), strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_cached_steps_equal_transformers(prompt):
    theirs, ours, config = twins()
    z, u = inputs(ours, length=12, dtype=torch.float32)
    cache, mine = DynamicCache(config=config), ours.empty_cache(3)
    with torch.no_grad():
        for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, 12))]:
            theirs.in_proj.u = u[:, start:stop]
            want = theirs(z[:, start:stop], cache=cache)
            got, mine = ours.forward_chunk(z[:, start:stop], u[:, start:stop], mine)
            assert_near(got, want)
    assert_near(mine.state, cache.layers[0].recurrent_states[0])
    assert_near(mine.window, cache.layers[0].conv_states[0][..., -3:].transpose(1, 2))


def test_left_padding_equals_transformers():
    from deqlm.layers import Context

    theirs, ours, _ = twins()
    z = torch.randn(2, 9, 32)
    mask = torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    want = theirs(z, attention_mask=mask)
    assert_near(ours(z, None, Context.open(ours, z, mask=mask))[mask], want[mask])


def by_token(mixer: Mamba2, z: Tensor, u: Tensor) -> Tensor:
    """Return the output of the equations, one token of one row after the other, from the mixer's parameters."""
    heads, width, groups = mixer.nheads, mixer.headdim, mixer.ngroups
    rows = []
    for row in range(len(z)):
        q = z[row] @ mixer.in_proj.weight.T + u[row]
        if mixer.in_proj.bias is not None:
            q = q + mixer.in_proj.bias
        rest = mixer.d_mlp
        mlp_gate, mlp, gate, xBC, dt = q.split([rest, rest, mixer.d_ssm, mixer.conv_dim, heads], dim=-1)
        xBC = F.silu(mixer.conv1d(xBC.T[None])[0, :, : len(xBC)].T)
        x, B, C = xBC.split([mixer.d_ssm, groups * mixer.d_state, groups * mixer.d_state], dim=-1)
        dt = F.softplus(dt + mixer.dt_bias).clamp(*mixer.dt_limit)
        D = mixer.D.expand(width, heads).T if mixer.D.numel() == heads else mixer.D.view(heads, width)
        outs = []
        state = torch.zeros(heads, width, mixer.d_state, dtype=z.dtype)
        for t in range(len(q)):
            b, c = (s[t].view(groups, -1).repeat_interleave(heads // groups, dim=0) for s in (B, C))
            decay = torch.exp(-dt[t] * mixer.A_log.exp())
            X = x[t].view(heads, width)
            state = decay[:, None, None] * state + dt[t][:, None, None] * X[:, :, None] * b[:, None, :]
            y = ((state * c[:, None, :]).sum(-1) + D * X).flatten()
            if mixer.norm is None:
                y = y * F.silu(gate[t])
            else:
                before = mixer.norm.norm_before_gate
                y = y if before else y * F.silu(gate[t])
                parts = y.view(groups, -1)
                y = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten() * mixer.norm.weight
                y = y * F.silu(gate[t]) if before else y
            y = torch.cat([F.silu(mlp_gate[t]) * mlp[t], y])
            out = mixer.out_proj.weight @ y
            outs.append(out if mixer.out_proj.bias is None else out + mixer.out_proj.bias)
        rows.append(torch.stack(outs))
    return torch.stack(rows)


@pytest.mark.parametrize("name", [name for name in MIXERS if name.startswith("mamba2")])
@pytest.mark.parametrize("options", [{}, {"conv_bias": False, "dt_limit": (0.05, 0.5)}, {"chunk_size": 2}])
def test_equals_the_equations_token_by_token(name, options):
    mixer = MIXERS[name](**options).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        mixer.dt_bias.uniform_(-3, 3)
    z, u = inputs(mixer, batch=2, length=9)
    torch.testing.assert_close(mixer(z, u), by_token(mixer, z, u), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("length", [1, 70])
def test_no_row(compiled, length):
    functions = build(SOURCE).library if compiled else None
    if compiled and functions is None:
        pytest.skip("no C++ compiler")
    mixer = MIXERS["mamba2"]().to(F64)
    z, u = inputs(mixer, batch=0, length=length)
    mask, cache = torch.ones(0, length, dtype=torch.bool), mixer.empty_cache(0)

    def run() -> tuple[Tensor, ...]:
        context = Context.open(mixer, z, mask=mask, build=functions and (lambda _: functions.functions))
        assert (mixer in context.twins) is compiled
        y, after = mixer.forward_chunk(z, u, cache, context)
        assert [t.shape for t in (y, *after)] == [z.shape, *(t.shape for t in cache)]
        return y, *after

    with torch.no_grad():  # where the twin stands for torch operations
        run()
    sum(t.sum() for t in run()).backward()
    for p in mixer.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))


def test_decay_rates_stay_finite_in_half_precision():
    mixer = Mamba2(16, d_state=4, headdim=8)
    with torch.no_grad():
        mixer.A_log.fill_(12.0)  # exp(12) is beyond float16
    mixer.half()
    assert mixer(torch.randn(1, 5, 16).half()).isfinite().all()


def test_initial_values_have_their_laws():
    mixer = Mamba2(64, expand=16, headdim=1, d_state=2, dt_min=0.01, dt_max=0.2, A_init_range=(2, 5), conv_init=0.125)
    dt = F.softplus(mixer.dt_bias)
    assert 0.01 <= dt.min() < 0.011
    assert 0.19 < dt.max() <= 0.2001
    assert abs(dt.log().mean() - math.log(math.sqrt(0.01 * 0.2))) < 0.1  # uniform in the logarithm
    A = mixer.A_log.exp()
    assert 2 <= A.min() < 2.05
    assert 4.95 < A.max() <= 5.0001
    assert (mixer.D == 1).all()
    assert 0.12 < mixer.conv1d.weight.abs().max() <= 0.125
    assert 0.95 / 8 < mixer.in_proj.weight.abs().max() <= 1 / 8


def test_sizes_of_the_paper():
    with torch.device("meta"):
        mixer = Mamba2(768)
    assert (mixer.nheads, mixer.d_ssm, mixer.conv_dim, mixer.d_inject) == (24, 1536, 1792, 3352)
    assert Mamba2.no_weight_decay <= dict(mixer.named_parameters()).keys()


def test_the_last_taps_are_remembered_after_injection():
    mixer = Mamba2(8, d_state=2, headdim=4).double()
    z, u = inputs(mixer, length=2)
    _, cache = mixer.forward_chunk(z, u, mixer.empty_cache(3))
    xBC = (mixer.in_proj(z) + u)[..., mixer.d_ssm : mixer.d_ssm + mixer.conv_dim]
    torch.testing.assert_close(cache.window, F.pad(xBC, (0, 0, 1, 0)), rtol=0, atol=1e-14)
    assert cache.state.dtype == F64


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_gated_norm(before, groups):
    norm = GatedRMSNorm(12, groups=groups, norm_before_gate=before).double()
    nn.init.normal_(norm.weight)
    y, gate = torch.randn(2, 2, 5, 12, dtype=F64)
    inner = y if before else y * F.silu(gate)
    parts = inner.view(2, 5, groups, -1)
    want = (parts / (parts.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).view(2, 5, 12) * norm.weight
    torch.testing.assert_close(norm(y, gate), want * F.silu(gate) if before else want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headdim": 5}, "headdim must be a divisor of d_ssm 32, got 5"),
        ({"headdim": 8, "ngroups": 3}, "ngroups must be a divisor of the 4 heads, got 3"),
        ({"d_ssm": 64}, r"d_ssm must be at most expand \* d_model, 32, got 64"),
        ({"d_state": 0}, "d_state must be a whole number >= 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"dt_min": 1.0}, "dt_min must be > 0 and at most dt_max 0.1, got 1.0"),
        ({"dt_limit": (1.0, 0.0)}, r"dt_limit must be an interval of numbers >= 0, got \(1.0, 0.0\)"),
        ({"A_init_range": (0, 1)}, r"A_init_range must be an interval of numbers > 0, got \(0, 1\)"),
        ({"impl": "triton"}, "impl must be one of auto, torch, mamba_ssm, naive, got 'triton'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"rmsnorm": False, "norm_before_gate": True}, "norm_before_gate must be False without rmsnorm, got True"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(16, **({"headdim": 8} | options))
