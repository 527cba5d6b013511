"""Generators of accelerators, by the modules that torch names for them: here of devices that do not exist."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from deqlm.layers import VariationalDropout
from deqlm.training import get_random_state, set_random_state
from deqlm.wrap import generators
from deqlm.wrap.replay import Replay

CPU = torch.device("cpu")


class Twin:
    """Stands for torch's module of one kind of accelerator; what is drawn there is counted up."""

    def __init__(self) -> None:
        self.states: Counter[int] = Counter()
        self.reads = 0

    def get_rng_state(self, device: torch.device) -> Tensor:
        self.reads += 1
        return torch.tensor([self.states[device.index or 0]])

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.states[device.index or 0] = int(state)


@pytest.fixture(params=["xpu", "mps", "cuda", "mtia"])
def twin(request, monkeypatch) -> Twin:
    """A machine with two devices of a kind that torch knows."""
    made, real = Twin(), torch.get_device_module
    kind = torch.device(request.param)
    monkeypatch.setattr(torch, "get_device_module", lambda d: made if torch.device(d).type == kind.type else real(d))
    api = {
        "current_accelerator": lambda: kind,
        "is_available": lambda: True,
        "device_count": lambda: 2,
    }
    monkeypatch.setattr(torch, "accelerator", SimpleNamespace(**api))
    made.kind = kind
    return made


class Drawing(nn.Module):
    """A layer that draws a number on a device at each evaluation where it is in train()."""

    def __init__(self, twin: Twin, index: int = 0) -> None:
        super().__init__()
        self.twin, self.index = twin, index

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.twin.states[self.index] += 1
        return z + self.twin.states[self.index]


def test_noise_on_any_accelerator_is_drawn_once_per_call(twin):
    replay = Replay(Drawing(twin).train(), torch.device(twin.kind.type, 0))
    with replay:
        values = [replay(torch.zeros(1)).item() for _ in range(3)]
    assert values == [1, 1, 1]
    assert replay.noisy
    assert twin.states[0] == 1
    twin.states[0] = 7  # others have drawn since; a backward sees the noise of its call
    assert replay(torch.zeros(1)).item() == 1
    assert twin.states[0] == 7


def test_a_layer_on_several_devices_has_the_generator_of_each(twin, monkeypatch):
    layer = nn.Sequential(Drawing(twin, 0), Drawing(twin, 1)).train()
    places = {"0": SimpleNamespace(device=torch.device(twin.kind.type, 0)), "1": SimpleNamespace(device=CPU)}
    other = {"0": SimpleNamespace(device=torch.device(twin.kind.type, 1)), "1": None}
    replay_of = lambda: Replay(layer, CPU, layer)  # noqa: E731
    layer[0].__dict__["_parameters"], layer[1].__dict__["_parameters"] = places, other
    replay = replay_of()
    assert [str(device) for device in replay.devices] == [f"{twin.kind.type}:0", f"{twin.kind.type}:1"]
    layer[0].__dict__["_parameters"] = layer[1].__dict__["_parameters"] = {}
    with replay:
        assert [replay(torch.zeros(1)).item() for _ in range(3)] == [2, 2, 2]
    assert twin.states == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("layer", "training", "reads"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), False, False),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), True, False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), True, False),
        (nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0), True, False),
        (VariationalDropout(0.0, 2), True, False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), True, True),
        (nn.MultiheadAttention(2, 1, dropout=0.1), True, True),
        (nn.RReLU(), True, True),
        (VariationalDropout(0.1, 2), True, True),
        (type("Own", (nn.Module,), {"forward": lambda self, z: z})(), True, True),
    ],
)
def test_a_generator_is_read_where_a_part_in_training_mode_can_draw(twin, layer, training, reads):
    """Whatever captures a graph of an evaluation must not read it."""
    replay = Replay(nn.Identity(), torch.device(twin.kind.type, 0), layer.train(training))
    with replay:
        replay(torch.zeros(1))
    assert bool(twin.reads) is reads


def test_a_function_may_always_draw(twin):
    layer = nn.Linear(2, 2).eval()
    for f in (lambda z: z + 1, lambda z: layer(z)):
        twin.reads = 0
        Replay(f, torch.device(twin.kind.type, 0))
        assert twin.reads == 1


def test_a_device_whose_generators_torch_does_not_know_is_left_alone(twin):
    assert generators.accelerators(None, torch.device("meta")) == []
    del Twin.get_rng_state
    try:
        assert generators.accelerators(None, torch.device(twin.kind.type, 0)) == []
        assert generators.every_accelerator() == []
    finally:
        Twin.get_rng_state = _get


_get = Twin.get_rng_state


def test_a_checkpoint_holds_the_generators_of_every_accelerator(twin):
    twin.states.update({0: 3, 1: 5})
    state = get_random_state()
    twin.states.update({0: 9, 1: 9})
    set_random_state(state)
    assert twin.states == {0: 3, 1: 5}


def test_the_accelerator_is_not_started_by_asking(twin):
    twin.is_initialized = lambda: False
    assert generators.every_accelerator(started=True) == []
    assert len(generators.every_accelerator()) == 2


def test_where_there_is_no_accelerator_nothing_is_looked_at():
    assert generators.every_accelerator() == generators.accelerators(nn.Dropout(), CPU) == []
