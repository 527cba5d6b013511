"""Files and tensors: folders as users have them, and what is damaged, pickled or of another model."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from deqlm.hf import import_implicit_llm
from hf.authors_reference import config, state

TABLES = ("word_emb.emb.weight", "criterion.decoder.weight")


@pytest.fixture
def given():
    return config("llama")


@pytest.fixture
def tensors(given):
    return state(given)


def untied(tensors):
    """Return tensors as safetensors wants them, without the second name of a table."""
    return {name: t for name, t in tensors.items() if name != TABLES[1]}


def shard(folder, tensors, suffix, save):
    cut = len(tensors) // 2
    parts = {f"part-1{suffix}": list(tensors)[:cut], f"part-2{suffix}": list(tensors)[cut:]}
    for name, kept in parts.items():
        save({key: tensors[key] for key in kept}, folder / name)
    return {"weight_map": {key: name for name, kept in parts.items() for key in kept}}


def write(folder, given, tensors, how):
    (folder / "config.json").write_text(json.dumps(given))
    if how == "safetensors":
        save_file(untied(tensors), folder / "model.safetensors")
    elif how == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif how == "pt":
        torch.save(tensors, folder / "step_100.pt")
    elif how == "bin shards":
        index = shard(folder, tensors, ".bin", torch.save)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        index = shard(folder, untied(tensors), ".safetensors", save_file)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("how", ["safetensors", "bin", "pt", "bin shards", "safetensors shards"])
def test_folders_and_files_are_read(given, tensors, tmp_path, how):
    write(tmp_path, given, tensors, how)
    model, report = import_implicit_llm(tmp_path)
    want, _ = import_implicit_llm(given, tensors)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), want.parameters(), strict=True))
    assert "tensors, float32" in report.weights
    alone, report = import_implicit_llm(tmp_path / "config.json")
    assert report.weights == "none given, initial values"
    assert not torch.equal(alone.lm.embedding.weight, model.lm.embedding.weight)
    if "shards" not in how:
        file = next(p for p in tmp_path.iterdir() if p.suffix != ".json")
        both, _ = import_implicit_llm(str(tmp_path / "config.json"), file)
        assert torch.equal(both.lm.embedding.weight, model.lm.embedding.weight)


def test_a_folder_without_weights_gives_initial_ones(given, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(given))
    assert import_implicit_llm(tmp_path)[1].weights == "none given, initial values"
    with pytest.raises(ValueError, match="a folder that holds weights"):
        import_implicit_llm(given, tmp_path)


def test_the_dtype_is_that_of_the_tensors(given, tensors):
    half, report = import_implicit_llm(given, {name: t.bfloat16() for name, t in tensors.items()})
    assert half.dtype == torch.bfloat16
    assert "bfloat16" in report.weights
    mixed, _ = import_implicit_llm(given, {n: t.double() if "norm" in n else t for n, t in tensors.items()})
    assert {p.dtype for p in mixed.parameters()} == {torch.float64}


def test_missing_unexpected_and_wrong_tensors_are_named(given, tensors):
    missing = tensors.pop("backbone.layers.1.mixer.wk.weight_g")
    tensors["backbone.extra"] = missing
    tensors["backbone.norm_f.weight"] = torch.zeros(3)
    tensors["backbone.layers.0.norm.weight"] = torch.ones(16, dtype=torch.int8)
    with pytest.raises(ValueError, match="the tensors are not those of") as error:
        import_implicit_llm(given, tensors)
    for part in (
        "missing: backbone.layers.1.mixer.wk.weight_g",
        "not expected: backbone.extra",
        "backbone.norm_f.weight (3,) instead of (16,)",
        "not floating-point: backbone.layers.0.norm.weight (torch.int8)",
    ):
        assert part in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(given):
    for other in (config("mamba2"), config("llama", "explicit")):
        with pytest.raises(ValueError, match=r"missing: .* not expected: "):
            import_implicit_llm(given, state(other))
    with pytest.raises(ValueError, match=r"instead of \(37, 16\)"):
        import_implicit_llm(given, state(given) | {name: torch.zeros(38, 16) for name in TABLES})


def test_a_tied_head_must_be_the_embedding_table(given, tensors):
    tensors[TABLES[1]] = tensors[TABLES[1]] + 1
    with pytest.raises(ValueError, match=r"equal to word_emb\.emb\.weight"):
        import_implicit_llm(given, tensors)
    del tensors[TABLES[1]]
    model, _ = import_implicit_llm(given, tensors)
    assert model.lm.head.weight is model.lm.embedding.weight


def test_numbers_that_are_not_finite_are_reported(given, tensors):
    tensors["backbone.norm_f.weight"][2] = torch.nan
    _, report = import_implicit_llm(given, tensors)
    assert any("not finite: backbone.norm_f.weight" in note for note in report.notes)


@pytest.mark.parametrize("how", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 64 + b[64:]])
def test_damaged_files_are_refused(given, tensors, tmp_path, how, damage):
    write(tmp_path, given, tensors, how)
    file = next(p for p in tmp_path.iterdir() if p.suffix != ".json")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="cannot be read"):
        import_implicit_llm(tmp_path)


class Trap:
    """An object that leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_pickled_objects_are_refused_and_never_run(given, tensors, tmp_path, save):
    (tmp_path / "config.json").write_text(json.dumps(given))
    save(tensors | {"backbone.norm_f.weight": Trap(tmp_path / "mark")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled objects, which are refused"):
        import_implicit_llm(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_indexes_that_lie_are_refused(given, tensors, tmp_path):
    write(tmp_path, given, tensors, "safetensors shards")
    index = tmp_path / "model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]
    for changed, message in (
        ({**right, "more": "part-1.safetensors"}, "none for more"),
        ({**right, "more": "../other.safetensors"}, "in the same folder"),
        ({}, "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            import_implicit_llm(tmp_path)
    index.write_text(json.dumps({"weight_map": {**right, "more": "part-3.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"part-3\.safetensors"):
        import_implicit_llm(tmp_path)


def test_other_bad_files(given, tensors, tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration"):
        import_implicit_llm(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights"):
        import_implicit_llm(given, tmp_path / "none.bin")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        import_implicit_llm(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="a JSON object"):
        import_implicit_llm(tmp_path)
    with pytest.raises(ValueError, match=r"the values of state_dict must be tensors.*step: int"):
        import_implicit_llm(given, tensors | {"step": 3})
    torch.save({"model": tensors}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="pass the inner mapping"):
        import_implicit_llm(given, tmp_path)
    torch.save(tensors, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"\['a.pt', 'b.pt'\]"):
        import_implicit_llm(given, tmp_path)
