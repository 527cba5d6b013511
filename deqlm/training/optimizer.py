"""AdamW that decays matrices only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deqlm_solvers.core.checks import number, require

__all__ = ["adamw", "decay_groups"]

FUSED = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups, the second of which does not decay.

    Matrices and convolution kernels decay. Embeddings do not, nor does whatever has one entry per channel: biases,
    scales of norms, the A, D and dt of Mamba2, and the norms of weight normalisation, (D, 1). A parameter that has two
    names, as a head tied to an embedding, counts once, and as an embedding.

    Args:
        model: any module.
        weight_decay: of the first group, >= 0.

    Raises:
        ValueError: a negative weight decay, or a model without trainable parameters.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
        >>> [(group["weight_decay"], len(group["params"])) for group in decay_groups(model, 0.1)]
        [(0.1, 1), (0.0, 4)]
    """
    number("weight_decay", weight_decay, ">= 0 and finite", lambda decay: 0 <= decay < math.inf)
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()}

    def decays(parameter: Tensor) -> bool:
        return id(parameter) not in tables and parameter.numel() > max(parameter.shape, default=1)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    require(bool(trained), "model", type(model).__name__, "a module with trainable parameters")
    groups = [
        {"params": [p for p in trained if decays(p)], "weight_decay": float(weight_decay)},
        {"params": [p for p in trained if not decays(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """Return AdamW on `decay_groups`, as one fused update where parameters lie on CPU or CUDA.

    Args:
        model: whose parameters lie where they will be trained.
        lr: rate, > 0.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: of matrices.

    Raises:
        ValueError: a value out of range.

    Examples:
        >>> adamw(nn.Linear(2, 2), lr=1e-3).defaults["betas"]
        (0.9, 0.95)
    """
    number("lr", lr, "> 0 and finite", lambda rate: 0 < rate < math.inf)
    groups = decay_groups(model, weight_decay)
    fused = all(p.dtype in FUSED and p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
