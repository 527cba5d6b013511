"""The loss of a language model: cross-entropy of labels, shifted by one token or aligned with the logits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm.models.inputs import check_count, targets
from deqlm_solvers.core.checks import require

__all__ = ["Labels", "label_loss"]

Labels = Literal["shifted", "aligned"]


def label_loss(
    logits: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    count: int | Tensor | None,
    kind: Labels,
) -> Tensor | None:
    """Return the cross-entropy of labels, or None without labels.

    Args:
        logits: (B, L, V); None of a model without a head.
        labels: (B, L), whole numbers; -100 does not count.
        mask: (B, L) bool, False at padding, or None.
        count: what the sum over labels is divided by; None is their number.
        kind: whether a label is compared with the logits of the token before or with its own.

    Raises:
        TypeError: labels that are no tensor.
        ValueError: labels out of range or of another shape, labels without logits, or a count without labels.
    """
    require(kind in get_args(Labels), "label_kind", kind, f"one of {get_args(Labels)}")
    if labels is None:
        require(count is None, "label_count", count, "None without labels")
        return None
    if logits is None:
        raise ValueError("labels must be None for a model without a head, which makes no logits")
    if count is not None:
        check_count(count)
    wants = targets(labels, logits.shape[:2], logits.shape[-1], shifted=kind == "shifted")
    if mask is not None:
        wants = wants.masked_fill(~mask, -100)
    if kind == "shifted":
        logits, wants = logits[:, :-1], wants[:, 1:]
        # the first real token of a row has nothing before it to be predicted from
        wants = wants if mask is None else wants.masked_fill(~mask[:, :-1], -100)
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    if count is None:
        return F.cross_entropy(logits, wants.flatten())
    return F.cross_entropy(logits, wants.flatten(), reduction="sum") / count
