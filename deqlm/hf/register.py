"""Both families by name, for transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from deqlm.hf.auto_map import AUTO_MODELS
from deqlm.hf.config import ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.model import ImplicitLlamaForCausalLM, ImplicitMamba2ForCausalLM

__all__ = ["register"]

FAMILIES = (
    (ImplicitMamba2Config, ImplicitMamba2ForCausalLM),
    (ImplicitLlamaConfig, ImplicitLlamaForCausalLM),
)


def register() -> None:
    """Make AutoConfig, AutoModel and AutoModelForCausalLM know both families; again does no harm.

    AutoModel gives the model without its head, ``base_class``, whose answer is states.

    Examples:
        >>> from transformers import AutoConfig
        >>> type(AutoConfig.for_model("implicit_llama", hidden_size=16)).__name__
        'ImplicitLlamaConfig'
    """
    for config, model in FAMILIES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto in AUTO_MODELS:
            auto.register(config, model.base_class if auto is AutoModel else model, exist_ok=True)
