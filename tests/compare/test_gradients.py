"""`compare_gradients`: against a gradient made another way."""

from __future__ import annotations

import json

import pytest
import torch

from deqlm import GRADIENTS, Gradient, Stop, options, register_gradient
from deqlm.comparison import PROBLEMS, GradientComparison, Settings, compare_gradients
from deqlm.comparison.gradients.result import GradientEntry, GradientProblem
from deqlm.comparison.gradients.subject import GradientSubject

PROBLEM = "tanh:rho=0.5,unknowns=8"
FAST = {"repeats": 1, "batch": 3, "progress": False}


def test_every_registered_method_has_a_row_and_exact_ones_agree():
    (problem,) = compare_gradients([PROBLEM], **FAST).problems
    assert [e.gradient for e in problem.entries] == list(GRADIENTS)
    for entry in problem.entries:
        assert entry.outcome == "ran", entry
        assert entry.seconds is not None
        assert entry.vjps >= 1
        assert entry.evaluations > entry.vjps * (entry.gradient == "one_step")
        if GRADIENTS[entry.gradient].exact:
            assert entry.cosine == pytest.approx(1.0, abs=1e-6)
            assert entry.error < 1e-3
    one, four = problem.entry("one_step"), problem.entry("phantom")
    assert (one.vjps, four.vjps) == (1, 4)
    assert four.error < one.error
    assert one.cosine > 0


def test_the_truth_is_that_of_long_unrolling():
    case = PROBLEMS["tanh"](rho=0.5, unknowns=6).build(Settings(dtype=torch.float64, batch=2))
    subject = GradientSubject(case, 0, Stop())
    z = case.z0
    for _ in range(200):
        z = case.f(z)
    unrolled = torch.autograd.grad(z, case.parameters, subject.loss_weight)
    truth = subject.truth()
    assert truth is not None
    assert torch.allclose(truth, torch.cat([g.flatten() for g in unrolled]), rtol=1e-9, atol=1e-12)


def test_a_map_without_parameters_is_differentiated_by_an_input():
    def make(batch=3):
        return (lambda z: 0.5 * z.tanh()), torch.ones(batch, 2)

    (problem,) = compare_gradients([make], ["implicit"], **FAST).problems
    assert problem.parameters == 6
    assert problem.entry("implicit").error < 1e-4


def test_a_map_without_a_float64_fixed_point_says_what_it_needs():
    def make(dtype, batch):
        layer = torch.nn.Linear(4, 4, dtype=dtype)
        return (lambda z: layer(z).tanh()), torch.zeros(batch, 4, dtype=dtype)

    result = compare_gradients(make, "implicit", **FAST)
    text = "no fixed point found to 1e-12 in float64: f must run in float64 (return an nn.Module) and be deterministic"
    assert result.problems[0].message.startswith(text)
    assert "(.eval())" in str(result)
    assert max(map(len, str(result).splitlines())) <= 120


def test_failing_and_missing_methods_are_shown(registries):
    @register_gradient("crashes")
    @options
    class Crashes(Gradient):
        def connect(self, f, z, adjoint):
            raise RuntimeError("no gradient today")

    @register_gradient("absent")
    @options
    class Absent(Gradient):
        def connect(self, f, z, adjoint):
            raise ImportError("absent needs nothing_such")

    result = compare_gradients([PROBLEM], ["one_step", "crashes", "absent"], **FAST)
    assert [e.outcome for e in result.problems[0].entries] == ["ran", "raised", "not installed"]
    assert "no gradient today" in str(result)
    assert max(map(len, str(result).splitlines())) <= 120


def test_options_are_taken_and_counts_repeat():
    def counts():
        result = compare_gradients([PROBLEM], ["phantom:steps=2", "implicit"], **FAST)
        return [(e.gradient, e.evaluations, e.vjps, e.error) for e in result.problems[0].entries]

    assert counts() == counts()
    assert counts()[0][2] == 2


def test_the_plot_shows_what_a_step_pays():
    pytest.importorskip("matplotlib")
    from deqlm.comparison.gradients.plot import draw_costs

    entry = GradientEntry("implicit", "ran", cosine=1.0, error=1e-3, forward=[1.0, 2.0, 9.0], backward=[3.0, 1.0, 2.0])
    problem = GradientProblem("p", "title", entries=[entry])
    panel = draw_costs(GradientComparison([problem]).to_dict()).axes[0]
    assert panel.get_lines()[0].get_xdata() == [4000.0]
    assert panel.get_xlabel() == "forward + backward, ms"
    with pytest.raises(KeyError, match="did you mean 'implicit'"):
        problem.entry("implict")


def test_record_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    result = compare_gradients([PROBLEM], ["implicit", "one_step"], **FAST)
    names = {path.name for path in result.save(tmp_path)}
    assert names == {"gradients.json", "gradients.txt", "gradients.svg", "gradients.png"}
    record = json.loads((tmp_path / "gradients.json").read_text())
    assert record["problems"][0]["entries"][0]["gradient"] == "implicit"
    assert "environment" in record


def test_problems_are_found_by_label():
    comparison = GradientComparison(problems=[GradientProblem("tanh:rho=0.5", "one"), GradientProblem("linear", "two")])
    assert comparison["linear"].title == "two"
    with pytest.raises(KeyError, match=r"no problem 'tanh' in this comparison: did you mean 'tanh:rho=0\.5'"):
        comparison["tanh"]


def test_frozen_parameters_of_a_layer_of_ones_own_stay_frozen():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    layer[0].weight.requires_grad_(False)
    result = compare_gradients(lambda: (layer, torch.zeros(2, 3)), "one_step,implicit", repeats=1, progress=False)
    assert [entry.outcome for entry in result.problems[0].entries] == ["ran", "ran"]
    assert [p.requires_grad for p in layer.parameters()] == [False, True]
    assert all(p.grad is None for p in layer.parameters())
