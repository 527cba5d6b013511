"""A trained model is evaluated at other lengths, in other modes, with more evaluations, and by lm-eval."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from examples.pretrain.byte_words import byte_words
from examples.pretrain.data import prepare
from examples.pretrain.documents import ByteTokenizer, CorpusError
from examples.pretrain.evaluate import agreement, budgets, lengths, load, main, measure, score_tasks, windows
from training.pretraining import settings, text, training

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trained")
    training(made, settings(8, family="llama3")).run()
    return made


def test_bytes_have_the_same_ids_in_transformers():
    every = bytes(range(256)).decode("latin1")
    assert byte_words()(every)["input_ids"] == ByteTokenizer().encode(every)
    assert byte_words().decode(ByteTokenizer().encode("a b\n")) == "a b\n"


def test_numbers_are_those_of_a_direct_computation(folder):
    model, _ = load(folder / "run/model")
    shards = prepare(str(text(folder)), ByteTokenizer(), folder / "shards")
    ids = windows(shards, 20, 3)
    assert ids.flatten().tolist() == shards.window(shards.count - 60, 60).tolist()
    found = measure(model.lm, ids, shards.end, mode="simultaneous")
    with torch.no_grad():
        logits = torch.cat([model.lm(row[None], mode="simultaneous", on_failure="ignore").logits for row in ids])
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
    assert found["perplexity"] == pytest.approx(math.exp(want), rel=1e-6)
    rows = lengths(model.lm, shards, [16, 32], ["simultaneous", "sequential"], 64)
    assert [(row["length"], row["mode"]) for row in rows] == [
        (16, "simultaneous"), (16, "sequential"), (32, "simultaneous"), (32, "sequential")
    ]  # fmt: skip
    shares = agreement(model.lm, ids, ["simultaneous", "sequential"])
    assert shares["simultaneous"] == 100
    assert 0 <= shares["sequential"] <= 100
    table = budgets(model.lm, shards, 16, 32, (1, 64))
    assert [row["evaluations"] for row in table] == [1, 64]
    with pytest.raises(CorpusError, match="a window of 100000 was asked for"):
        windows(shards, 100000, 1)


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_plot(folder, capsys):
    given = ["--lengths", "16", "32", "--tokens", "64", "--source", str(text(folder)), "--data", str(folder / "d")]
    assert main([str(folder / "run/model"), *given]) == 0
    assert "perplexity" in capsys.readouterr().out
    found = json.loads((folder / "run/model/evaluation.json").read_text())
    assert set(found) == {"lengths", "agreement", "budgets"}
    assert (folder / "run/model/evaluations.svg").exists()
    assert main([str(folder / "nowhere"), *given]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_scores_the_same_in_every_batch(folder, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra finetune")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"context": f"{n} squared is", "choices": [f" {n * n}", f" {n + 1}"]} for n in range(6)]
    (tmp_path / "squares.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "squares",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "squares.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "squares.yaml").write_text(json.dumps(task))
    model, words = load(folder / "run/model")
    scores = [score_tasks(model, words, ["squares"], batch=batch, include=tmp_path)["squares"] for batch in (1, 8)]
    assert scores[0] == scores[1]
    assert 0 <= scores[0]["acc,none"] <= 1
