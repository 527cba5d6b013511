"""Bad input of the Hugging Face side: each kind has a clear error."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import deqlm.hf
from deqlm import Stop
from deqlm.hf import DecodeCache, DeqOptions, ImplicitLlamaConfig, ImplicitMamba2Config
from hf.tiny import FAMILIES, MODELS, VOCAB, config, model, tokens

BOTH = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hiden_size": 8}, "unknown key 'hiden_size': did you mean 'hidden_size'"),
        ({"state_size": 8}, "ImplicitLlamaConfig got an unknown key 'state_size'"),
        ({"temperature": 0.7}, "'temperature' is an option of generation"),
        ({"deq": {"grd": {}}}, "did you mean 'grad'"),
        ({"deq": {"grad": {"stpo": {}}}}, "did you mean 'stop'"),
        ({"deq": {"no_grad": {"stop": {"max_itr": 3}}}}, "did you mean 'max_iter'"),
        ({"deq": {"no_grad": {"gradient": "implicit"}}}, "NoGrad got an unknown option 'gradient'"),
        ({"deq": {"phases": {"phase": []}}}, "did you mean 'phases'"),
        ({"deq": 3}, "deq must be a dict or a DeqOptions, got 3"),
    ],
)
def test_unknown_keys(keys, message):
    with pytest.raises(TypeError, match=message):
        config("llama", **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number >= 1, got 0"),
        ({"hidden_size": 15, "num_attention_heads": None}, "hidden_size must be a multiple of 2"),
        ({"num_attention_heads": 3}, "num_attention_heads must be a divisor of 16"),
        ({"head_dim": 4}, r"num_attention_heads \* head_dim must be hidden_size, 16, got '2 \* 4'"),
        ({"num_attention_heads": 16}, "head_dim must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of 2 query heads"),
        ({"vocab_size": 2.5}, "vocab_size must be a whole number"),
        ({"hidden_dropout": 1.0}, "hidden_dropout must be"),
        ({"rope_theta": 0}, "rope_theta must be > 0"),
        ({"labels": "moved"}, "labels must be 'shifted' or 'aligned'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be True or False"),
        ({"model_type": "implicit_mamba2"}, "model_type must be 'implicit_llama' for ImplicitLlamaConfig"),
        ({"backbone_config": {}}, "import_implicit_llm imports it"),
        ({"deq": {"mode": {"name": "chunked", "size": 0}}}, "size must be"),
        ({"deq": {"on_failure": "panic"}}, "on_failure must be one of"),
        ({"deq": {"start": "previos"}}, "start must be one of"),
        ({"deq": {"grad": 3}}, "grad must be a Grad, or a dict of its fields"),
        ({"implicit": False, "deq": {"grad": {"gradient": "one_step"}}}, "nothing is solved"),
    ],
)
def test_values_that_break_a_rule_or_contradict(keys, message):
    with pytest.raises(ValueError, match=message):
        config("llama", **keys)


def test_groups_of_mamba2_divide_its_heads():
    with pytest.raises(ValueError, match="n_groups must be a divisor of 4 heads"):
        config("mamba2", n_groups=3)
    with pytest.raises(ValueError, match=r"num_heads \* head_dim must be expand \* hidden_size, 32"):
        config("mamba2", num_heads=3)


def test_unknown_names_of_solvers():
    with pytest.raises(KeyError, match="did you mean 'anderson'"):
        DeqOptions(grad={"solver": "andersen"})
    with pytest.raises(KeyError, match="did you mean 'sequential'"):
        DeqOptions(mode="sequental")


@BOTH
def test_tokens(family):
    made = model(family)
    with pytest.raises(ValueError, match=f"ids must be from 0 to {VOCAB - 1}, got '0 to {VOCAB}'"):
        made(torch.tensor([[0, VOCAB]]))
    with pytest.raises(ValueError, match="ids must be from 0"):
        made(torch.tensor([[-1, 2]]))
    with pytest.raises(ValueError, match="length of ids must be >= 1"):
        made(torch.empty(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="whole numbers of shape"):
        made(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="ids must be given, or embeddings in their place"):
        made()
    with pytest.raises(ValueError, match="ids must be given, or embeddings in their place"):
        made(tokens(), inputs_embeds=torch.zeros(2, 7, 16))


def test_labels():
    made, ids = model("llama"), tokens()
    with pytest.raises(ValueError, match=f"labels must be -100 or from 0 to {VOCAB - 1}"):
        made(ids, labels=torch.full_like(ids, VOCAB))
    with pytest.raises(ValueError, match="labels must be of shape"):
        made(ids, labels=ids[:, 1:])
    with pytest.raises(ValueError, match="length of shifted labels must be > 1"):
        made(ids[:, :1], labels=ids[:, :1])
    with pytest.raises(ValueError, match="labels must be of shape"):
        made(ids, labels=ids, logits_to_keep=1)


@BOTH
def test_masks(family):
    made, ids = model(family), tokens()
    with pytest.raises(ValueError, match=r"attention_mask must be of shape \(2, 7\)"):
        made(ids, attention_mask=torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"zeros alone in rows \[1\]"):
        made(ids, attention_mask=torch.tensor([[1] * 7, [0] * 7]))
    with pytest.raises(ValueError, match="attention_mask must be of zeros and ones"):
        made(ids, attention_mask=torch.full((2, 7), 2))
    with pytest.raises(ValueError, match="real tokens of a row next to each other"):
        made(ids, attention_mask=torch.tensor([[1, 0, 1, 1, 1, 1, 1]] * 2))


@BOTH
def test_positions(family):
    made, ids = model(family), tokens()
    with pytest.raises(
        ValueError, match="must be 0 at token 0 of row 0, as follows from attention_mask and cache, got 2"
    ):
        made(ids, position_ids=torch.arange(2, 9)[None])
    with pytest.raises(ValueError, match="position_ids must be one of"):
        made(ids, position_ids=torch.arange(6)[None])
    with pytest.raises(ValueError, match="cache_position must be from 0 to 6"):
        made(ids, cache_position=torch.arange(1, 8))


@BOTH
def test_caches(family):
    made, ids = model(family), tokens()
    with torch.no_grad():
        held = made(ids).cache
    with pytest.raises(ValueError, match="batch of the cache must be that of the tokens, 1, got 2"):
        made(ids[:1], past_key_values=held)
    with pytest.raises(TypeError, match=r"past_key_values must be a deqlm\.hf\.DecodeCache, got tuple"):
        made(ids, past_key_values=())
    with pytest.raises(ValueError, match="None where past_key_values is given"):
        made(ids, past_key_values=held, cache=held)
    with pytest.raises(ValueError, match=r"attention_mask must be of shape \(2, 8\): all tokens, of which 7 are in"):
        made(ids[:, :1], past_key_values=held, attention_mask=torch.ones(2, 1))
    mask = torch.ones(2, 8)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match=r"attention_mask must be \[7, 7\] ones in the cached part, got \[6, 7\]"):
        made(ids[:, :1], past_key_values=held, attention_mask=mask)


def test_a_cache_of_the_other_family():
    with torch.no_grad():
        held = model("mamba2")(tokens()).cache
    assert isinstance(held, DecodeCache)
    with pytest.raises(TypeError, match=r"cache must hold \['KVCache', 'KVCache'\], got \['Mamba2Cache'"):
        model("llama")(tokens(), past_key_values=held)


def test_options_of_a_call():
    made, ids = model("llama"), tokens()
    with pytest.raises(ValueError, match="output_attentions must be false"):
        made(ids, output_attentions=True)
    with pytest.raises(ValueError, match="size must be"):
        made(ids, mode={"name": "chunked", "size": 0})
    with pytest.raises(KeyError, match="did you mean 'sequential'"):
        made(ids, mode="sequental")
    with pytest.raises(TypeError, match="did you mean 'max_iter'"):
        made(ids, stop={"max_itr": 3})
    with pytest.raises(ValueError, match="stop must be a Stop"):
        made(ids, stop=3)
    with pytest.raises(ValueError, match="per must be 'token' for a causal map"):
        made(ids, stop=Stop(per="leaf"))
    with pytest.raises(TypeError, match="unknown argument 'stpo': did you mean 'stop'"):
        made(ids, stpo=Stop())
    with pytest.raises(ValueError, match="logits_to_keep must be a whole number"):
        made(ids, logits_to_keep=-1)


@pytest.mark.parametrize("name", ["transformers", "safetensors"])
def test_a_missing_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("deqlm.hf.again", deqlm.hf.__file__)
    with pytest.raises(ModuleNotFoundError, match=rf"deqlm\.hf needs the package '{name}': pip install 'deqlm\[hf\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_an_old_release_of_transformers_is_named(monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.2.0")
    spec = importlib.util.spec_from_file_location("deqlm.hf.again", deqlm.hf.__file__)
    with pytest.raises(ImportError, match=r"deqlm\.hf needs transformers >= 5\.3, found 5\.2\.0"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture
def folder(tmp_path) -> Path:
    model("mamba2").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_files(folder, keep):
    path = folder / "model.safetensors"
    held = path.read_bytes()
    path.write_bytes(held[: int(keep * len(held)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"the weights at .* are damaged"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("place", [0, 20])
def test_a_tampered_header(folder, place):
    path = folder / "model.safetensors"
    held = bytearray(path.read_bytes())
    held[place] ^= 0xFF
    path.write_bytes(held)
    with pytest.raises(ValueError, match=r"the weights at .* are damaged"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_tampered_names_and_shapes(folder):
    path = folder / "model.safetensors"
    held = load_file(path)
    save_file({key.replace("A_log", "A_lag"): value for key, value in held.items()}, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"another model than ImplicitMamba2ForCausalLM: 2 are missing, such as .*A_log"
    ):
        AutoModelForCausalLM.from_pretrained(folder)
    save_file({key: value[:3] if key.endswith("D") else value for key, value in held.items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"another size than the configuration's: .*D' has shape \(3,\), not \(4,\)"):
        AutoModelForCausalLM.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_a_lost_shard(tmp_path):
    model("llama").save_pretrained(tmp_path, max_shard_size="4KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises((FileNotFoundError, OSError), match="00002"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_other_family(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="model_type must be 'implicit_llama'"):
        MODELS["llama"].from_pretrained(folder)
    other = tmp_path_factory.mktemp("other")
    model("llama").save_pretrained(other)
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(ValueError, match="weights of another model than ImplicitMamba2ForCausalLM"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tampered_configuration(folder):
    path = folder / "config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "state_sice": 4}))
    with pytest.raises(TypeError, match="did you mean 'state_size'"):
        AutoConfig.from_pretrained(folder)
    path.write_text(json.dumps({**held, "deq": {**held["deq"], "moed": "sequential"}}))
    with pytest.raises(TypeError, match="did you mean 'mode'"):
        AutoModelForCausalLM.from_pretrained(folder)
    path.write_text(json.dumps({**held, "head_dim": 5}))
    with pytest.raises(ValueError, match=r"num_heads \* head_dim must be"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_keys_beside_the_file(folder):
    with pytest.raises(TypeError, match="ImplicitMamba2ForCausalLM got an unknown option 'stat_size': did you mean"):
        AutoModelForCausalLM.from_pretrained(folder, stat_size=4)
    with pytest.raises(ValueError, match=r"num_heads \* head_dim must be expand \* hidden_size, 64"):
        AutoModelForCausalLM.from_pretrained(folder, hidden_size=32)


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_pickled_objects_are_never_loaded(folder, tmp_path_factory):
    mark = tmp_path_factory.mktemp("marks") / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"lm.embedding.weight": Command(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled objects could run code"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="weights_only must be True"):
        AutoModelForCausalLM.from_pretrained(folder, weights_only=False)
    assert not mark.exists()


def test_configurations_are_given_by_name_only():
    for cls in (ImplicitMamba2Config, ImplicitLlamaConfig):
        with pytest.raises(TypeError, match="positional"):
            cls(16)


@BOTH
def test_what_is_no_tensor_of_the_right_kind_is_told_by_name(family):
    made, ids = model(family, deq={"on_failure": "ignore"}), tokens()
    for given in (ids.tolist(), ids.numpy()):
        with pytest.raises(TypeError, match=f"ids must be a tensor, got {type(given).__name__}"):
            made(given)
        with pytest.raises(TypeError, match=f"the prompts must be a tensor, got {type(given).__name__}"):
            made.generate(given, max_new_tokens=1)
    for name in ("attention_mask", "position_ids", "cache_position", "labels"):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
            made(ids, **{name: [1]})
    with pytest.raises(TypeError, match="attention_mask must be a tensor, got list"):
        made.generate(ids, attention_mask=[[1] * 7] * 2, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"attention_mask must be bool, or of zeros and ones, got torch\.complex64"):
        made(ids, attention_mask=torch.ones(2, 7, dtype=torch.complex64))
    with pytest.raises(ValueError, match="ids must be a tensor that holds numbers, got 'a tensor on the device meta'"):
        made(ids.to("meta"))
    with pytest.raises(ValueError, match=r"ids must be a dense tensor, got torch\.sparse_coo"):
        made(ids.to_sparse())
    with pytest.raises(ValueError, match=r"labels must be whole numbers, got torch\.float32"):
        made(ids, labels=ids.float())


@BOTH
def test_a_mask_of_ones_must_have_the_shape_of_the_prompts(family):
    """Transformers drops a mask of ones without a look at its shape."""
    made, ids = model(family, deq={"on_failure": "ignore"}), tokens()
    for shape in ((2, 6), (1, 7), (2, 8)):
        with pytest.raises(ValueError, match=r"attention_mask must be of a shape in \[\(2, 7\)\]"):
            made.generate(ids, attention_mask=torch.ones(shape, dtype=torch.int64), max_new_tokens=1)


@BOTH
def test_a_batch_without_rows(family):
    made, ids = model(family), tokens()[:0]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            out = made(ids, attention_mask=ids)
        assert out.logits.shape == (0, 7, VOCAB)
        assert out.status.shape == (0,)
    with pytest.raises(ValueError, match="at least one row and at least one token, got \\(0, 7\\)"):
        made.generate(ids)


def test_a_mode_that_its_solver_cannot_do_is_refused_in_the_configuration():
    with pytest.raises(ValueError, match="solver must be FixedPoint with mode Frontier"):
        DeqOptions(mode={"name": "frontier", "window": 4}, no_grad={"solver": "newton"})
    with pytest.raises(ValueError, match="with mode Frontier"):
        DeqOptions(prompt_mode={"name": "frontier", "window": 4}, no_grad={"stop": {"trace": True}})
