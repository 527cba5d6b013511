"""Options of ``generate`` that cannot work with an implicit model, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from deqlm_solvers.core.checks import require

__all__ = ["option", "refuse_options"]

ASSISTED = "assisted decoding takes tokens back, which a state-space model's cache cannot"
CONTRASTIVE = "contrastive search is not supported"
ELSEWHERE = "this loop is none of transformers' own any more, and knows no cache of solved tokens"
ONE_CACHE = "an implicit model has one kind of cache, deqlm.hf.DecodeCache, without a limit"

REFUSED = {
    "assistant_model": ASSISTED,
    "assistant_tokenizer": ASSISTED,
    "assistant_confidence_threshold": ASSISTED,
    "assistant_early_exit": ASSISTED,
    "assistant_ensemble_weight": ASSISTED,
    "assistant_lookbehind": ASSISTED,
    "is_assistant": ASSISTED,
    "max_matching_ngram_size": ASSISTED,
    "num_assistant_tokens": ASSISTED,
    "num_assistant_tokens_schedule": ASSISTED,
    "prompt_lookup_num_tokens": ASSISTED,
    "speculation_type": ASSISTED,
    "target_lookbehind": ASSISTED,
    "use_mtp": ASSISTED,
    "low_memory": CONTRASTIVE,
    "penalty_alpha": CONTRASTIVE,
    "constraints": ELSEWHERE,
    "diversity_penalty": ELSEWHERE,
    "force_words_ids": ELSEWHERE,
    "num_beam_groups": ELSEWHERE,
    "cache_config": ONE_CACHE,
    "cache_implementation": ONE_CACHE,
    "max_cache_len": ONE_CACHE,
    "compile_config": "the cache grows with the tokens, so that a forward is not compiled",
    "continuous_batching_config": "rows of a solve stop at their own time, and paged attention knows no such cache",
    "decoder_start_token_id": "there is no encoder, and a text starts with bos_token_id",
    "dola_layers": "DoLa compares the layers of a deep model; an implicit model has one map",
    "output_attentions": "no weights of attention are kept, and a solve would have some in each evaluation",
    "token_healing": "it generates by calls that know nothing of this one's options; call model.heal_tokens before",
}
"""Options of `generate`, by name."""

FILLED_IN: dict[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
"""What pipelines write where nobody has said anything."""


def option(name: str, *given: GenerationConfig | Mapping[str, Any] | None) -> Any:
    """Return an option of ``generate`` by the last of ``given`` that has it, or None.

    Examples:
        >>> option("num_beams", {"num_beams": 3}, None, {"num_beams": None})
        3
    """
    found = (each.get(name) if isinstance(each, Mapping) else getattr(each, name, None) for each in reversed(given))
    return next((value for value in found if value is not None), None)


def refuse_options(*given: GenerationConfig | Mapping[str, Any] | None) -> None:
    """Raise if an option is set that would have no effect, or would be another one's.

    Args:
        *given: configurations and arguments, the last one first to be asked.

    Raises:
        ValueError: it is; the message says why it cannot work.
    """
    for name, reason in REFUSED.items():
        value = option(name, *given)
        ok = value is None or value is False or value == FILLED_IN.get(name)
        require(ok, name, value, f"None: {reason}")
