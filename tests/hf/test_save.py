"""Files: every bit comes back, in this process and in a new one, and what is missing starts like a new model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deqlm import Chunked
from hf.tiny import FAMILIES, MODELS, config, model, tokens

BOTH = pytest.mark.parametrize("family", FAMILIES)

VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "head_bias": {"tie_word_embeddings": False, "head_bias": True},
    "plain_weights": {"weight_norm": False},
    "explicit": {"implicit": False},
    "explicit_normed": {"implicit": False, "weight_norm": True},
    "padded": {"pad_vocab": 8},
}


def assert_same(ours, theirs) -> None:
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)
    assert not any(t.is_meta for t in (*theirs.parameters(), *theirs.buffers()))


def load(where, **options):
    return AutoModelForCausalLM.from_pretrained(where, **options)


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore::deqlm.ConvergenceWarning")
def test_every_bit_comes_back(family, variant, tmp_path):
    made, ids = model(family, deq={"mode": {"name": "chunked", "size": 3}}, **VARIANTS[variant]), tokens()
    made.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert_same(made, again)
    assert again.config == made.config
    assert again.lm.mode == Chunked(3)
    assert (again.lm.head.weight is again.lm.embedding.weight) is made.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.equal(made(ids).logits, again(ids).logits)


@BOTH
@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_shards(family, variant, tmp_path):
    made = model(family, **VARIANTS[variant])
    made.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same(made, load(tmp_path))


@BOTH
def test_weights_in_bfloat16(family, tmp_path):
    made = model(family, torch.bfloat16)
    made.save_pretrained(tmp_path)
    assert_same(made, load(tmp_path))
    wide = load(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert_same(made, wide.to(torch.bfloat16))


def test_the_tied_head_is_stored_once(tmp_path):
    model("mamba2").save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert "lm.embedding.weight" in keys
    assert "lm.head.weight" not in keys


@BOTH
@pytest.mark.parametrize("variant", ["tied", "untied", "explicit"])
def test_initial_weights_are_those_of_the_language_model(family, variant):
    made = config(family, num_hidden_layers=3, **VARIANTS[variant])
    torch.manual_seed(5)
    ours = MODELS[family](made)
    torch.manual_seed(5)
    theirs = made.to_lm_options().make()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[f"lm.{name}"], value), name


@BOTH
@pytest.mark.parametrize("variant", ["untied", "plain_weights", "explicit"])
def test_missing_weights_start_like_those_of_a_new_model(family, variant, tmp_path):
    made = model(family, num_hidden_layers=8, hidden_size=32, **VARIANTS[variant])
    made.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    lost = {
        key for key in held if any(part in key for part in ("out_proj", "fc2", "A_log", "injection", "head", "norm"))
    }
    save_file({key: value for key, value in held.items() if key not in lost}, path, metadata={"format": "pt"})
    torch.manual_seed(7)
    again = load(tmp_path)
    torch.manual_seed(7)
    fresh = made.config.to_lm_options().make().state_dict()
    state = again.state_dict()
    assert lost
    for key in held:
        expected = fresh[key.removeprefix("lm.")] if key in lost else held[key]
        assert torch.equal(state[key], expected), key
    # 8 or 16 residual branches: an output projection that was not scaled by depth would be larger
    branches = 8 if family == "mamba2" else 16
    weight = again.lm.backbone.layers[0].mixer.out_proj.weight
    bound = weight.shape[1] ** -0.5 / branches**0.5
    assert 0.9 * bound < weight.abs().max() < 1.001 * bound


def test_no_weights_at_all_make_a_new_model_of_the_config(tmp_path):
    made = model("llama")
    made.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    save_file({"lm.embedding.weight": held["lm.embedding.weight"]}, tmp_path / "model.safetensors", {"format": "pt"})
    again = load(tmp_path)
    assert all(p.isfinite().all() and p.abs().max() < 2 for p in again.parameters())


@BOTH
def test_pickled_tensors_are_read_as_tensors(family, tmp_path):
    made = model(family)
    made.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(made, load(tmp_path))


def test_information_about_loading(tmp_path):
    made = model("llama", tie_word_embeddings=False)
    made.save_pretrained(tmp_path)
    again, info = load(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert_same(made, again)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="device_map needs accelerate")
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(device_map, tmp_path):
    made = model("mamba2")
    made.save_pretrained(tmp_path)
    assert_same(made, load(tmp_path, device_map=device_map))


@pytest.mark.slow
@BOTH
def test_a_new_process_reads_it(family, tmp_path):
    made, ids = model(family), torch.tensor([[1, 2, 3, 4]])
    made.save_pretrained(tmp_path)
    script = (
        "import sys, torch, deqlm.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    torch.save(model(torch.tensor([[1, 2, 3, 4]])).logits, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(tmp_path / "logits")], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits"), made(ids).logits)
