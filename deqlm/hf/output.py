"""What a call of an implicit model returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from deqlm.hf.cache import DecodeCache
from deqlm.models import LMOutput
from deqlm_solvers import Solution

__all__ = ["ImplicitCausalLMOutput", "ImplicitModelOutput", "solved"]


class _CacheByTwoNames:
    """The cache is also read by the name of earlier releases of transformers, ``past_key_values``."""

    cache: DecodeCache | None

    @property
    def past_key_values(self) -> DecodeCache | None:
        """The cache."""
        return self.cache

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field by name, or ``default`` where it is None."""
        return super().get("cache" if key == "past_key_values" else key, default)  # type: ignore[misc]


@dataclass
class ImplicitModelOutput(_CacheByTwoNames, ModelOutput):
    """What a model without a head returns; an explicit model leaves the parts of the solve at None.

    Attributes:
        last_hidden_state: what a head would see, (B, L, D).
        cache: of the tokens so far, with ``use_cache``; also read as ``past_key_values``.
        hidden_states: with ``output_hidden_states``, (B, L, D) each: embeddings and ``last_hidden_state``; of an
            explicit model also what each block but the last returns, between them.
        steps: evaluations of f until the row was done, (B,) int64.
        residual: ||f(z) - z|| at the point that the row returned, (B,).
        status: `deqlm.Status` of each row, (B,) int8.
        solution: all that is known of the solve; ``solution.adjoint`` is filled in by backward.

    Examples:
        >>> import torch
        >>> ImplicitModelOutput(last_hidden_state=torch.zeros(1, 2, 3)).past_key_values is None
        True
    """

    last_hidden_state: Tensor | None = None
    cache: DecodeCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    steps: Tensor | None = None
    residual: Tensor | None = None
    status: Tensor | None = None
    solution: Solution | None = None


@dataclass
class ImplicitCausalLMOutput(_CacheByTwoNames, ModelOutput):
    """Logits, and what the solve came to; an explicit model leaves the parts of the solve at None.

    Attributes:
        loss: () with labels.
        logits: (B, L, V), or of the last tokens alone.
        cache: of the tokens so far, with ``use_cache``; also read as ``past_key_values``.
        last_hidden_state: what the head sees, (B, L, D).
        hidden_states: as `ImplicitModelOutput` has them.
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
    hidden_states: tuple[Tensor, ...] | None = None
    steps: Tensor | None = None
    residual: Tensor | None = None
    status: Tensor | None = None
    solution: Solution | None = None


def solved(out: LMOutput) -> dict[str, Any]:
    """Return the fields that both outputs share."""
    sol = out.solution
    return {
        "cache": None if out.cache is None else DecodeCache().after(out),
        "last_hidden_state": out.state,
        "hidden_states": out.states,
        "steps": None if sol is None else sol.steps,
        "residual": None if sol is None else sol.residual,
        "status": None if sol is None else sol.status,
        "solution": sol,
    }
