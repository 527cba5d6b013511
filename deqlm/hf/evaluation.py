"""Scores that depend on nothing behind a token, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from deqlm.hf.config_base import ImplicitConfig
from deqlm_solvers.core.checks import require

__all__ = ["evaluation"]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Solve as `DeqOptions.for_evaluation` says inside of ``with``, and as before behind it.

    Args:
        model: a model of `deqlm.hf`, or what holds one, such as a PEFT model.

    Raises:
        ValueError: there is none.

    Examples:
        >>> import torch
        >>> from deqlm.hf import ImplicitLlamaConfig, ImplicitLlamaForCausalLM
        >>> model = ImplicitLlamaForCausalLM(ImplicitLlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1))
        >>> with evaluation(model), torch.no_grad():
        ...     short, long = (model(torch.tensor([ids])).logits for ids in ([1, 2], [1, 2, 3, 4]))
        >>> bool((short - long[:, :2]).abs().max() < 1e-5)
        True
    """
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    found: list[Any] = [part for part in parts if isinstance(part.config, ImplicitConfig)]
    require(bool(found), "model", type(model).__name__, "one of deqlm.hf, or what holds one")
    before = [(part, part.config.deq, part.solve, part.gradient, part.no_grad) for part in found]
    try:
        for part in found:
            part.set_deq("evaluation")
        yield
    finally:
        for part, section, solve, gradient, no_grad in before:
            part.set_deq(section)
            part.solve, part.gradient, part.no_grad = solve, gradient, no_grad
