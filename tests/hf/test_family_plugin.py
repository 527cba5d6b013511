"""A family of another package: its own mixer, one class of options, one configuration, one model."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn

from deqlm.cli.main import main
from deqlm.hf import ImplicitConfig, ImplicitForCausalLM, export_implicit_llm, to_implicit
from deqlm.models import MixerOptions
from deqlm_solvers import options
from models.shift import Counted, Shift


@options
class CountedOptions(MixerOptions):
    def make(self, d_model: int, **more: Any) -> nn.Module:
        return Counted(d_model, **more)


@options
class ShiftOptions(MixerOptions):
    def make(self, d_model: int, **more: Any) -> nn.Module:
        return Shift(d_model, **more)


class ImplicitCountedConfig(ImplicitConfig):
    model_type = "implicit_counted"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _family_options(self) -> dict[str, Any]:
        return {"mixer": CountedOptions()}


class ImplicitShiftConfig(ImplicitConfig):
    model_type = "implicit_shift"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _family_options(self) -> dict[str, Any]:
        return {"mixer": ShiftOptions()}


class ImplicitCounted(ImplicitForCausalLM):
    config_class = ImplicitCountedConfig


class ImplicitShift(ImplicitForCausalLM):
    config_class = ImplicitShiftConfig


TINY: dict[str, Any] = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2}


def test_it_computes_learns_and_generates():
    model = ImplicitCounted(ImplicitCountedConfig(**TINY))
    ids = torch.randint(13, (2, 5))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    made = model.eval().generate(ids, max_new_tokens=3, on_failure="ignore", pad_token_id=0)
    assert made.shape == (2, 8)


def test_its_base_model_is_made_for_it():
    made = ImplicitCounted(ImplicitCountedConfig(**TINY))
    assert type(made.base_model).__name__ == "ImplicitCountedModel"
    assert type(made.base_model).config_class is ImplicitCountedConfig
    assert pickle.loads(pickle.dumps(made)).base_model.lm is not made.lm


def test_its_first_block_sees_the_embeddings_as_it_did():
    explicit = ImplicitCounted(ImplicitCountedConfig(**TINY, implicit=False)).double().eval()
    made, e = to_implicit(explicit), explicit.lm.embedding(torch.randint(13, (2, 6)))
    ours, theirs = made.lm.backbone.layers[0], explicit.lm.backbone.layers[0]
    got = ours.mixer(ours.norm(torch.zeros_like(e)), made.lm.backbone.project(e))
    torch.testing.assert_close(got, theirs.mixer(theirs.norm(e)), rtol=1e-12, atol=1e-12)


def test_the_authors_have_no_such_model():
    with pytest.raises(ValueError, match=r"that of an implicit Mamba2 or Llama .* got 'ImplicitCounted"):
        export_implicit_llm(ImplicitCounted(ImplicitCountedConfig(**TINY)))


def test_info_reads_every_family_of_the_list(monkeypatch, tmp_path, capsys):
    module = sys.modules["deqlm.hf.register"]
    monkeypatch.setattr(module, "FAMILIES", (*module.FAMILIES, (ImplicitCountedConfig, ImplicitCounted)))
    ImplicitCountedConfig(**TINY).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops_per_token"]["evaluation"] > 0


def test_a_mixer_that_does_not_say_where_its_input_enters_starts_by_xavier():
    explicit = ImplicitShift(ImplicitShiftConfig(**TINY, implicit=False))
    with pytest.raises(TypeError, match=r"the input of a Shift enters is not known: give it input_weight\(\)"):
        to_implicit(explicit)
    assert to_implicit(explicit, injection="xavier").config.implicit
