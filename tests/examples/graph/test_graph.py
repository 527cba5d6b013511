"""The graph example: its chains, the bound it converges by, and how far each model hears."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from deqlm.layers import lipschitz_bound

ROOT = Path(__file__).resolve().parents[3]


def part(name):
    return import_module(f"examples.graph.{name}")


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "examples.graph", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def dense(graph, nodes):
    return graph.gather(torch.eye(nodes)[None])[0]


def test_a_chain_hands_on_what_stands_on_it():
    assert torch.equal(dense(part("data").chain(5), 5), torch.diag(torch.ones(4), -1))
    assert torch.equal(dense(part("data").chain(1), 1), torch.zeros(1, 1))


def test_no_normalised_graph_amplifies():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        edges = torch.randint(7, (2, 30), generator=generator)
        matrix = dense(part("data").normalized(*edges, 7), 7)
        assert torch.linalg.matrix_norm(matrix, 2) <= 1 + 1e-6


def test_only_the_first_node_knows_the_label():
    data = part("data")
    x, label = data.labelled_chains(50, 6, torch.Generator().manual_seed(1))
    again, _ = data.labelled_chains(50, 6, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)
    assert torch.equal(x[:, 0].argmax(dim=-1), label)
    assert torch.equal(x.sum(dim=(1, 2)), torch.ones(50))
    assert set(label.tolist()) == set(range(data.CLASSES))


def test_the_implicit_layer_is_solved_and_its_bound_holds():
    torch.manual_seed(0)
    model, data = part("model").ImplicitGNN(8, 0.9), part("data")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    assert lipschitz_bound(model.deq.layer.mix) <= 0.9
    x, _ = data.labelled_chains(3, 20, torch.Generator().manual_seed(0))
    u, graph = model.enter(x), data.chain(20)
    z = torch.zeros_like(u)
    for _ in range(20):
        z = model.deq.layer(z, u, graph)
    torch.testing.assert_close(model.deq(u, graph), z)
    assert model.deq.last.converged.all()


def test_the_end_of_a_chain_is_solved_however_much_the_message_fades():
    torch.manual_seed(0)
    model, data = part("model").ImplicitGNN(8, 0.5), part("data")
    x, _ = data.labelled_chains(3, 40, torch.Generator().manual_seed(0))
    u, graph = model.enter(x), data.chain(40)
    z = torch.zeros_like(u)
    for _ in range(40):
        z = model.deq.layer(z, u, graph)
    assert (z[:, -1].norm(dim=-1) < 1e-9 * z[:, 0].norm(dim=-1)).all()
    error = (model.deq(u, graph) - z)[:, -1].norm(dim=-1)
    assert (error <= 1e-3 * z[:, -1].norm(dim=-1)).all()


@pytest.mark.parametrize("depth", [1, 4])
def test_an_explicit_model_hears_as_far_as_it_is_deep_and_the_implicit_one_farther(depth):
    torch.manual_seed(0)
    model, data = part("model"), part("data")
    explicit, implicit = model.ExplicitGNN(8, depth), model.ImplicitGNN(8, 0.9)
    for hops, heard in ((depth, True), (depth + 1, False)):
        x, _ = data.labelled_chains(8, hops + 1, torch.Generator().manual_seed(0))
        graph = data.chain(hops + 1)
        assert (explicit(x, graph).std(dim=0).max() > 1e-3) == heard
        assert implicit(x, graph).std(dim=0).max() > 1e-3


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_explicit_models_have_as_many_parameters_and_no_more(depth):
    model = part("model")
    most = model.count(model.ImplicitGNN(32, 0.9))
    width = model.explicit_width(depth, most)
    assert model.count(model.ExplicitGNN(width, depth)) <= most < model.count(model.ExplicitGNN(width + 1, depth))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model, data = part("model").ImplicitGNN(8, 0.9), part("data")
    x, label = data.labelled_chains(4, 9, torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(x, data.chain(9)), label).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert model.deq.last.adjoint.converged.all()


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("steps", "0", ">= 1"),
        ("longest", "1", ">= 2"),
        ("width", "0", ">= 1"),
        ("bound", "1", "in (0, 1)"),
        ("depths", "0", ">= 1"),
        ("lr", "0", "> 0"),
    ],
)
def test_a_bad_option_is_named(option, value, rule, capsys):
    with pytest.raises(SystemExit):
        part("__main__").parse([f"--{option}", value])
    said = capsys.readouterr().err
    assert f"--{option} must be {rule}, got" in said


@pytest.mark.slow
def test_the_whole_run_hears_the_label_at_eight_times_the_trained_length(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("--seed", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    implicit, *explicit = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert all(test["accuracy"] >= 0.99 and test["failed"] == 0 for test in implicit["tests"])
    for model in explicit:
        assert model["parameters"] <= implicit["parameters"]
        assert all(test["accuracy"] < 0.4 for test in model["tests"] if test["nodes"] > model["depth"] + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "chains.svg", "chains.png"}
    assert "explicit, 16 layers" in done.stdout


@pytest.mark.slow
def test_help_teaches():
    done = run("--help")
    assert done.returncode == 0
    for text in ("by construction", "--bound", "the table:", "try:"):
        assert text in done.stdout
