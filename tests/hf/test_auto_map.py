"""A saved folder is read by a process that has not imported the package, and needs no trust in one that has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from deqlm.hf import ImplicitConfig, ImplicitForCausalLM
from deqlm.hf.auto_map import classes_of
from hf.tiny import CONFIGS, FAMILIES, MODELS, model, tokens

BOTH = pytest.mark.parametrize("family", FAMILIES)

STRANGER = """
import sys

import torch
from transformers import AutoModel, AutoModelForCausalLM

folder, again, ids = sys.argv[1], sys.argv[2], torch.tensor([[1, 2, 3]])
assert "deqlm" not in sys.modules
model = {each.__name__: each for each in (AutoModel, AutoModelForCausalLM)}[sys.argv[3]]
model = model.from_pretrained(folder, trust_remote_code=True).eval()
torch.save(model(ids).last_hidden_state, again + ".pt")
model.save_pretrained(again)
print(type(model.config).__module__)
"""


def stranger(code, *arguments, home):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_a_process_without_the_package_reads_it_with_trust(family, auto, tmp_path):
    made, folder, again = model(family), tmp_path / "saved", tmp_path / "again"
    made.save_pretrained(folder)
    done = stranger(STRANGER, folder, again, auto, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("deqlm.hf.config")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(torch.load(f"{again}.pt"), made(ids).last_hidden_state)
    assert [path.name for path in again.glob("*.py")] == ["modeling_deqlm.py"]
    assert (again / "modeling_deqlm.py").read_text() == (folder / "modeling_deqlm.py").read_text()
    maps = [json.loads((place / "config.json").read_text())["auto_map"] for place in (folder, again)]
    assert maps[0] == maps[1]


@pytest.mark.slow
def test_a_process_without_the_package_must_trust(tmp_path):
    model("llama").save_pretrained(tmp_path / "saved")
    code = "import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=False)"
    done = stranger(code, tmp_path / "saved", home=tmp_path / "home")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


@BOTH
def test_where_the_package_is_imported_nobody_has_to_trust(family, tmp_path):
    made = model(family)
    made.save_pretrained(tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    text = (tmp_path / "modeling_deqlm.py").read_text()
    assert len(text.splitlines()) == 2
    assert {name.removeprefix("modeling_deqlm.") for name in names.values()} <= set(text.replace(",", " ").split())
    for trust in (None, False, True):
        config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(config) is CONFIGS[family]
        assert config == made.config
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(loaded) is MODELS[family]
        assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=trust)) is classes_of(config)["AutoModel"]
    ids = tokens()
    assert torch.equal(loaded(ids).logits, made(ids).logits)


@BOTH
def test_a_configuration_tells_its_classes_and_has_them_only_in_its_file(family, tmp_path):
    made = model(family)
    made.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    for each in (made.config, loaded):
        assert each.auto_map == json.loads((tmp_path / "config.json").read_text())["auto_map"]
        assert "auto_map" not in each.to_dict()


def test_code_of_others_that_a_configuration_names_is_kept(tmp_path):
    config = CONFIGS["llama"](hidden_size=16, auto_map={"AutoModelForSequenceClassification": "mine.Mine"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert loaded.to_dict()["auto_map"] == {"AutoModelForSequenceClassification": "mine.Mine"}
    assert sorted(loaded.auto_map) == [
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    ]


def test_transformers_copies_none_of_our_files_after_a_trusted_load(tmp_path):
    CONFIGS["llama"].register_for_auto_class()
    MODELS["llama"].register_for_auto_class("AutoModelForCausalLM")
    model("llama").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.py")] == ["modeling_deqlm.py"]


def test_a_class_that_no_auto_class_knows_is_copied_as_transformers_does(tmp_path):
    class Unknown(ImplicitConfig):
        model_type = "implicit_unknown"

    class UnknownModel(ImplicitForCausalLM):
        config_class = Unknown

    assert classes_of(type("Mine", (CONFIGS["llama"],), {})()) == {}
    Unknown.register_for_auto_class()
    UnknownModel.register_for_auto_class("AutoModelForCausalLM")
    assert Unknown._auto_class == "AutoConfig"
    assert UnknownModel._auto_class == "AutoModelForCausalLM"


def test_a_push_carries_the_import(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(ImplicitConfig, "push_to_hub", lambda self, **options: pushed.append(options))
    model("llama").config.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    assert pushed == [{"repo_id": "mine", "private": True}]
    assert (tmp_path / "mine" / "modeling_deqlm.py").is_file()
