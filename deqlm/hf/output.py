"""What a call of an implicit language model returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

from deqlm.hf.cache import DecodeCache
from deqlm_solvers import Solution

__all__ = ["ImplicitCausalLMOutput"]


@dataclass
class ImplicitCausalLMOutput(ModelOutput):
    """Logits, and what the solve came to; an explicit model leaves the parts of the solve at None.

    Attributes:
        loss: () with labels.
        logits: (B, L, V), or of the last tokens alone.
        cache: of the tokens so far, with ``use_cache``; also read as ``past_key_values``.
        last_hidden_state: what the head sees, (B, L, D).
        steps: evaluations of f until the row was done, (B,) int64.
        residual: ||f(z) - z|| at the point that the row returned, (B,).
        status: `deqlm.Status` of each row, (B,) int8.
        solution: all that is known of the solve; ``solution.adjoint`` is filled in by backward.

    Examples:
        >>> import torch
        >>> ImplicitCausalLMOutput(logits=torch.zeros(1, 2, 3)).past_key_values is None
        True
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: DecodeCache | None = None
    last_hidden_state: Tensor | None = None
    steps: Tensor | None = None
    residual: Tensor | None = None
    status: Tensor | None = None
    solution: Solution | None = None

    @property
    def past_key_values(self) -> DecodeCache | None:
        """The cache, by the name of earlier releases of transformers."""
        return self.cache
