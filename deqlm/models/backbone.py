"""The map of a language model: blocks and a final norm, with the input injected into every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import CDLL
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.layers import Block, Context, depth_scale_, weight_norm_
from deqlm.layers.context import NOTHING
from deqlm.layers.kept_weights import KeptWeights
from deqlm_solvers.core.checks import require
from deqlm_solvers.native.build import build

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """z -> norm_f(blocks(z, u)); u is made of the embeddings once per call, the same for every block.

    It is itself a `deqlm.layers.Mixer`: causal, pure, with caches as values. The explicit twin, ``implicit=False``, is
    the same blocks without injection, applied to the embeddings once.

    Args:
        blocks: `deqlm.layers.Block` of one width each, around any mixer.
        implicit: give it an injection; False makes the explicit twin.
        weight_norm: normalise every linear and convolution weight; None is ``implicit``, as the paper has it.
        depth_scale: divide the output projections by the root of the number of residual branches, under weight
            normalisation too.
        norm: makes a normalisation of a width; None is ``nn.RMSNorm`` with eps 1e-5.
        device: of the parameters made here.
        dtype: likewise.

    Attributes:
        checkpoint: evaluates a block, ``checkpoint(block, *args)``, in place of ``block(*args)`` where grad mode is on,
            such as ``functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)``; None does not.
        checkpoint_every: only each block of this number, from the first.

    Raises:
        ValueError: no block, or blocks of several widths.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML, equations 6 to 9.

    Examples:
        >>> from deqlm.layers import Attention, LlamaMLP
        >>> backbone = Backbone([Block(Attention(16, n_head=2), mlp=LlamaMLP(16, 32)) for _ in range(2)])
        >>> e = torch.randn(3, 5, 16)
        >>> context = backbone.open(e)
        >>> u = backbone.project(e, context)
        >>> backbone(torch.zeros_like(e), u, context).shape
        torch.Size([3, 5, 16])
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        implicit: bool = True,
        weight_norm: bool | None = None,
        depth_scale: bool = True,
        norm: Callable[[int], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require(len(blocks) > 0, "blocks", list(blocks), "at least one Block")
        for name in ("d_model", "d_inject"):
            widths = sorted({getattr(block, name) for block in blocks})
            require(len(widths) == 1, f"{name} of the blocks", widths, "one width, because all get the same u")
        norm = partial(nn.RMSNorm, eps=1e-5, device=device, dtype=dtype) if norm is None else norm
        self.d_model, self.d_inject = blocks[0].d_model, blocks[0].d_inject
        self.layers = nn.ModuleList(blocks)
        self.norm_f = norm(self.d_model)
        self.checkpoint: Callable[..., Any] | None = None
        self.checkpoint_every = 1
        self.injection = self.injection_norm = None
        if implicit:
            self.injection = nn.Linear(self.d_model, self.d_inject, device=device, dtype=dtype)
            nn.init.zeros_(self.injection.bias)
            self.injection_norm = norm(self.d_model)
        if depth_scale:
            depth_scale_(blocks)
        if implicit if weight_norm is None else weight_norm:
            weight_norm_(self)

    @property
    def implicit(self) -> bool:
        """Whether an input is injected; False for the explicit twin."""
        return self.injection is not None

    def open(
        self,
        e: Tensor,
        mask: Tensor | None = None,
        *,
        offset: int = 0,
        committed: Tensor | None = None,
        kept: KeptWeights | None = None,
    ) -> Context:
        """Return what stays fixed within one call, see `deqlm.layers.Context.open`.

        Args:
            e: embeddings, (B, L, D).
            mask: (B, L) bool, False at padding, or None.
            offset: token slots that caches hold already.
            committed: real tokens among them per row, (B,) int64; None when all are real.
            kept: what the call that this one goes on from made of the weights.
        """
        return Context.open(self, e, mask=mask, offset=offset, committed=committed, build=_build, kept=kept)

    def project(self, e: Tensor, context: Context | None = None) -> Tensor:
        """Return the injected input u (B, L, U) of embeddings ``e`` (B, L, D), which are not read at padding.

        Raises:
            TypeError: the explicit twin, which injects nothing.
            RuntimeError: this backbone is sharded by itself, so that nobody has gathered the injection.
        """
        if self.injection is None or self.injection_norm is None:
            raise TypeError("an explicit backbone (implicit=False) has no injection")
        context = NOTHING if context is None else context
        try:
            normed = context.normalise(self.injection_norm, context.keep(e))
            return context.apply(self.injection, normed)
        except RuntimeError as error:
            if not any(hasattr(p, "full_tensor") for p in self.parameters()):
                raise
            raise RuntimeError(
                "the injection is sharded, and its parameters are gathered in a call of the backbone only: shard the "
                "model as a whole, fully_shard(model), with or without its blocks by themselves, and not the backbone"
            ) from error

    def forward(
        self,
        z: Tensor,
        u: Tensor | None = None,
        context: Context | None = None,
        cache: Sequence[Any] | None = None,
        seen: list[Tensor] | None = None,
    ) -> Any:
        """Return f(z), (B, L, D) in the dtype of ``z``, zero at padding; behind a cache, also the next one.

        Args:
            z: state, (B, L, D); of the explicit twin, the embeddings.
            u: injected input, (B, L, U), from `project`.
            context: what is fixed within the call.
            cache: of all blocks, of the tokens before these.
            seen: behind a cache, where what each block returns is appended.
        """
        context = NOTHING if context is None else context
        if cache is None:
            x = z
            for i, block in enumerate(self.layers):
                x = self._run(i, block, x, u, context)
            return self._normed(x, z, context)
        x, caches = z, []
        for i, (block, held) in enumerate(zip(self.layers, cache, strict=True)):
            x, made = self._run(i, block, x, u, context, held)
            caches.append(made)
            if seen is not None:
                seen.append(x)
        return self._normed(x, z, context), tuple(caches)

    def forward_chunk(
        self, z: Tensor, u: Tensor | None, cache: Sequence[Any], context: Context | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Return f(z) of the L tokens after those in ``cache``, and the caches of all blocks with them."""
        return self(z, u, context, cache)

    def empty_cache(self, batch: int, device: torch.device | None = None) -> tuple[Any, ...]:
        """Return the caches of all blocks for ``batch`` rows without any token.

        Args:
            batch: rows B.
            device: None is that of the parameters.
        """
        return tuple(block.empty_cache(batch, device) for block in self.layers)  # type: ignore[operator]

    def _run(self, index: int, block: Any, *args: Any) -> Any:
        if self.checkpoint is None or index % self.checkpoint_every or not torch.is_grad_enabled():
            return block(*args)
        return self.checkpoint(block, *args)

    def _normed(self, x: Tensor, z: Tensor, context: Context) -> Tensor:
        return context.keep(context.normalise(self.norm_f, x)).to(z.dtype)


def _build(source: Path) -> CDLL | None:
    library = build(source).library
    return None if library is None else library.functions
