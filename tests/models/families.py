"""The two families of the paper, tiny, and weights with which iteration converges."""

from __future__ import annotations

import torch
from torch import nn

from deqlm.layers import Attention, Block, LlamaMLP, Mamba2
from deqlm.models import Backbone, ImplicitLM

VOCAB, WIDTH = 13, 16

BLOCKS = {
    "mamba2": lambda: Block(Mamba2(WIDTH, d_state=4, headdim=8)),
    "llama": lambda: Block(Attention(WIDTH, n_head=2), mlp=LlamaMLP(WIDTH, 24)),
    "llama in a window": lambda: Block(Attention(WIDTH, n_head=2, sliding_window=3), mlp=LlamaMLP(WIDTH, 24)),
}


def make(family: str, dtype: torch.dtype = torch.float64, depth: int = 2, **options) -> ImplicitLM:
    """Return a model of ``family``, quiet unless told otherwise; ``implicit=False`` makes the explicit twin."""
    implicit = options.pop("implicit", True)
    options.setdefault("on_failure", "ignore")
    backbone = Backbone([BLOCKS[family]() for _ in range(depth)], implicit=implicit)
    return ImplicitLM(backbone, vocab_size=VOCAB, **options).to(dtype)


@torch.no_grad()
def contract(model: ImplicitLM, reach: float = 0.1) -> ImplicitLM:
    """Rescale a model so that the state matters little beside the injected input, and return it.

    Layers see ``reach`` times as much of the normalised state, and the residual stream less of the state itself.
    """
    model.embedding.weight.mul_(50)
    for block in model.backbone.layers:
        for layer in block.mixer.children():
            if isinstance(layer, nn.Module) and hasattr(layer, "scale_"):
                layer.scale_(4.0 if layer is block.mixer.out_proj else reach)
        for norm in (block.norm, block.norm2):
            if norm is not None:
                norm.weight.mul_(0.5)
    model.backbone.norm_f.weight.mul_(0.3)
    return model
