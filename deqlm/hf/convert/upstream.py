"""Bringing in explicit models of other libraries: Mamba2 of transformers and mamba-ssm, Llama of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from deqlm.hf.checkpoints import Source, common_dtype, fill, read_config, read_tensors
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.convert.upstream_options import Upstream, read_upstream
from deqlm.hf.model import ImplicitForCausalLM, ImplicitLlamaForCausalLM, ImplicitMamba2ForCausalLM
from deqlm_solvers.core.checks import require

__all__ = ["from_upstream"]

LLAMA = {
    "embedding.": "model.embed_tokens.",
    "head.": "lm_head.",
    "backbone.layers.": "model.layers.",
    ".norm.": ".input_layernorm.",
    ".norm2.": ".post_attention_layernorm.",
    ".mixer.wq.": ".self_attn.q_proj.",
    ".mixer.wk.": ".self_attn.k_proj.",
    ".mixer.wv.": ".self_attn.v_proj.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
    ".mlp.w1.": ".mlp.gate_proj.",
    ".mlp.w3.": ".mlp.up_proj.",
    ".mlp.fc2.": ".mlp.down_proj.",
    "backbone.norm_f.": "model.norm.",
}
"""Parts of our names -> parts of theirs."""
HEAD = "lm_head.weight"
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def from_upstream(
    source: Source | PreTrainedConfig | nn.Module, state_dict: Source | None = None
) -> ImplicitForCausalLM:
    """Return our explicit twin of a Mamba2 or Llama model, with the same logits.

    Pass the result to `deqlm.hf.to_implicit` to make it implicit. In half precision logits differ by rounding where the
    other library keeps its residual stream in float32.

    Args:
        source: a ``Mamba2ForCausalLM`` or ``LlamaForCausalLM`` of transformers, a ``MambaLMHeadModel`` of mamba-ssm
            with Mamba2 layers, the configuration of one, its content, a path to ``config.json``, or a folder with it
            and the weights.
        state_dict: tensors by their names, or a file or folder of them. None takes the weights of ``source``, or
            initial ones where it has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another architecture, an option that has no equal here (biases, rope scaling, other activations,
            attention layers within Mamba2, ...), or tensors and files that do not fit.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        >>> theirs = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))
        >>> ours, ids = from_upstream(theirs), torch.tensor([[3, 1, 4]])
        >>> torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-6)
        True
    """
    config, tensors = _config(source), _tensors(source, state_dict)
    read = read_upstream(config)
    mamba = read.family == "mamba2"
    made: dict[str, Any] = {
        **{"vocab_size": read.rows, "implicit": False, "tie_word_embeddings": read.tie},
        **{name: config[name] for name in TOKENS if config.get(name) is not None},
        **read.sizes,
    }
    ours: ImplicitConfig = ImplicitMamba2Config(**made) if mamba else ImplicitLlamaConfig(**made)
    model: Any = ImplicitMamba2ForCausalLM(ours) if mamba else ImplicitLlamaForCausalLM(ours)
    if tensors is not None:
        model.to(common_dtype(tensors.values()))
        _load(model, tensors, read)
    return model


def _config(source: Any) -> dict[str, Any]:
    if isinstance(source, nn.Module):
        require(hasattr(source, "config"), "source", type(source).__name__, "a language model with a configuration")
        source = source.config
    if isinstance(source, PreTrainedConfig):
        return source.to_dict()
    if dataclasses.is_dataclass(source):
        return dataclasses.asdict(source)  # type: ignore[arg-type]
    given = read_config(source)
    if given.get("model_type") not in ("mamba2", "llama"):
        return given
    # files hold what differs from the defaults of transformers
    return AutoConfig.for_model(**given).to_dict()


def _tensors(source: Any, state_dict: Source | None) -> dict[str, Tensor] | None:
    if state_dict is not None:
        tensors = read_tensors(state_dict)
        require(tensors is not None, "state_dict", state_dict, "a folder that holds weights")
        return tensors
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    folder = isinstance(source, str | Path) and not Path(source).is_file()
    return read_tensors(source) if folder else None


def _load(model: ImplicitForCausalLM, tensors: Mapping[str, Tensor], read: Upstream) -> None:
    # transformers once saved this table of rotary positions
    kept = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    theirs = _llama if read.family == "llama" else _mamba2(kept)
    table = theirs("embedding.weight")
    if read.tie and table in kept:
        head = kept.setdefault(HEAD, kept[table])
        same = head is kept[table] or torch.equal(head, kept[table])
        require(same, HEAD, "other numbers", f"equal to {table}, because the embeddings are tied")
    fill(model.lm, kept, theirs, f"a {read.family} of this configuration")


def _llama(name: str) -> str:
    for ours, theirs in LLAMA.items():
        name = name.replace(ours, theirs)
    return name


def _mamba2(tensors: Mapping[str, Tensor]) -> Callable[[str], str]:
    # mamba-ssm says embedding, transformers embeddings
    table = next((n for n in tensors if n.startswith("backbone.embedding")), "backbone.embeddings.weight")
    names = {"embedding.weight": table, "head.weight": HEAD}
    return lambda name: names.get(name, name)
