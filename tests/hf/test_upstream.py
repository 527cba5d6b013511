"""Mamba2 and Llama of transformers and mamba-ssm become our explicit twin: the same logits on the same weights."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, MistralConfig
from transformers.models.llama import modeling_llama
from transformers.models.mamba2 import modeling_mamba2

from deqlm.hf import from_upstream

TOKENS = 37


def mamba2(**more):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    return Mamba2Config(**{"vocab_size": TOKENS, "chunk_size": 4, **sizes, **more})


def llama(**more):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return LlamaConfig(**{"vocab_size": TOKENS, **sizes, **more})


MODELS = {
    "mamba2": lambda: Mamba2ForCausalLM(mamba2()),
    "mamba2 groups": lambda: Mamba2ForCausalLM(mamba2(n_groups=2, conv_kernel=3)),
    "mamba2 tied": lambda: Mamba2ForCausalLM(mamba2(tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(llama()),
    "llama grouped": lambda: LlamaForCausalLM(llama(num_key_value_heads=2, rms_norm_eps=1e-2)),
    "llama tied": lambda: LlamaForCausalLM(
        llama(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e3})
    ),
}


@torch.no_grad()
def shaken(model):
    """Return a model whose norms, steps and heads are not those that all models start with."""
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p) * p.abs().mean())
    return model.eval()


@pytest.fixture(params=MODELS)
def theirs(request):
    return shaken(MODELS[request.param]())


def tokens():
    return torch.randint(TOKENS, (2, 9))


class Wide:
    """torch, but float32 means float64: transformers computes norms, angles and scans in float32."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@torch.no_grad()
def test_logits_are_theirs(theirs):
    ours, ids = from_upstream(theirs), tokens()
    assert not ours.config.implicit
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)
    tied = theirs.config.tie_word_embeddings
    assert (ours.lm.head.weight is ours.lm.embedding.weight) == tied == ours.config.tie_word_embeddings


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs_in_float64(name, monkeypatch):
    for module in (modeling_llama, modeling_mamba2):
        monkeypatch.setattr(module, "torch", Wide())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    theirs = shaken(MODELS[name]().double())
    monkeypatch.undo()
    ours, ids = from_upstream(theirs), tokens()
    for module in (modeling_llama, modeling_mamba2):
        monkeypatch.setattr(module, "torch", Wide())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    want = theirs(ids).logits
    monkeypatch.undo()
    assert (ours.dtype, want.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(ours(ids).logits, want, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_folders_files_and_configurations_are_sources(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    want = from_upstream(theirs)
    state = theirs.state_dict()
    for made in (
        from_upstream(tmp_path),
        from_upstream(tmp_path / "config.json", tmp_path / "model.safetensors"),
        from_upstream(theirs.config, state),
        from_upstream(theirs.config.to_dict(), state),
    ):
        assert made.config.to_dict() == want.config.to_dict()
        assert all(torch.equal(p, w) for p, w in zip(made.parameters(), want.parameters(), strict=True))
    for initial in (from_upstream(theirs.config), from_upstream(str(tmp_path / "config.json"))):
        assert not torch.equal(initial.lm.embedding.weight, want.lm.embedding.weight)


def test_special_tokens_come_along():
    config = from_upstream(llama(pad_token_id=3, bos_token_id=4, eos_token_id=[5, 6])).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (3, 4, [5, 6])


@dataclasses.dataclass
class MambaConfig:
    """The options of mamba-ssm 2.3, which is not needed to read its files."""

    d_model: int = 16
    d_intermediate: int = 0
    n_layer: int = 2
    vocab_size: int = TOKENS
    ssm_cfg: dict = dataclasses.field(
        default_factory=lambda: {"layer": "Mamba2", "d_state": 4, "headdim": 8, "chunk_size": 64}
    )
    attn_layer_idx: list = dataclasses.field(default_factory=list)
    attn_cfg: dict = dataclasses.field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 16
    tie_embeddings: bool = True


@torch.no_grad()
def test_files_of_mamba_ssm(tmp_path):
    theirs = shaken(Mamba2ForCausalLM(mamba2(vocab_size=48, tie_word_embeddings=True)))
    named = {name.replace("embeddings", "embedding"): t for name, t in theirs.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(MambaConfig())))
    torch.save(named, tmp_path / "pytorch_model.bin")

    class MambaLMHeadModel(nn.Module):
        config = MambaConfig()

        def state_dict(self):
            return named

    ids = tokens()
    want = theirs(ids).logits
    for source in (tmp_path, MambaLMHeadModel()):
        torch.testing.assert_close(from_upstream(source)(ids).logits, want, rtol=1e-5, atol=1e-5)


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: llama(hidden_act="gelu"), "hidden_act must be 'silu'"),
        (lambda: llama(attention_bias=True), "attention_bias must be False"),
        (lambda: llama(mlp_bias=True), "mlp_bias must be False"),
        (lambda: llama(attention_dropout=0.1), r"attention_dropout must be 0\.0"),
        (lambda: llama(head_dim=8), "head_dim must be"),
        (lambda: llama(rope_parameters=SCALED), "rope_type must be 'default'"),
        (lambda: {**llama().to_dict(), "quantization_config": {"bits": 4}}, "quantization_config must be absent"),
        (lambda: mamba2(hidden_act="gelu"), "hidden_act must be 'silu'"),
        (lambda: mamba2(use_bias=True), "use_bias must be False"),
        (lambda: mamba2(use_conv_bias=False), "use_conv_bias must be True"),
        (lambda: mamba2(time_step_limit=(0.0, 0.1)), "time_step_limit must be"),
        (lambda: mamba2(layer_norm_epsilon=1e-3), "layer_norm_epsilon must be 1e-05"),
        (lambda: MistralConfig(), "model_type must be 'mamba2' or 'llama'"),
        (lambda: {"model_type": "implicit_mamba2"}, "model_type must be 'mamba2' or 'llama'"),
        (lambda: MambaConfig(d_intermediate=32), "d_intermediate must be 0"),
        (lambda: MambaConfig(attn_layer_idx=[1]), "attn_layer_idx must be"),
        (lambda: MambaConfig(rms_norm=False), "rms_norm must be True"),
        (lambda: MambaConfig(ssm_cfg={}), "layer must be 'Mamba2'"),
        (lambda: MambaConfig(ssm_cfg={"layer": "Mamba2", "bias": True}), r"ssm_cfg\.bias must be False"),
        (lambda: MambaConfig(ssm_cfg={"layer": "Mamba2", "d_sate": 3}), r"ssm_cfg must be without .* \['d_sate'\]"),
    ],
)
def test_what_has_no_equal_here_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        from_upstream(config())


def test_options_of_older_files():
    old = {**llama().to_dict(), "rope_theta": 2e3, "rope_scaling": None}
    del old["rope_parameters"]
    assert from_upstream(old).config.rope_theta == 2e3
    with pytest.raises(ValueError, match=r"rope_(scaling|type) must be"):
        from_upstream({**old, "rope_scaling": {"type": "linear", "factor": 2.0}})
    stored = {**mamba2().to_dict(), "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert from_upstream({**stored, "time_step_limit": [0.0, math.inf]}).config.state_size == 4


def test_tensors_of_another_model_are_refused():
    theirs = Mamba2ForCausalLM(mamba2())
    with pytest.raises(ValueError, match=r"missing: model\.embed_tokens\.weight.* not expected: backbone"):
        from_upstream(llama(), theirs.state_dict())
    state = theirs.state_dict()
    del state["backbone.layers.1.mixer.A_log"]
    with pytest.raises(ValueError, match=r"missing: backbone\.layers\.1\.mixer\.A_log"):
        from_upstream(theirs.config, state)
    with pytest.raises(ValueError, match=r"of another shape: backbone\.layers\.0\.mixer\.dt_bias \(4,\)"):
        from_upstream(mamba2(num_heads=8, head_dim=4), theirs.state_dict())
    tied = {**theirs.config.to_dict(), "tie_word_embeddings": True}
    with pytest.raises(ValueError, match=r"lm_head\.weight must be equal to"):
        from_upstream(tied, theirs.state_dict())
    old = LlamaForCausalLM(llama()).state_dict()
    from_upstream(llama(), old | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)})


def test_other_objects_are_refused():
    with pytest.raises(ValueError, match="a language model with a configuration"):
        from_upstream(nn.Linear(2, 2))
