"""The report: causes, suggestions, sick maps that raise nothing, modules left as they were."""

from __future__ import annotations

import copy
import json
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

import deqlm
from deqlm.diagnostics import Cause, Probes

X = torch.linspace(-1, 1, 24).reshape(4, 6)


def boom(z):
    if float(z.abs().max()) > 2:
        raise RuntimeError("too large")
    return 1.5 * z + 0.3


SICK = {
    Cause.NONFINITE: (lambda z: torch.sqrt(z - 1), torch.zeros(2, 3)),
    Cause.RAISED: (boom, torch.zeros(2, 3)),
    Cause.SINGULAR: (lambda z: z + 1, torch.zeros(2, 3)),
    Cause.DIVERGENCE: (lambda z: z * z + 2 * z + 0.2, torch.ones(2, 3)),
    Cause.TWO_CYCLE: (lambda z: 3.2 * z * (1 - z), torch.full((2, 3), 0.3)),
    Cause.SLOW_CONTRACTION: (lambda z: 0.99 * z + 1, torch.zeros(2, 3)),
    Cause.TOO_FEW_EVALUATIONS: (lambda z: 0.85 * z + 1, torch.zeros(2, 3)),
}


@pytest.mark.parametrize("cause", SICK, ids=lambda cause: cause.value)
def test_sick_maps_are_diagnosed_and_raise_nothing(cause):
    f, z0 = SICK[cause]
    stop = deqlm.Stop(max_iter=20 if cause is Cause.TOO_FEW_EVALUATIONS else 100)
    found = deqlm.diagnose(f, z0, solver="fixed_point", stop=stop)
    assert found.cause is cause
    assert not found.healthy
    assert found.suggestion.text
    text = str(found)
    assert cause.value in text
    assert cause.text in " ".join(text.split())
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 120
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "cause", [Cause.TWO_CYCLE, Cause.SLOW_CONTRACTION, Cause.TOO_FEW_EVALUATIONS], ids=lambda cause: cause.value
)
def test_what_worked_works_again(cause):
    f, z0 = SICK[cause]
    stop = deqlm.Stop(max_iter=20)
    found = deqlm.diagnose(f, z0, solver="fixed_point", stop=stop)
    assert found.suggestion.worked
    assert "tried: converged in" in found.suggestion.tried
    options = {"solver": "fixed_point", "stop": stop, **found.suggestion.options}
    assert bool(deqlm.solve(f, z0, **options).converged.all())


def test_a_solver_that_does_not_fit():
    stop = deqlm.Stop(max_iter=60)
    found = deqlm.diagnose(lambda z: 0.5 * z + 1, torch.zeros(1, 2), solver=deqlm.FixedPoint(damping=0.01), stop=stop)
    assert found.cause is Cause.SOLVER_MISFIT
    assert found.suggestion.options == {"solver": deqlm.FixedPoint()}
    assert found.suggestion.worked


def test_a_healthy_deq_of_any_shape():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    found = deqlm.diagnose(deqlm.DEQ(layer), torch.randn(2, 5, 16))
    assert found.healthy
    assert found.suggestion is None
    assert found.converged
    assert all(a >= b for a, b in zip(found.steps, (len(c) for c in found.trace), strict=True))
    assert 0 < found.contraction.radius[0] < 1


def test_the_numbers_are_those_of_the_solve():
    deq = deqlm.DEQ(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    _, sol = deq(X, with_stats=True)
    found = deqlm.diagnose(deq, X)
    assert found.steps == tuple(sol.steps.tolist())
    assert found.residual == pytest.approx(tuple(sol.residual.tolist()))
    assert found.status == ("CONVERGED",) * 4
    assert [curve[-1] for curve in found.trace] == pytest.approx(sol.residual.tolist())


def test_arguments_reach_the_layer_and_the_map():
    deq = deqlm.DEQ(lambda z, gain, *, shift: torch.tanh(gain * z + shift))
    found = deqlm.diagnose(deq, X, 0.25, shift=1.0)
    assert found.healthy
    assert max(found.contraction.radius) <= 0.25
    scaled = deqlm.diagnose(lambda z, gain: gain * z + 1, torch.zeros(2, 3), args=(torch.tensor(0.5),))
    assert scaled.contraction.radius == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("state", "f", "options"),
    [
        (torch.zeros(()), torch.cos, {}),
        (torch.zeros(5), torch.cos, {"batch_dims": 0}),
        (torch.zeros(0, 3), torch.cos, {}),
        (torch.zeros(2, 0), torch.cos, {}),
        (torch.zeros(2, 3, dtype=torch.complex64), lambda z: 0.5j * z + 1, {}),
        (torch.zeros(2, 3, dtype=torch.bfloat16), lambda z: 0.5 * z + 1, {"stop": deqlm.Stop(rtol=1e-2)}),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}, lambda s: {"a": 0.5 * s["a"] + s["b"], "b": 0 * s["b"]}, {}),
        (torch.zeros(2, 3), lambda z: 0.5 * z.detach() + 1, {}),
        (torch.zeros(2, 3), torch.ones_like, {}),
    ],
)
def test_states_of_every_form(state, f, options):
    found = deqlm.diagnose(f, state, **options)
    assert found.healthy
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


def test_a_budget_is_judged_by_the_default_tolerance():
    layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    stop = deqlm.Stop(max_iter=3, rtol=0)
    found = deqlm.diagnose(deqlm.DEQ(layer, solver="fixed_point", gradient="phantom", stop=stop), X)
    assert found.budget
    assert found.cause is Cause.TOO_FEW_EVALUATIONS
    assert "a budget tests nothing" in " ".join(str(found).split())


def test_a_row_that_starts_at_nan_is_named():
    x = X.clone()
    x[2] = torch.nan
    found = deqlm.diagnose(deqlm.DEQ(nn.Sequential(nn.Linear(6, 6), nn.Tanh())), x)
    assert found.cause is Cause.NONFINITE
    assert found.passed == (True, True, False, True)
    assert "rows 2" in found.suggestion.text


def test_what_copes_is_still_told_of():
    found = deqlm.diagnose(lambda z: 1 - 1.5 * z, torch.zeros(2, 3))
    assert found.healthy
    assert found.character is Cause.TWO_CYCLE
    assert "beware" in str(found)


class Counting(nn.Module):
    """A layer with everything that an evaluation may move."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.drop = nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, z):
        self.calls += 1
        return self.drop(torch.tanh(self.linear(self.norm(z)))) + 0.01 * float(np.random.rand()) * random.random()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", ["deq", "module", "closure"])
def test_nothing_is_left_behind(training, wrap):
    layer = Counting().train(training)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    deq = deqlm.DEQ(layer)
    deq.train(training)
    module = deq if wrap == "deq" else layer
    target = {"deq": deq, "module": layer, "closure": lambda z: layer(z) * 0.5}[wrap]
    before = copy.deepcopy(module.state_dict())
    buffers = {name: id(b) for name, b in module.named_buffers()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    x = X.clone()
    deqlm.diagnose(target, x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert np.random.get_state()[2] == states[3]
    assert torch.equal(x, X)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: id(b) for name, b in module.named_buffers()} == buffers
    assert all(m.training is training for m in layer.modules())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in layer.parameters())
    assert torch.is_grad_enabled()


def test_the_same_in_any_grad_mode():
    deq = deqlm.DEQ(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    plain = deqlm.diagnose(deq, X).to_dict()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again = deqlm.diagnose(deq, X).to_dict()
        assert {**again, "seconds": 0} == {**plain, "seconds": 0}


def test_an_applied_suggestion_shares_the_parameters():
    layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    deq = deqlm.DEQ(layer, solver="fixed_point", stop=deqlm.Stop(max_iter=4), on_failure="ignore").eval()
    made = deqlm.diagnose(deq, X).suggestion.apply(deq)
    assert isinstance(made, deqlm.DEQ)
    assert made.layer is layer
    assert not made.training
    assert deq.solve.stop.max_iter == 4
    assert bool(made(X, with_stats=True)[1].converged.all())
    assert list(made.state_dict()) == list(deq.state_dict())


def test_suggestions_can_be_left_untried():
    f, z0 = SICK[Cause.SLOW_CONTRACTION]
    found = deqlm.diagnose(f, z0, solver="fixed_point", probes=Probes(suggest=False))
    assert found.suggestion.worked is None
    assert found.suggestion.options
    late = deqlm.diagnose(f, z0, solver="fixed_point", probes=Probes(seconds=1e-9))
    assert "not tried" in late.suggestion.tried


def test_bad_requests_are_refused():
    with pytest.raises(TypeError, match="did you mean 'solver'"):
        deqlm.diagnose(torch.cos, torch.zeros(1, 1), solvr="anderson")
    with pytest.raises(TypeError, match=r"args=\(\.\.\.\)"):
        deqlm.diagnose(torch.cos, torch.zeros(1, 1), 3)
    with pytest.raises(TypeError, match="DEQ or a map"):
        deqlm.diagnose(3, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="probes"):
        deqlm.diagnose(torch.cos, torch.zeros(1, 1), probes=40)
    with pytest.raises(ValueError, match="shape"):
        deqlm.diagnose(lambda z: z[:, :1], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="suggest"):
        Probes(suggest="never")


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    f, z0 = SICK[Cause.TWO_CYCLE]
    for solver, name in (("fixed_point", "a.png"), ("anderson", "b.svg")):
        path = deqlm.diagnose(f, z0, solver=solver).plot(tmp_path / name)
        assert path.stat().st_size > 2000
    assert "plain iteration" in (tmp_path / "b.svg").read_text()


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    found = deqlm.diagnose(torch.cos, torch.zeros(1, 1))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"deqlm\[compare\]"):
        found.plot(tmp_path / "a.png")
