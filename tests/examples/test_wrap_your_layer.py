"""The example runs from its command line, and its comparison is as fair as it says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples/wrap_your_layer"


def run(*arguments, cwd, extra_path=()):
    path = [*map(str, extra_path), str(ROOT), str(ROOT / "solvers"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, str(FOLDER / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def part(monkeypatch):
    """Import a module of the example, and forget it afterwards: its names are common ones."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield load
    for name in ("data", "model", "report"):
        sys.modules.pop(name, None)


def small_model(part, implicit):
    torch.manual_seed(0)
    return part("model").ByteModel(implicit=implicit, width=16, heads=2, length=12)


@pytest.mark.slow
def test_the_command_trains_compares_and_writes(tmp_path):
    done = run("--steps", "3", "--every", "2", "--plain-lrs", "0.003", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "here/result.json").read_text())
    wrapped, (plain,) = record["wrapped"], record["plain"]
    assert {"deqlm", "python", "threads"} <= record["environment"].keys()
    assert "torch" in record["environment"]["packages"]
    assert record["model"]["batch"] == 16
    assert wrapped["steps"] == 3
    assert plain["steps"] >= 3
    assert plain["cpu_seconds"] >= wrapped["cpu_seconds"]
    assert [point["step"] for point in wrapped["curve"]] == [2, 3]
    assert all(point["evaluations"] > 1 and point["adjoint"] > 1 for point in wrapped["curve"])
    for text in ("worst residual", "at equal steps the wrapped layer is", "at equal time the wrapped layer is", "took"):
        assert text in done.stdout


@pytest.mark.slow
def test_it_runs_without_tqdm_and_matplotlib(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("tqdm", "matplotlib"):
        (hidden / f"{name}.py").write_text(f"raise ImportError('{name} is hidden')\n")
    arguments = ("--steps", "1", "--plain-lrs", "0.003", "--out", "here")
    done = run(*arguments, cwd=tmp_path, extra_path=[hidden])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["result.json"]


@pytest.mark.slow
def test_help_teaches_and_bad_values_are_refused(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in ("fixed point", "evaluations", "adjoint", "--plain-lrs", "try:"):
        assert text in done.stdout
    refused = run("--steps", "0", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--steps must be >= 1, got 0" in refused.stderr


def test_both_models_have_the_same_parameters_and_weights(part):
    wrapped, plain = (list(small_model(part, implicit).parameters()) for implicit in (True, False))
    assert len(wrapped) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(wrapped, plain, strict=True))


def test_both_models_see_the_same_batches(part):
    data = part("data")
    text, _ = data.load_bytes()
    one, other = (data.Batches(text, 4, 12, seed=3) for _ in range(2))
    for _ in range(3):
        for a, b in zip(one.next(), other.next(), strict=True):
            assert torch.equal(a, b)


def test_targets_are_the_next_bytes_and_the_held_out_text_is_apart(part):
    data = part("data")
    train, held_out = data.load_bytes()
    inputs, targets = data.windows(train, torch.tensor([0, 7]), 12)
    assert torch.equal(inputs[1], train[7:19])
    assert torch.equal(targets[1], train[8:20])
    assert data.validation_windows(held_out, 12)[1].shape == (data.VALIDATION_WINDOWS, 12)
    assert 8 * len(held_out) < len(train) < 10 * len(held_out)


@pytest.mark.parametrize("implicit", [True, False])
def test_no_model_sees_the_future(part, implicit):
    model = small_model(part, implicit).eval()
    text = torch.randint(0, 256, (2, 12))
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    with torch.no_grad():
        before, after = model(text)[0], model(changed)[0]
    assert torch.allclose(before[:, :8], after[:, :8], atol=0.02)
    assert not torch.allclose(before[:, 8:], after[:, 8:], atol=0.1)


def test_the_wrapped_output_is_a_fixed_point_of_the_layer(part):
    module = part("model")
    model = small_model(part, implicit=True).eval()
    text = torch.randint(0, 256, (2, 12))
    with torch.no_grad():
        u = model.embedding(text) + model.position
        z = model.layer(u, src_mask=model.mask, is_causal=True)
        image = model.layer.layer(z + u, src_mask=model.mask, is_causal=True)
    relative = (image - z).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)
    assert (relative <= 1.01 * module.FORWARD.rtol).all()
