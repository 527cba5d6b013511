"""The corpus is what it says, and the command trains, saves and generates in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from examples.language_model.corpus import Corpus, byte_tokenizer, read_text
from examples.language_model.families import FAMILIES
from examples.language_model.task import NextByte

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus():
    return Corpus.of(read_text(), byte_tokenizer(), length=16)


def test_tokenizer_gives_bytes_back():
    tokenizer = byte_tokenizer()
    text = "z = f(z), zß€\n\tzz  "
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_batches_depend_on_seed_and_step_alone(corpus):
    first = corpus.batch(0, 3, size=4, length=16)
    assert torch.equal(first, corpus.batch(0, 3, size=4, length=16))
    assert not torch.equal(first, corpus.batch(0, 4, size=4, length=16))
    assert not torch.equal(first, corpus.batch(1, 3, size=4, length=16))


def test_held_out_text_is_the_last_tenth(corpus):
    ids = torch.tensor(byte_tokenizer()(read_text())["input_ids"])
    assert torch.equal(torch.cat([corpus.train, corpus.held_out]), ids)
    assert len(corpus.held_out) == len(ids) // 10
    windows = corpus.windows(most=5, length=16)
    assert windows.shape == (5, 16)
    assert torch.equal(windows[0], corpus.held_out[:16])
    assert torch.equal(windows[-1], corpus.held_out[-16:])


def test_short_text_is_refused():
    with pytest.raises(ValueError, match="at least 160 tokens"):
        Corpus.of("too short", byte_tokenizer(), length=16)


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(tmp_path / "text")


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_is_bits_per_byte(name, corpus):
    torch.manual_seed(0)
    model = FAMILIES[name].make().eval()
    with torch.no_grad():
        result = NextByte(corpus, 16).evaluate(model.lm, 0)
    assert 7 < result["bits_per_byte"] < 9  # 8 is guessing
    assert result["most_steps"] >= result["steps"] >= 1


@pytest.mark.slow
def test_command(tmp_path):
    command = [sys.executable, "-m", "examples.language_model", "--steps", "6", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "solvers"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in FAMILIES:
        assert f"{name}: " in done.stdout
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == f"implicit_{name}"
    assert done.stdout.count("in a new process") == 2
