"""Quantised weights act on every projection, or are refused with the remedy; folding is that remedy."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from deqlm.hf import ImplicitForCausalLM
from hf.tiny import FAMILIES, MODELS, model, tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
BUDGET = {"max_iter": 8, "rtol": 0}


def folded(family: str, **changes) -> ImplicitForCausalLM:
    torch.manual_seed(1)
    return model(family, **changes).fold_weight_norm()


def logits(made, ids):
    with torch.no_grad():
        return made(ids, **({"stop": BUDGET} if made.config.implicit else {})).logits


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_quantisation_acts_on_every_linear_layer(family, implicit):
    plain, ids = folded(family, implicit=implicit), tokens()
    want = logits(plain, ids)
    made = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(part, nn.Linear) for part in made.modules())
    found = logits(made, ids)
    assert 0 < (found - want).abs().max() < 0.25 * want.abs().max()
    options = {"on_failure": "ignore"} if implicit else {}
    made.generation_config.max_new_tokens = 2
    assert made.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options).shape == (2, 9)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_act_on_every_linear_layer(family, implicit):
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    made, ids = folded(family, implicit=implicit), tokens()
    want = logits(made, ids)
    torchao.quantize_(made, torchao.Int8WeightOnlyConfig())
    assert not any(type(part.weight) is nn.Parameter for part in made.modules() if isinstance(part, nn.Linear))
    found = logits(made, ids)
    assert 0 < (found - want).abs().max() < 0.25 * want.abs().max()


class Int8(torch.Tensor):
    """Stands for the tensors of a library that quantises."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_normalised_weight_is_not_quantised_in_silence(family):
    made = model(family)
    with pytest.raises(TypeError, match=r"cannot be a quantised tensor: fold it first, by model.fold_weight_norm\(\)"):
        torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)
    layer = made.lm.backbone.injection
    with pytest.raises(TypeError, match="computed from weight_g and weight_v and cannot be Int8"):
        layer.weight = nn.Parameter(layer.weight.detach().clone().as_subclass(Int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"cannot be Tensor torch\.int8: fold it first"):
        layer.weight = torch.zeros(layer.weight.shape, dtype=torch.int8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fake_quantised_weight_is_read_in_every_evaluation(family):
    class Rounded(nn.Module):
        def forward(self, weight):
            return torch.fake_quantize_per_tensor_affine(weight, 0.05, 0, -128, 127)

    made, ids = folded(family), tokens()
    want = logits(made, ids)
    mixer = made.lm.backbone.layers[0].mixer
    nn.utils.parametrize.register_parametrization(mixer.out_proj, "weight", Rounded())
    found = logits(made, ids)
    assert (found - want).abs().max() > 1e-4
    with torch.no_grad():
        rounded = mixer.out_proj.weight.clone()
    nn.utils.parametrize.remove_parametrizations(mixer.out_proj, "weight", leave_parametrized=False)
    with torch.no_grad():
        mixer.out_proj.weight.copy_(rounded)
    torch.testing.assert_close(found, logits(made, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_saved_and_loaded(family, tmp_path: Path):
    torch.manual_seed(1)
    plain, ids = model(family), tokens()
    want = logits(plain, ids)
    assert plain.fold_weight_norm() is plain
    torch.testing.assert_close(logits(plain, ids), want, rtol=1e-5, atol=1e-5)
    assert plain.config.weight_norm is False
    assert type(plain.lm.backbone.injection) is nn.Linear
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), ids), logits(plain, ids))
    assert plain.fold_weight_norm().config.weight_norm is False  # nothing is left to fold


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normed", [True, False])
def test_a_configuration_and_weights_that_disagree_on_folding_are_refused(family, normed, tmp_path: Path):
    made = model(family) if normed else folded(family)
    made.save_pretrained(tmp_path)
    told = f"weight_norm={not normed} in the configuration means .*: load with weight_norm={normed}"
    with pytest.raises(ValueError, match=told):
        MODELS[family].from_pretrained(tmp_path, weight_norm=not normed)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="the library is there")
def test_a_quantised_folder_needs_its_library(tmp_path: Path):
    folded("mamba2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kind = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": {"default": kind}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportError, match="are or shall be quantised by torchao: pip install torchao"):
        MODELS["mamba2"].from_pretrained(tmp_path)


def test_what_is_quantised_on_loading_is_folded_and_can_be_saved(tmp_path: Path):
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    from transformers import TorchAoConfig

    asked, ids = TorchAoConfig(torchao.Int8WeightOnlyConfig()), tokens()
    model("mamba2").save_pretrained(tmp_path / "normed")
    with pytest.raises(ValueError, match=r"cannot be quantised: .* after model.fold_weight_norm\(\)"):
        MODELS["mamba2"].from_pretrained(tmp_path / "normed", quantization_config=asked)
    folded("mamba2").save_pretrained(tmp_path / "folded")
    made = MODELS["mamba2"].from_pretrained(tmp_path / "folded", quantization_config=asked).eval()
    assert type(made.lm.backbone.injection.weight) is not nn.Parameter
    made.save_pretrained(tmp_path / "int8")
    again = MODELS["mamba2"].from_pretrained(tmp_path / "int8").eval()
    assert torch.equal(logits(again, ids), logits(made, ids))
