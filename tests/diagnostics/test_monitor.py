"""What a monitor collects over a training run, and where it writes it."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ, Equilibrium, Monitor, Stop, monitor
from models.families import VOCAB, make


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)
        self.first = DEQ(nn.Linear(4, 4), stop=Stop(rtol=1e-3))
        self.eq = Equilibrium(stop=Stop(max_iter=3, rtol=0), gradient="phantom")
        with torch.no_grad():
            for layer in (self.cell, self.first.layer):
                layer.weight.mul_(0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.eq(lambda z: torch.tanh(self.cell(z) + y), torch.zeros_like(y))


def trained(model: nn.Module, seen: Monitor, steps: int = 4) -> None:
    for seen.step in range(steps):
        model(torch.randn(5, 4)).square().sum().backward()
    with torch.no_grad():
        model(torch.randn(2, 4))


def test_every_call_is_kept_in_numbers() -> None:
    model = Model()
    with monitor(model) as seen:
        trained(model, seen)
    calls = seen.calls
    assert [call.module for call in calls] == ["first", "eq"] * 5
    assert [call.step for call in calls] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert [call.grad for call in calls] == [True] * 8 + [False] * 2
    first, eq = calls[:2]
    assert (first.rows, first.converged, first.failed, first.backward_converged) == (5, 1.0, 0, 1.0)
    assert first.products > 0
    assert first.residual <= 1e-3
    assert (eq.evaluations, eq.steps, eq.most, eq.converged, eq.backward_converged) == (7, 3.0, 3, 0.0, None)
    model(torch.randn(5, 4))
    assert len(seen.calls) == len(calls)
    assert seen.to_dict()["calls"][1]["evaluations"] == 7


def test_it_keeps_no_state_and_reads_in_bulk() -> None:
    deq = DEQ(nn.Tanh())
    seen = monitor(deq)
    for _ in range(300):
        with torch.no_grad():
            deq(torch.ones(2, 3))
    assert len(seen._entries) < 128
    assert all(entry.sol.z is None for entry in seen._entries)
    assert [call.step for call in seen.calls] == list(range(300))
    seen.close()


def test_copies_of_the_model_are_not_watched() -> None:
    model = Model()
    seen = monitor(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.randn(5, 4)).sum().backward()
    assert not seen.calls
    model(torch.randn(5, 4))
    assert len(seen.calls) == 2
    assert seen.calls[0].backward_converged is None
    seen.close()


def test_table_and_plot(tmp_path) -> None:
    model = Model()
    with monitor(model) as seen:
        assert str(seen) == "nothing was solved yet"
        with pytest.raises(ValueError, match="nothing was solved yet"):
            seen.plot(tmp_path / "no.svg")
        trained(model, seen)
    text = str(seen)
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "first" in text
    assert "no grad" in text
    assert seen.plot(tmp_path / "solves.svg").stat().st_size > 1000


def test_scalars_are_those_since_the_last_time() -> None:
    written = []
    model = Model()
    with monitor(model) as seen:
        trained(model, seen)
        seen.to_tensorboard(SimpleNamespace(add_scalar=lambda *given: written.append(given)))
        names = {name for name, _, _ in written}
        assert {"deqlm/first/evaluations", "deqlm/eval/eq/steps", "deqlm/first/backward_converged"} <= names
        assert {step for _, _, step in written} == {3}
        assert seen.scalars() == {}
        model(torch.randn(5, 4))
        assert seen.scalars()["eq/evaluations"] == 7.0


def test_a_language_model_and_rows_that_fail() -> None:
    model = make("llama")
    with monitor(model) as seen:
        model(torch.randint(VOCAB, (2, 5)), stop=Stop(max_iter=1, rtol=1e-9))
    assert seen.calls[0].module == "ImplicitLM"
    assert seen.calls[0].failed == 2
    empty = DEQ(nn.Tanh())
    with monitor(empty) as seen:
        empty(torch.zeros(0, 3))
    assert seen.calls[0].rows == 0


def test_the_callback_of_a_trainer() -> None:
    transformers = pytest.importorskip("transformers")
    model = Model()
    seen = monitor(model)
    callback = seen.trainer_callback()
    assert isinstance(callback, transformers.TrainerCallback)
    callback.on_step_begin(None, SimpleNamespace(global_step=7), None)
    model(torch.randn(5, 4))
    logs = {"loss": 1.0}
    callback.on_log(None, SimpleNamespace(global_step=8), None, logs=logs)
    assert logs["deqlm/eq/evaluations"] == 7.0
    assert seen.calls[0].step == 7
    seen.close()


def test_the_callback_of_lightning(monkeypatch) -> None:
    seen = monitor(Model())
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install lightning"):
        seen.lightning_callback()
    fake = ModuleType("pytorch_lightning")
    fake.Callback = type("Callback", (), {})
    fake.__spec__ = SimpleNamespace(name="pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", fake)
    callback = seen.lightning_callback()
    logged = {}
    callback.on_train_batch_start(SimpleNamespace(global_step=3), None, None, 0)
    assert seen.step == 3
    callback.on_train_batch_end(None, SimpleNamespace(log_dict=logged.update), None, None, 0)
    assert logged == {}
    seen.close()


def test_a_model_that_solves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="model must be a DEQ, an Equilibrium, an ImplicitLM, or one that holds some"):
        monitor(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="model must be a module, got function"):
        deqlm.monitor(lambda z: z)
