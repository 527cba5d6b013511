"""Folders of weights that promise what they do not hold, look outside, or hold numbers that are no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deqlm.hf import import_implicit_llm
from deqlm.hf.checkpoints import common_dtype
from hf.tiny import MODELS, config, model

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model("llama").save_pretrained(folder, max_shard_size="4KB")
    assert (folder / INDEX).is_file()
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def change_map(folder: Path, change) -> None:
    told = json.loads((folder / INDEX).read_text())
    told["weight_map"] = change(told["weight_map"])
    (folder / INDEX).write_text(json.dumps(told))


def elsewhere(folder: Path, how: str) -> None:
    """Move a file to where an index should not lead, and lead there."""
    name = next(iter(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    place = folder / "below" / name if how == "below" else folder.parent / name
    place.parent.mkdir(exist_ok=True)
    shutil.move(folder / name, place)
    leads = {"above": f"../{name}", "below": f"below/{name}", "absolute": str(place), "windows": f"..\\{name}"}[how]
    change_map(folder, lambda places: {key: leads if file == name else file for key, file in places.items()})


@pytest.mark.parametrize("how", ["above", "below", "absolute", "windows"])
def test_an_index_does_not_lead_to_other_folders(folder, how):
    elsewhere(folder, how)
    with pytest.raises(ValueError, match=r"a file in .*index\.json must be in the same folder, got"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_folder_is_no_file_of_weights(folder, name):
    change_map(folder, lambda places: dict.fromkeys(places, name))
    with pytest.raises(ValueError, match="in the same folder"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_links_are_followed_as_the_cache_of_the_hub_has_them(folder):
    for file in folder.glob("*.safetensors"):
        file.rename(folder.parent / file.name)
        file.symlink_to(folder.parent / file.name)
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("places", [None, [1], {}, {"lm.norm": 3}, {"lm.norm": ["a"]}, "text"])
def test_an_index_that_is_none(folder, places):
    change_map(folder, lambda _: places)
    with pytest.raises(ValueError, match=r"weight_map in .*index\.json must be tensors and the names of their files"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("text", ["nonsense", "[" * 100_000, "\xff"])
def test_an_index_that_is_no_json(folder, text):
    (folder / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"index\.json is not a JSON file"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_that_is_promised_and_not_there(folder, kept):
    name, place = next(iter(json.loads((folder / INDEX).read_text())["weight_map"].items()))
    if kept:
        change_map(folder, lambda places: {**places, "lm.more": place})
        name = "lm.more"
    else:
        held = load_file(folder / place)
        save_file({key: value for key, value in held.items() if key != name}, folder / place, {"format": "pt"})
    with pytest.raises(ValueError, match=f"must be those of the index, got 'none for {name}'"):
        AutoModelForCausalLM.from_pretrained(folder)


ODD = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("dtype", ODD)
@pytest.mark.parametrize("only", ["", "norm_f"])
@pytest.mark.parametrize("how", ["safetensors", "bin", "state_dict"])
def test_quantised_weights_are_refused(folder, dtype, only, how):
    held = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    odd = {key: value.to(dtype) if only in key else value for key, value in held.items()}
    options, source = {}, folder
    for file in folder.glob("model*"):
        file.unlink()
    if how == "safetensors":
        save_file(odd, folder / "model.safetensors", {"format": "pt"})
    elif how == "bin":
        torch.save(odd, folder / "pytorch_model.bin")
    else:
        options, source = {"state_dict": odd, "config": config("llama")}, None
    with pytest.raises(ValueError, match=r"are quantised, or no floating-point numbers: .*convert them"):
        MODELS["llama"].from_pretrained(source, **options)


def test_numbers_that_the_model_does_not_take_may_be_of_any_kind(folder):
    file = next(folder.glob("*.safetensors"))
    save_file({**load_file(file), "steps": torch.tensor([3])}, file, {"format": "pt"})
    change_map(folder, lambda places: {**places, "steps": file.name})
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("variant", [None, "half"])
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_files_are_found_as_transformers_finds_them(tmp_path, variant, shards, below):
    place = tmp_path / "below" if below else tmp_path
    made = model("llama")
    made.save_pretrained(place, variant=variant, max_shard_size="4KB" if shards else "1GB")
    options = {"variant": variant, **({"subfolder": "below"} if below else {})}
    MODELS["llama"].from_pretrained(tmp_path, **options)
    for file in place.glob("*.safetensors"):
        save_file({key: value.to(torch.int8) for key, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="are quantised"):
        MODELS["llama"].from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("given", ["float8_e4m3fn", "int8", "nonsense", "auto", 3, torch.complex64])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_model_is_of_floating_point_numbers(key, given):
    with pytest.raises(ValueError, match="dtype must be one of float16, bfloat16, float32, float64, got"):
        config("llama", **{key: given})


def test_a_configuration_cannot_ask_for_a_stack_without_end():
    with pytest.raises(ValueError, match="num_hidden_layers must be <= 10000, got 100000"):
        config("llama", num_hidden_layers=100_000)


def test_authors_weights_of_eight_bits_are_refused():
    from deqlm.hf import export_implicit_llm

    theirs = {"grad": {"stop": {"max_iter": 24, "rtol": 0.05, "keep": "best_f"}}}
    given, tensors = export_implicit_llm(model("llama", deq=theirs))
    quantised = {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r"quantised: .*float8_e4m3fn"):
        import_implicit_llm(given, quantised)
    assert common_dtype(quantised.values()) == torch.get_default_dtype()
