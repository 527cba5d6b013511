"""Attention, MLPs and blocks: transformers' Llama as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from deqlm.layers import Attention, Block, Context, GatedMLP, KVCache, LlamaMLP, Rope, row_positions
from deqlm.testing.mixers.inputs import inputs
from layers.test_mamba2 import Shifted

RENAMED = {
    "norm.": "input_layernorm.",
    "norm2.": "post_attention_layernorm.",
    "mixer.wq": "self_attn.q_proj",
    "mixer.wk": "self_attn.k_proj",
    "mixer.wv": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w3": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}


class Llama:
    """One decoder layer of transformers with its rotary table and mask."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        self.config = LlamaConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            attn_implementation="eager",
        )
        self.layer = LlamaDecoderLayer(self.config, 0)
        self.rotary = LlamaRotaryEmbedding(self.config)
        for name in ("q_proj", "k_proj", "v_proj"):
            projection = getattr(self.layer.self_attn, name)
            projection.__class__ = Shifted
            projection.u = torch.zeros(())

    def inject(self, u: Tensor) -> None:
        attention = self.layer.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        for part, shift in zip(parts, u.split([p.out_features for p in parts], dim=-1), strict=True):
            part.u = shift

    def __call__(self, z: Tensor, mask: Tensor, positions: Tensor, cache=None) -> Tensor:
        """``mask`` (B, 1, L, T) is True where a query may see a key."""
        table = self.rotary(z, positions)
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return self.layer(z, attention_mask=additive, position_embeddings=table, cache=cache)


def twins(heads: int, kv_heads: int) -> tuple[Llama, Block]:
    theirs = Llama(heads, kv_heads)
    ours = Block(Attention(24, n_head=heads, n_kv_head=kv_heads), mlp=LlamaMLP(24, 40))
    state = theirs.layer.state_dict()
    for name, p in ours.named_parameters():
        head = next(prefix for prefix in RENAMED if name.startswith(prefix))
        p.data.copy_(state[name.replace(head, RENAMED[head], 1)])
    return theirs, ours


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def causal(batch: int, length: int) -> Tensor:
    return torch.ones(batch, 1, length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("injected", [False, True])
def test_equals_transformers(heads, kv_heads, injected):
    theirs, ours = twins(heads, kv_heads)
    z, u = inputs(ours, length=17, dtype=torch.float32)
    z.requires_grad_()
    if injected:
        theirs.inject(u)
    y, want = ours(z, u if injected else None), theirs(z, causal(3, 17), torch.arange(17)[None])
    assert_near(y, want)
    g = torch.randn_like(y)
    mine = torch.autograd.grad(y, [z, *ours.parameters()], g)
    norms = sorted(t.norm().item() for t in torch.autograd.grad(want, [z, *theirs.layer.parameters()], g))
    torch.testing.assert_close(sorted(t.norm().item() for t in mine), norms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_cached_steps_equal_transformers(prompt):
    theirs, ours = twins(6, 2)
    z, u = inputs(ours, length=9, dtype=torch.float32)
    cache, mine = DynamicCache(config=theirs.config), ours.empty_cache(3)
    with torch.no_grad():
        for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, 9))]:
            theirs.inject(u[:, start:stop])
            mask = causal(3, 9)[:, :, start:stop, :stop]
            want = theirs(z[:, start:stop], mask, torch.arange(start, stop)[None], cache)
            got, mine = ours.forward_chunk(z[:, start:stop], u[:, start:stop], mine)
            assert_near(got, want)
    assert_near(mine.k, cache.layers[0].keys)
    assert_near(mine.v, cache.layers[0].values)


def test_left_padding_equals_transformers():
    theirs, ours = twins(4, 4)
    z, u = inputs(ours, batch=2, length=9, dtype=torch.float32)
    mask = torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    theirs.inject(u)
    want = theirs(z, causal(2, 9) & mask[:, None, None, :], row_positions(mask, 9))
    assert_near(ours(z, u, Context.open(ours, z, mask=mask))[mask], want[mask])


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_a_sliding_window_equals_transformers(window):
    theirs, ours = twins(4, 2)
    ours.mixer.sliding_window = window
    z, u = inputs(ours, batch=2, length=9, dtype=torch.float32)
    mask = torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    distances = torch.arange(9)[:, None] - torch.arange(9)
    theirs.inject(u)
    want = theirs(z, causal(2, 9) & (distances < window) & mask[:, None, None, :], row_positions(mask, 9))
    assert_near(ours(z, u, Context.open(ours, z, mask=mask))[mask], want[mask])
    assert_near(ours(z[1:], u[1:])[0], want[1])


@pytest.mark.parametrize("window", [1, 2, 4])
def test_padding_between_tokens_does_not_count_in_a_window(window):
    attention = Attention(24, n_head=4, sliding_window=window)
    z, u = inputs(attention, batch=1, length=9, dtype=torch.float32)
    mask = torch.tensor([[True, True, False, True, False, False, True, True, True]])
    want = attention(z[mask][None], u[mask][None])
    assert_near(attention(z, u, Context.open(attention, z, mask=mask))[mask], want[0])


def test_a_window_forgets_what_no_later_token_sees():
    attention = Attention(24, n_head=4, sliding_window=3)
    z, u = inputs(attention, length=9, dtype=torch.float32)
    want, cache = attention(z, u), attention.empty_cache(3)
    for start, stop in [(0, 4), (4, 5), (5, 9)]:
        got, cache = attention.forward_chunk(z[:, start:stop], u[:, start:stop], cache)
        assert_near(got, want[:, start:stop])
        assert (cache.k.shape[2], cache.length) == (2, stop)
        assert cache.k.untyped_storage().nbytes() == cache.k.numel() * 4
    # with padding nothing is forgotten, but for what was before
    mask = torch.tensor([[True, False, True]] * 3)
    context = Context.open(attention, z[:, :3], mask=mask, offset=9, committed=cache.committed)
    longer, padded = attention.forward_chunk(z[:, :3], u[:, :3], cache, context)
    assert (padded.k.shape[2], padded.length, padded.committed.tolist()) == (5, 12, [11] * 3)
    whole = torch.cat([z, z[:, :1], z[:, 2:3]], 1), torch.cat([u, u[:, :1], u[:, 2:3]], 1)
    assert_near(longer[:, [0, 2]], attention(*whole)[:, -2:])
    assert padded.rows(torch.tensor([1])).length == 12


def test_positions_far_away_equal_transformers():
    config = Llama(4, 4).config
    positions = torch.tensor([[0, 1, 1000, 2047]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    mine = Rope(6, 5e5).table(positions)
    for got, want in zip(mine, (cos, sin), strict=True):
        torch.testing.assert_close(torch.cat([got, got], dim=-1), want, rtol=1e-6, atol=1e-6)


def test_scores_depend_on_distances_only():
    rope = Rope(8, theta=100.0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i, j):
        tables = [rope.table(torch.tensor([[position]]), torch.float64) for position in (i, j)]
        return (rope.rotate(q, tables[0]) * rope.rotate(k, tables[1])).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), rtol=1e-12, atol=1e-12)
    assert not torch.isclose(score(7, 3), score(7, 4))


def test_without_rotary_positions_do_not_matter():
    attention = Attention(24, n_head=4, apply_rotary=False)
    z = torch.randn(1, 1, 24)
    shifted = attention(z, None, Context(positions=torch.tensor([[5]]), offset=0))
    assert torch.equal(shifted, attention(z))


def test_a_context_of_other_tokens_is_refused():
    attention = Attention(24, n_head=4)
    z, u = inputs(attention, dtype=torch.float32)
    context = Context.open(attention, u)
    _, cache = attention.forward_chunk(z[:, :5], u[:, :5], attention.empty_cache(3), context.tokens(0, 5))
    with pytest.raises(ValueError, match=r"offset of the context must be the tokens in the cache, 5: .*, got 0"):
        attention.forward_chunk(z[:, 5:], u[:, 5:], cache, Context.open(attention, u[:, 5:]))


def test_a_cache_counts_real_tokens():
    k = torch.zeros(2, 1, 3, 4)
    cache = KVCache(k, k)
    assert cache.committed is None
    cache = cache.extend(k, k, torch.tensor([[True, True, True], [False, False, True]]))
    assert cache.length == 6
    assert cache.committed.tolist() == [6, 4]
    assert cache.extend(k, k, None).committed.tolist() == [9, 7]
    assert cache.rows(torch.tensor([1])).committed.tolist() == [4]


def test_gated_mlp():
    mlp = GatedMLP(8, 100).double()
    z = torch.randn(2, 5, 8, dtype=torch.float64)
    y, gate = (z @ mlp.fc1.weight.T).chunk(2, dim=-1)
    assert y.shape[-1] == 128
    torch.testing.assert_close(mlp(z), (y * gate * gate.sigmoid()) @ mlp.fc2.weight.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(24, n_head=5), "n_head must be a divisor of d_model 24, got 5"),
        (lambda: Attention(24, n_head=4, n_kv_head=3), "n_kv_head must be a divisor of n_head 4, got 3"),
        (lambda: Attention(24, n_head=8), "the width of a rotated head must be even and >= 2, got 3"),
        (lambda: Attention(24, n_head=4, sliding_window=0), "sliding_window must be a whole number >= 1, got 0"),
        (lambda: LlamaMLP(24, 0), "d_hidden must be a whole number >= 1, got 0"),
        (lambda: GatedMLP(24, 8, multiple_of=0), "multiple_of must be a whole number >= 1, got 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
