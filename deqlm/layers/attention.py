"""Causal softmax attention with rotary positions and an injected input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.layers.cache import KVCache
from deqlm.layers.context import NOTHING, Context
from deqlm.layers.noise import VariationalDropout
from deqlm.layers.rope import Rope, row_positions
from deqlm.ops.checks import require, whole

__all__ = ["Attention"]


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values are shifted by the injected input, before RoPE.

    The attention probabilities are never dropped out: such noise would differ from evaluation to evaluation.

    Args:
        d_model: width D of the state.
        n_head: query heads H of width P = D / H.
        n_kv_head: heads of keys and values, a divisor of H; None is H.
        bias: give the four projections biases.
        apply_rotary: rotate queries and keys by their positions.
        rope_theta: base of the wavelengths.
        sliding_window: W; a token sees itself and the W - 1 tokens before it, padding not counted. None sees them all.
        dropout: probability of `deqlm.layers.VariationalDropout` on the output.

    Raises:
        ValueError: widths and heads that do not fit.

    Reference:
        Schoene et al. (2025), Implicit language models are RNNs, section on the implicit transformer.

    Examples:
        >>> attention = Attention(16, n_head=4, n_kv_head=2)
        >>> attention.d_inject  # (4 + 2 + 2) heads of width 4
        32
        >>> attention(torch.randn(2, 5, 16), torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_head: int,
        n_kv_head: int | None = None,
        bias: bool = False,
        apply_rotary: bool = True,
        rope_theta: float = 5e5,
        sliding_window: int | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        for name, value in (("d_model", d_model), ("n_head", n_head), ("n_kv_head", n_kv_head)):
            whole(name, value, 1)
        if sliding_window is not None:
            whole("sliding_window", sliding_window, 1)
        require(d_model % n_head == 0, "n_head", n_head, f"a divisor of d_model {d_model}")
        require(n_head % n_kv_head == 0, "n_kv_head", n_kv_head, f"a divisor of n_head {n_head}")
        self.d_model, self.n_head, self.n_kv_head = d_model, n_head, n_kv_head
        self.head_dim = d_model // n_head
        self.sizes = [n_head * self.head_dim, n_kv_head * self.head_dim, n_kv_head * self.head_dim]
        self.d_inject = sum(self.sizes)
        self.rope = Rope(self.head_dim, float(rope_theta)) if apply_rotary else None
        self.sliding_window = sliding_window
        self.wq, self.wk, self.wv = (nn.Linear(d_model, n, bias=bias, device=device, dtype=dtype) for n in self.sizes)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, device=device, dtype=dtype)
        self.dropout = VariationalDropout(dropout, d_model)

    def forward(
        self, z: Tensor, u: Tensor | None = None, context: Context | None = None, cache: KVCache | None = None
    ) -> Any:
        """Return the output, (B, L, D), zero at padding; behind a cache, also the cache with these tokens.

        Args:
            z: normalised state, (B, L, D).
            u: injected input [u_q | u_k | u_v], (B, L, U); None injects nothing.
            context: what is fixed within the call.
            cache: of the tokens before these.

        Raises:
            ValueError: ``u``, or a cache of another batch size, or a context whose tokens begin elsewhere.
        """
        y, after = self._run(z, u, cache, context)
        return y if cache is None else (y, after)

    def forward_chunk(
        self, z: Tensor, u: Tensor | None, cache: KVCache | None, context: Context | None = None
    ) -> tuple[Tensor, KVCache]:
        """Return the output of the L tokens after those in ``cache``, (B, L, D), and the cache with them.

        None is an empty cache. With a sliding window it forgets what no later token sees, unless there is padding in
        it.

        Raises:
            ValueError: ``u``, or a cache of another batch size, or a context whose tokens begin elsewhere.
        """
        return self(z, u, context, self.empty_cache(len(z), z.device) if cache is None else cache)

    def empty_cache(self, batch: int, device: torch.device | None = None) -> KVCache:
        """Return a cache of ``batch`` rows without any token.

        Args:
            batch: rows B.
            device: None is that of the parameters; of a quantised layer that has none, the CPU.
        """
        like = next(self.parameters(), torch.empty(0, device="cpu", dtype=torch.float32))
        device = like.device if device is None else device
        none = torch.zeros(batch, self.n_kv_head, 0, self.head_dim, dtype=like.dtype, device=device)
        return KVCache(none, none)

    def flops(self, context: int) -> int:
        """Return what a token computes beside the linear layers, on top of a cache of ``context`` tokens: 4 T D.

        Scores and their sum, over itself and all that it sees before it, T tokens.
        """
        seen = context + 1 if self.sliding_window is None else min(context + 1, self.sliding_window)
        return 4 * seen * self.n_head * self.head_dim

    def input_weight(self) -> Tensor:
        """Return the map from a state to what an injected input is added to, queries, keys and values: (U, D)."""
        return torch.cat([layer.weight for layer in (self.wq, self.wk, self.wv)])

    def _run(
        self, z: Tensor, u: Tensor | None, cache: KVCache | None, context: Context | None
    ) -> tuple[Tensor, KVCache]:
        context = NOTHING if context is None else context
        self._check(z, u, cache, context)
        z = context.keep(z)
        parts = [context.apply(w, z) for w in (self.wq, self.wk, self.wv)]
        if u is not None:
            shifts = u.to(parts[0].dtype).split(self.sizes, dim=-1)
            parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
        q, k, v = (context.keep(part).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if self.rope is not None:
            table = self._table(self.rope, q, cache, context)
            q, k = self.rope.rotate(q, table), self.rope.rotate(k, table)
        new = KVCache(k, v, context.mask) if cache is None else cache.extend(k, v, context.mask)
        mask = _mask(z.shape[1], new, self.sliding_window)
        causal = mask is None and bool(z.shape[1] > 1)  # torch.jit.trace makes a tensor of it
        grouped = self.n_kv_head != self.n_head
        y = F.scaled_dot_product_attention(q, new.k, new.v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        out = context.apply(self.out_proj, y.transpose(1, 2).flatten(-2))
        kept = new if self.sliding_window is None else new.last(self.sliding_window - 1)
        return context.keep(context.apply(self.dropout, out)), kept

    def _check(self, z: Tensor, u: Tensor | None, cache: KVCache | None, context: Context) -> None:
        batch, length = z.shape[:2]
        if u is not None:
            want = (batch, length, self.d_inject)
            require(u.shape == want, "u", tuple(u.shape), f"of shape {want}")
        if cache is not None:
            require(cache.k.shape[0] == batch, "the batch of the cache", cache.k.shape[0], f"that of z, {batch}")
            heads = (cache.k.shape[1], cache.k.shape[3])
            want = (self.n_kv_head, self.head_dim)
            require(heads == want, "heads and their width in the cache", heads, f"those of the layer, {want}")
        if context.positions is not None:
            held = 0 if cache is None else cache.length
            rule = f"the tokens in the cache, {held}: Context.open(offset=...), Context.tokens(start, stop)"
            require(context.offset == held, "the offset of the context", context.offset, rule)

    def _table(self, rope: Rope, q: Tensor, cache: KVCache | None, context: Context) -> tuple[Tensor, Tensor]:
        if rope in context.tables:
            return context.tables[rope]
        positions = context.positions
        if positions is None:
            past = 0 if cache is None else cache.length if cache.committed is None else cache.committed
            positions = row_positions(context.mask, q.shape[2], past=past, device=q.device)
        return rope.table(positions, q.dtype)


def _mask(length: int, cache: KVCache, window: int | None) -> Tensor | None:
    """Return which keys the last ``length`` tokens of the cache may see, or None where plain causality says it all.

    Each token may see itself, padding too: a row of the softmax without any key would be NaN.
    """
    held = cache.k.shape[2]
    past = held - length
    if cache.mask is None and (past == 0 or length == 1) and (window is None or held <= window):
        return None
    seen = torch.ones(length, held, dtype=torch.bool, device=cache.k.device).tril(past)
    if cache.mask is None:
        return seen if window is None else seen.triu(past - window + 1)
    seen = seen & cache.mask[:, None, None, :]
    if window is not None:
        count = cache.mask.cumsum(1)
        seen = seen & (count[:, None, past:, None] - count[:, None, None, :] < window)
    itself = torch.eye(length, dtype=torch.bool, device=seen.device)
    return seen | F.pad(itself, (past, 0))
