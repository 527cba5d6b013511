"""Adapters by PEFT itself: their effect is one in every kind of call, and merged into the weights it stays."""

from __future__ import annotations

import copy

import pytest
import torch

from deqlm.hf import ImplicitForCausalLM
from hf.tiny import FAMILIES, VOCAB, converging, tokens

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LAYERS = {
    "lora": {"target_modules": "all-linear"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "embeddings": {"target_modules": ["embedding", "head"]},
    "modules to save": {"target_modules": ["out_proj"], "modules_to_save": ["norm", "norm_f", "head"]},
}
KINDS = ["implicit", "folded", "explicit"]
STOP = {"rtol": 1e-12, "max_iter": 200, "per": "token"}


def base(family: str, kind: str) -> ImplicitForCausalLM:
    torch.manual_seed(1)
    made = converging(family, implicit=kind != "explicit", tie_word_embeddings=False)
    return made.fold_weight_norm() if kind == "folded" else made


def adapted(model, adapter="lora", size=0.02, **changes):
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=2, **LAYERS[adapter], **changes)).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                p.copy_(size * torch.randn_like(p))
            elif "modules_to_save" in name:
                p.add_(size * torch.randn_like(p))
    return made


def logits(model, ids):
    how = {"stop": STOP} if model.config.implicit else {}
    return model(input_ids=ids, **how).logits


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_has_one_effect(family, adapter, kind, tmp_path):
    plain, ids = base(family, kind), tokens()
    model = adapted(copy.deepcopy(plain), adapter)
    with torch.no_grad():
        before, want = logits(plain, ids), logits(model, ids)
    assert (before - want).abs().max() > 1e-4
    with_grad = logits(model, ids)
    same(with_grad, want)
    with_grad.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert type(merged) is type(plain)
    with torch.no_grad():
        same(logits(peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path), ids), want)
        same(logits(merged, ids), want)
        model.merge_adapter()
        same(logits(model, ids), want)
        model.unmerge_adapter()
        same(logits(model, ids), want)
        with model.disable_adapter():
            same(logits(model, ids), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_the_merged_model(family, kind):
    plain, ids = base(family, kind), tokens()
    model = adapted(plain, size=0.1)
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options |= {} if kind == "explicit" else {"stop": STOP, "on_failure": "ignore"}
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    merged = copy.deepcopy(model).merge_and_unload()
    want = merged.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(found.sequences, want.sequences)
    same(torch.stack(found.logits), torch.stack(want.logits))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_gets_an_adapter(family):
    model = adapted(base(family, "implicit"))
    wrapped = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "lora_A")}
    mine = {"mamba2": {"in_proj", "out_proj"}, "llama": {"wq", "wk", "wv", "out_proj", "w1", "w3", "fc2"}}[family]
    assert wrapped == {*mine, "injection"}  # PEFT leaves the head out


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_two_adapters_is_active(family):
    ids = tokens()
    model = adapted(base(family, "implicit"))
    with torch.no_grad():
        one = logits(model, ids)
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["out_proj"], init_lora_weights=False))
        same(logits(model, ids), one)
        model.set_adapter("other")
        two = logits(model, ids)
        assert not torch.allclose(one, two, atol=1e-5)
        model.set_adapter("default")
        same(logits(model, ids), one)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("trained", "used"), [("implicit", "folded"), ("folded", "implicit")])
def test_an_adapter_fits_folded_weights_and_those_that_are_not(family, trained, used, tmp_path):
    ids = tokens()
    model = adapted(base(family, trained))
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base(family, used), tmp_path)
    with torch.no_grad():
        same(logits(other, ids), logits(model, ids))
        same(logits(model.get_base_model().fold_weight_norm(), ids), logits(other, ids))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_begin_by_changing_the_weight_change_no_value(init):
    plain, ids = base("mamba2", "implicit").float(), tokens()
    with torch.no_grad():
        want = plain(ids, stop={**STOP, "rtol": 1e-6}).logits
        made = peft.get_peft_model(
            plain, peft.LoraConfig(r=2, lora_alpha=2, target_modules=["in_proj"], init_lora_weights=init)
        )
        torch.testing.assert_close(made(ids, stop={**STOP, "rtol": 1e-6}).logits, want, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_freezes_its_weight_freezes_what_it_is_made_of():
    model = base("llama", "implicit")
    made = peft.get_peft_model(model, peft.AdaLoraConfig(total_step=10, target_modules=["wq"]))
    layer = made.get_base_model().lm.backbone.layers[0].mixer.wq.base_layer
    assert not layer.weight_g.requires_grad
    assert not layer.weight_v.requires_grad


@pytest.mark.parametrize("kind", ["implicit", "explicit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_tuned_and_a_prefix_is_refused(family, kind):
    ids = tokens()
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=2, token_dim=16, num_attention_heads=2
    )
    model = peft.get_peft_model(base(family, kind), config).eval()
    with torch.no_grad():
        without = logits(model, ids)
    assert without.shape == (2, 10, VOCAB)
    found = logits(model, ids)
    same(found, without)
    found.square().sum().backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.any()
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert out.shape == (2, 9)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=2, token_dim=16, num_attention_heads=2
    )
    with pytest.raises(TypeError, match="prefix tuning, have no place; tune a prompt instead"):
        logits(peft.get_peft_model(base(family, kind), config), ids)


def test_adapters_of_another_family_are_refused(tmp_path):
    peft.get_peft_model(base("mamba2", "implicit"), peft.LoraConfig(target_modules=["in_proj"])).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="in_proj"):
        peft.PeftModel.from_pretrained(base("llama", "implicit"), tmp_path)
