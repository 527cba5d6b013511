"""Weights that a library brings for a call and takes away again: the answers stay."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from hf.tiny import FAMILIES, MODELS, converging, tokens

accelerate = pytest.importorskip("accelerate")
KINDS = {"implicit": {}, "plain weights": {"weight_norm": False}, "explicit": {"implicit": False}}
CPU = torch.device("cpu")


def answers(model, ids):
    """Return logits without grad and with, and generated tokens."""
    with torch.no_grad():
        without = model(ids).logits
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    return without, model(ids).logits.detach(), out.double()


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_models_answer_alike(family, kind, how, tmp_path: Path):
    made, ids = converging(family, tie_word_embeddings=False, **KINDS[kind]), tokens()
    want = answers(made, ids)
    moved = copy.deepcopy(made)
    if how == "cpu":
        moved = accelerate.cpu_offload(moved, execution_device=CPU)
    else:
        moved = accelerate.disk_offload(moved, str(tmp_path), execution_device=CPU)
    assert moved.lm.backbone.layers[0].mixer.out_proj.bias is None
    assert all(p.is_meta for p in moved.lm.backbone.parameters())
    for a, b in zip(answers(moved, ids), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_placed_one_by_one(family, tmp_path: Path):
    made, ids = converging(family, tie_word_embeddings=False), tokens()
    want = answers(made, ids)
    made.save_pretrained(tmp_path / "model")
    here = dict.fromkeys(
        ("embedding", "dropout", "head", "backbone.norm_f", "backbone.injection_norm", "backbone.layers.0"), "cpu"
    )
    places = {**here, "backbone.injection": "disk", "backbone.layers.1": "disk"}
    placed = MODELS[family].from_pretrained(
        tmp_path / "model",
        device_map={f"lm.{name}": place for name, place in places.items()},
        offload_folder=tmp_path / "weights",
        dtype=torch.float64,
    )
    assert not placed.lm.backbone.layers[0].norm.weight.is_meta
    assert placed.lm.backbone.layers[1].norm.weight.is_meta
    for a, b in zip(answers(placed.eval(), ids), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_offloaded_weights_cannot_be_folded():
    moved = accelerate.cpu_offload(converging("mamba2"), execution_device=CPU)
    with pytest.raises(RuntimeError, match="is sharded or offloaded: fold it before that"):
        moved.fold_weight_norm()
    assert moved.config.weight_norm is None
