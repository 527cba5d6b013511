"""What `deqlm.layers.Mixer` promises, for every mixer: causal, pure, chunks equal the whole, padding is inert."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch

import deqlm
from deqlm.layers import Block, Context, LlamaMLP, depth_scale_, weight_norm_
from layers.mixers import F64, MIXERS, WIDTH, inputs

LAYERS = {
    **MIXERS,
    "block of mamba2": lambda **more: Block(MIXERS["mamba2"](**more), mlp=LlamaMLP(WIDTH, 20)),
    "block of attention": lambda **more: Block(MIXERS["attention"](**more), mlp=LlamaMLP(WIDTH, 20, bias=True)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]().double()


def by_chunks(layer, z, u, cuts, context=None):
    """Return the outputs of all chunks, and the last cache."""
    length = z.shape[1]
    parts, cache = [], layer.empty_cache(len(z))
    for start, stop in pairwise((0, *cuts, length)):
        part = None if context is None else context.tokens(start, stop)
        y, cache = layer.forward_chunk(z[:, start:stop], u[:, start:stop], cache, part)
        parts.append(y)
    return torch.cat(parts, dim=1), cache


def left_padded(z, u, pads, value):
    """Return z and u behind ``pads[b]`` tokens that hold ``value``, cut to one length, and the mask."""
    length = z.shape[1]
    mask = torch.arange(length + max(pads))[None] >= torch.tensor(pads)[:, None]
    mask &= torch.arange(length + max(pads))[None] < torch.tensor(pads)[:, None] + length
    out = []
    for t in (z, u):
        padded = torch.full((len(t), mask.shape[1], t.shape[-1]), value, dtype=t.dtype)
        padded[mask] = t.flatten(0, 1)
        out.append(padded)
    return *out, mask


@pytest.mark.parametrize("cuts", [range(1, 21), range(3, 21, 3), (16,), (), (1, 2, 9)])
def test_chunks_equal_the_whole(layer, cuts):
    z, u = inputs(layer)
    y, _ = by_chunks(layer, z, u, cuts)
    torch.testing.assert_close(y, layer(z, u), rtol=1e-12, atol=1e-12)


def test_caches_do_not_depend_on_the_chunks(layer):
    z, u = inputs(layer)
    for a, b in zip(by_chunks(layer, z, u, (1, 2, 9))[1], by_chunks(layer, z, u, ())[1], strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert a == b


def test_a_cache_is_read_and_never_written(layer):
    z, u = inputs(layer)
    _, cache = by_chunks(layer, z, u, (4,))
    before = [t.clone() if isinstance(t, torch.Tensor) else t for t in cache]
    first = layer.forward_chunk(z[:, :2], u[:, :2], cache)
    second = layer.forward_chunk(z[:, :2], u[:, :2], cache)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(cache, before, strict=True))


def test_rows_of_a_cache_can_be_chosen(layer):
    z, u = inputs(layer)
    _, cache = layer.forward_chunk(z[:, :9], u[:, :9], layer.empty_cache(3))
    rows = torch.tensor([2, 0, 2])
    chosen = layer.forward_chunk(z[rows, 9:], u[rows, 9:], cache.rows(rows))[0]
    torch.testing.assert_close(chosen, layer.forward_chunk(z[:, 9:], u[:, 9:], cache)[0][rows], rtol=1e-12, atol=1e-12)


def test_later_tokens_and_other_rows_change_nothing(layer):
    z, u = inputs(layer)
    y = layer(z, u)
    z[:, 12:], u[:, 12:] = torch.randn_like(z[:, 12:]), torch.randn_like(u[:, 12:])
    z[1], u[1] = torch.nan, torch.nan
    rows = [0, 2]
    torch.testing.assert_close(layer(z, u)[rows, :12], y[rows, :12], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(z, u)[rows, 12:], y[rows, 12:])


@pytest.mark.parametrize("value", [0.0, 1e3, torch.nan])
@pytest.mark.parametrize("pads", [(0, 1, 7), (40, 3, 0)])
@pytest.mark.parametrize("cuts", [(), (5, 6), range(1, 28)])
def test_padding_changes_no_real_token(layer, value, pads, cuts):
    z, u = inputs(layer)
    padded_z, padded_u, mask = left_padded(z, u, pads, value)
    context = Context.open(layer, padded_u, mask=mask)
    y, _ = by_chunks(layer, padded_z, padded_u, cuts, context)
    torch.testing.assert_close(y[mask], layer(z, u).flatten(0, 1), rtol=1e-11, atol=1e-11)
    assert (y[~mask] == 0).all()


def test_generation_goes_on_from_prompts_padded_on_the_left(layer):
    z, u = inputs(layer)
    pads = torch.tensor([0, 2, 9])
    mask = torch.arange(21)[None] >= pads[:, None]
    prompt = [torch.where(mask[..., None], t, torch.nan) for t in (z, u)]
    _, cache = layer.forward_chunk(*prompt, layer.empty_cache(3), Context.open(layer, u, mask=mask))
    new_z, new_u = inputs(layer, length=2)
    later = Context.open(layer, new_u, offset=21, committed=mask.sum(1))
    y, _ = layer.forward_chunk(new_z, new_u, cache, later)
    torch.testing.assert_close(layer.forward_chunk(new_z, new_u, cache)[0], y, rtol=1e-12, atol=1e-12)
    for row, pad in enumerate(pads):
        alone = [torch.cat([t[row : row + 1, pad:], new[row : row + 1]], dim=1) for t, new in ((z, new_z), (u, new_u))]
        torch.testing.assert_close(y[row], layer(*alone)[0, -2:], rtol=1e-11, atol=1e-11)


def test_nan_at_padding_reaches_no_gradient(layer):
    z, u = inputs(layer)
    z, u, mask = left_padded(z, u, (0, 2, 5), torch.nan)
    z.requires_grad_(), u.requires_grad_()
    context = Context.open(layer, u, mask=mask)
    layer(z, u, context)[mask].cos().sum().backward()
    for t in (z.grad, u.grad, *(p.grad for p in layer.parameters())):
        assert t.isfinite().all()
    assert (z.grad[~mask] == 0).all()
    assert (u.grad[~mask] == 0).all()


def test_gradients(layer):
    z, u = inputs(layer, batch=2, length=4)
    z.requires_grad_(), u.requires_grad_()
    _, cache = layer.forward_chunk(*inputs(layer, batch=2, length=3), layer.empty_cache(2))
    held = {name: t.detach().requires_grad_() for name, t in cache._asdict().items() if isinstance(t, torch.Tensor)}

    def run(z, u, *tensors):
        return layer.forward_chunk(z, u, cache._replace(**dict(zip(held, tensors, strict=True))))[0]

    assert torch.autograd.gradcheck(run, (z, u, *held.values()), fast_mode=True)


def test_nothing_injected_is_zero_injected(layer):
    z, u = inputs(layer)
    torch.testing.assert_close(layer(z), layer(z, torch.zeros_like(u)), rtol=0, atol=0)
    assert not torch.allclose(layer(z), layer(z, u))


def test_noise_and_weights_hold_within_a_call():
    for make in LAYERS.values():
        layer = weight_norm_(make(dropout=0.5)).double()
        z, u = inputs(layer)
        context = Context.open(layer, u)
        y = layer(z, u, context)
        assert torch.equal(layer(z, u, context), y)
        assert not torch.equal(layer(z, u, Context.open(layer, u)), y)
        torch.testing.assert_close(by_chunks(layer, z, u, (1, 9), context)[0], y, rtol=1e-12, atol=1e-12)
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(layer(z[rows], u[rows], context.rows(rows)), y[rows], rtol=1e-12, atol=1e-12)
        layer.eval()
        assert torch.equal(layer(z, u, Context.open(layer, u)), layer(z, u))


def test_weight_norm_changes_no_value_and_all_parameters_learn(layer):
    z, u = inputs(layer)
    want = layer(z, u)
    weight_norm_(layer)
    assert torch.equal(layer(z, u), want)
    context = Context.open(layer, u)
    assert torch.equal(layer(z, u, context), want)
    layer(z, u, context).cos().sum().backward()
    held = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer(z, u).cos().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(held[name], p.grad, rtol=1e-12, atol=1e-14, msg=name)
        assert (p.grad != 0).any(), name


def test_copies_and_pickles(layer, tmp_path):
    weight_norm_(layer)
    z, u = inputs(layer)
    y = layer(z, u, Context.open(layer, u))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(z, u, Context.open(twin, u)), y)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(z, u), y)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_precisions(layer, weights):
    z, u = inputs(layer)
    want = layer(z, u)
    layer.to(weights)
    z, u = z.to(weights), u.to(weights)
    y, cache = layer.forward_chunk(z, u, layer.empty_cache(3))
    assert y.dtype == weights
    bound = 0.05 if weights is torch.bfloat16 else 1e-5
    assert (y - want).norm() <= bound * want.norm()
    state = getattr(cache, "state", None)
    assert state is None or state.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (layer(z, u) - want).norm() <= 0.05 * want.norm()


def test_on_the_meta_device():
    for make in LAYERS.values():
        with torch.device("meta"):
            layer = weight_norm_(make())
        assert all(p.is_meta for p in layer.parameters())
        u = torch.zeros(2, 5, layer.d_inject, device="meta")
        assert layer(torch.zeros(2, 5, WIDTH, device="meta"), u).is_meta


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
