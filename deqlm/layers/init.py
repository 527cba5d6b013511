"""Initial values that depend on the depth of the stack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deqlm.layers.block import Block
from deqlm.layers.weight_norm import Normed

__all__ = ["depth_scale_"]


@torch.no_grad()
def depth_scale_(blocks: Sequence[Block]) -> None:
    """Divide the output projections by sqrt(residual branches), so that the residual stream does not grow with depth.

    These are ``out_proj`` of the mixers and ``fc2`` of the MLPs; parts without such a layer are left alone. It makes no
    difference whether weight normalisation comes before or after.

    Args:
        blocks: the whole stack.

    Reference:
        Radford et al. (2019), Language models are unsupervised multitask learners, section 2.3.

    Examples:
        >>> from deqlm.layers import LlamaMLP, Attention
        >>> blocks = [Block(Attention(8, n_head=2), mlp=LlamaMLP(8, 16)) for _ in range(2)]
        >>> before = blocks[0].mlp.fc2.weight.clone()
        >>> depth_scale_(blocks)
        >>> torch.allclose(blocks[0].mlp.fc2.weight, before / 2)  # four residual branches
        True
    """
    branches = sum(1 if block.mlp is None else 2 for block in blocks)
    for block in blocks:
        for layer in (getattr(block.mixer, "out_proj", None), getattr(block.mlp, "fc2", None)):
            if isinstance(layer, Normed):
                layer.scale_(1 / math.sqrt(branches))
            elif layer is not None:
                layer.weight.mul_(1 / math.sqrt(branches))
