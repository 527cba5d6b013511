"""Both families, tiny, by the name of the family."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.hf import (
    ImplicitConfig,
    ImplicitForCausalLM,
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitLlamaModel,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
    ImplicitMamba2Model,
)
from models.families import contract

FAMILIES = ("mamba2", "llama")
VOCAB = 23
CONFIGS = {"mamba2": ImplicitMamba2Config, "llama": ImplicitLlamaConfig}
MODELS = {"mamba2": ImplicitMamba2ForCausalLM, "llama": ImplicitLlamaForCausalLM}
BASES = {"mamba2": ImplicitMamba2Model, "llama": ImplicitLlamaModel}
SIZES = {
    "mamba2": {"state_size": 4, "head_dim": 8},
    "llama": {"num_attention_heads": 2, "intermediate_size": 24},
}


def config(family: str, **changes) -> ImplicitConfig:
    common = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2}
    return CONFIGS[family](**{**common, **SIZES[family], **changes})


def model(family: str, dtype: torch.dtype | None = None, **changes) -> ImplicitForCausalLM:
    made = MODELS[family](config(family, **changes)).eval()
    return made if dtype is None else made.to(dtype)


def converging(family: str, **changes) -> ImplicitForCausalLM:
    """Return a model in float64 whose fixed point iteration finds in a few evaluations."""
    made = model(family, torch.float64, **changes)
    contract(made.lm)
    return made


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(VOCAB, (batch, length))
