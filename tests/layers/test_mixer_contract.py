"""Every mixer, and blocks around them, are held to what `deqlm.layers.Mixer` promises."""

from __future__ import annotations

import pytest
import torch

import deqlm
from deqlm.layers import Block, Context, LlamaMLP, depth_scale_, weight_norm_
from deqlm.testing import mixer_checks
from deqlm.testing.check import Check
from deqlm.testing.mixers.inputs import inputs
from layers.mixers import F64, MIXERS, WIDTH
from models.shift import Shift

LAYERS = {
    **MIXERS,
    "block of mamba2": lambda **more: Block(MIXERS["mamba2"](**more), mlp=LlamaMLP(WIDTH, 20)),
    "block of attention": lambda **more: Block(MIXERS["attention"](**more), mlp=LlamaMLP(WIDTH, 20, bias=True)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]().double()


def cases() -> list:
    return [
        pytest.param(check, id=f"{name}-{label}")
        for name, make in LAYERS.items()
        for label, check in mixer_checks(make)
    ]


@pytest.mark.parametrize("check", cases())
def test_contract(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", ["block of mamba2", "block of attention"])
def test_a_wrapped_block_finds_its_fixed_point_with_noise_held(name):
    torch.manual_seed(1)
    block = weight_norm_(LAYERS[name](dropout=0.2)).double()
    norm = torch.nn.RMSNorm(WIDTH).double()
    inject = torch.nn.Linear(WIDTH, block.d_inject).double()
    x = torch.randn(2, 7, WIDTH, dtype=F64, requires_grad=True)
    context = Context.open(block, x)

    def f(z, x):
        return 0.1 * norm(block(z, inject(x), context))

    stop = deqlm.Stop(rtol=1e-10, max_iter=500)
    sol = deqlm.solve(f, torch.zeros_like(x), args=(x,), stop=stop, solver="broyden")
    assert sol.converged.all()
    torch.testing.assert_close(f(sol.z, x), sol.z, rtol=1e-8, atol=1e-8)
    sol.z.cos().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None for p in block.parameters())


def test_depth_scaling_before_and_after_weight_norm_is_the_same():
    blocks = [[LAYERS[name]() for name in ("block of mamba2", "block of attention")] for _ in range(2)]
    for a, b in zip(*blocks, strict=True):
        b.load_state_dict(a.state_dict())
    plain = blocks[0][0].mixer.out_proj.weight.clone(), blocks[0][1].mlp.fc2.weight.clone()
    depth_scale_(blocks[0])
    for block in blocks[0]:
        weight_norm_(block)
    for block in blocks[1]:
        weight_norm_(block)
    depth_scale_(blocks[1])
    for a, b in zip(*blocks, strict=True):
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, msg=name)
    torch.testing.assert_close(blocks[0][0].mixer.out_proj.weight, plain[0] / 2)
    torch.testing.assert_close(blocks[0][1].mlp.fc2.weight, plain[1] / 2)


def test_bad_input(layer):
    z, u = inputs(layer)
    with pytest.raises(ValueError, match=r"u must be of shape \(3, 21, \d+\), got \(3, 21, 1\)"):
        layer(z, u[..., :1])
    with pytest.raises(ValueError, match="the batch of the cache must be that of z, 3, got 1"):
        layer.forward_chunk(z, u, layer.empty_cache(1))
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(3, 21\), got 'torch.int64 \(3, 21\)'"):
        Context.open(layer, u, mask=torch.ones(3, 21, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"committed must be of shape \(3,\), got \(2,\)"):
        Context.open(layer, u, committed=torch.zeros(2, dtype=torch.int64))


def test_a_block_says_what_a_mixer_lacks():
    with pytest.raises(TypeError, match="mixer must have d_model, d_inject, forward_chunk, empty_cache, got Linear"):
        Block(torch.nn.Linear(3, 3))


def test_a_mixer_whose_forward_takes_no_cache_is_refused_where_a_library_has_replaced_it():
    block = Block(Shift(4))
    z, u, cache = torch.randn(1, 2, 4), torch.randn(1, 2, 8), block.empty_cache(1)
    want = block(z, u)
    assert torch.equal(block.forward_chunk(z, u, cache)[0], want)
    plain = block.mixer.forward
    block.mixer.forward = lambda *args: plain(*args)
    assert torch.equal(block(z, u), want)
    with pytest.raises(TypeError, match="a library has replaced forward of Shift, which then must take cache"):
        block.forward_chunk(z, u, cache)
