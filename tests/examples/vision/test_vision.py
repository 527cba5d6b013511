"""The vision example: its images, rows that do not mix, weights made once per call, and what the penalty does."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def part(name):
    return import_module(f"examples.vision.{name}")


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "examples.vision", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def small(**options):
    torch.manual_seed(0)
    return part("model").Classifier((8, 12), **options)


def images(count, seed=0):
    return part("data").draw_images(count, torch.Generator().manual_seed(seed))


def clean(monkeypatch, count):
    monkeypatch.setattr(part("data"), "NOISE", 0.0)
    return images(count)


def test_images_come_by_seed_and_show_every_class():
    data = part("data")
    image, label = images(100)
    assert image.shape == (100, 1, data.SIDE, data.SIDE)
    assert torch.equal(image, images(100)[0])
    assert not torch.equal(image, images(100, seed=1)[0])
    assert set(label.tolist()) == set(range(data.CLASSES))


def test_patterns_run_along_rows_or_columns(monkeypatch):
    image, label = clean(monkeypatch, 60)
    columns = label % 2 == 1
    # neighbours within a shape are equal along the lines and opposite across them
    along = (image[..., 1:] * image[..., :-1]).sum(dim=(1, 2, 3))
    across = (image[..., 1:, :] * image[..., :-1, :]).sum(dim=(1, 2, 3))
    assert torch.equal(along < 0, columns)
    assert torch.equal(across > 0, columns)


def test_shapes_are_what_they_are_called_and_lie_within_the_image(monkeypatch):
    image, label = clean(monkeypatch, 90)
    inside = image[:, 0] != 0
    area = inside.sum(dim=(1, 2)).double()
    box = inside.any(dim=1).sum(dim=1) * inside.any(dim=2).sum(dim=1)
    share = area / box
    square, cross, frame = (share[label // 2 == shape] for shape in range(3))
    assert (square == 1).all()
    assert (cross < 0.65).all()
    y, x = (torch.arange(16.0).expand(90, 16, 16).mT, torch.arange(16.0).expand(90, 16, 16))
    centre = torch.stack([(where * inside).sum(dim=(1, 2)) / area for where in (y, x)]).round().long()
    filled = inside[torch.arange(90), centre[0], centre[1]]
    assert torch.equal(filled, label // 2 != 2)
    assert (frame < 1).all()


@pytest.mark.parametrize("widths", [(8, 12), (8, 12, 16)])
def test_the_state_has_a_map_per_resolution_and_is_a_fixed_point(widths):
    torch.manual_seed(0)
    model = part("model").Classifier(widths)
    u = model.inject(images(3)[0])
    z = model.deq(u)
    assert [leaf.shape for leaf in z] == [(3, width, 16 // 2**i, 16 // 2**i) for i, width in enumerate(widths)]
    assert model.deq.last.converged.all()
    flat, image = (torch.cat([leaf.flatten(1) for leaf in maps], dim=1) for maps in (z, model.deq.layer(z, u)))
    assert ((image - flat).norm(dim=1) <= 2e-3 * flat.norm(dim=1)).all()


def test_images_of_a_batch_do_not_mix():
    model = small()
    image, _ = images(3)
    other = image.clone()
    other[1:] = float("nan")
    with torch.no_grad():
        u, v = model.inject(image), model.inject(other)
        for here, there in zip(model.deq.layer(u, u), model.deq.layer(v, v), strict=True):
            assert torch.equal(here[0], there[0])
        # rows that are not finite leave the batch, and convolutions round by its size
        torch.testing.assert_close(model(image)[0][0], model(other)[0][0], rtol=0, atol=1e-4)


def test_weights_are_made_once_per_call(monkeypatch):
    model, made = small(), []
    norm = type(model.deq.layer.blocks[0].first.parametrizations.weight[0])
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, *given: made.append(self) or plain(self, *given))
    with torch.no_grad():
        model(images(2)[0])
    assert model.deq.last.steps.min() > 2
    assert len(made) == len(set(made)) == 6


def test_gradients_reach_every_parameter_and_the_penalty_none_of_the_read_out():
    model = small()
    image, label = images(4)
    logits, cost = model(image, penalty=True)
    assert cost > 0
    torch.nn.functional.cross_entropy(logits, label).backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.zero_grad()
    cost.backward()
    assert model.head.weight.grad is None
    assert model.deq.layer.blocks[0].second.parametrizations.weight.original0.grad.any()


def test_both_kinds_have_the_same_weights():
    pairs = zip(small().parameters(), small(implicit=False).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_few_steps_train_and_measure():
    train = part("train")
    for penalty in (0.0, 1.0):
        model = small()
        trained = train.train(model, name="few", steps=2, lr=0.003, penalty=penalty, seed=0)
        assert len(trained["curve"]) == 2
    found = train.test(model, seed=0)
    assert 0 <= found["accuracy"] <= 1
    assert found["radius"] > 0
    assert found["failed"] == 0


@pytest.mark.parametrize(
    ("option", "value", "rule"), [("steps", "0", ">= 1"), ("lr", "0", "> 0"), ("penalty", "-1", ">= 0")]
)
def test_a_bad_option_is_named(option, value, rule, capsys):
    with pytest.raises(SystemExit):
        part("__main__").parse([f"--{option}={value}"])
    assert f"--{option} must be {rule}, got" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_run_reaches_its_accuracy(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("--seed", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    plain, penalised, _ = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert plain["test"]["accuracy"] >= 0.9
    assert penalised["test"]["accuracy"] >= 0.9
    assert penalised["test"]["evaluations"] < plain["test"]["evaluations"]
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "evaluations.svg", "evaluations.png"}
    assert "spectral radius" in done.stdout


@pytest.mark.slow
def test_help_teaches():
    done = run("--help")
    assert done.returncode == 0
    for text in ("fixed point", "--penalty", "the table", "try:"):
        assert text in done.stdout
