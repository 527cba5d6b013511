"""Calls as graphs, on the CPU by a twin that records, replays and forbids what a CUDA graph does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop
from deqlm.testing.graph_twin import graphs_on_the_cpu

BUDGET = Stop(max_iter=8, rtol=0)
UNREAD = Stop(max_iter=8, check_every=0)
CAPTURED = ["fixed_point", "anderson", "broyden", "momentum", "reversible", "df_sane", "alternating_anderson"]


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def pair(inner: nn.Module, solver: str = "fixed_point", stop: Stop = BUDGET, **options) -> tuple[DEQ, DEQ]:
    """Return a module that captures and one that does not, of the same layer, in eval()."""
    common = {"stop": stop, "gradient": "one_step", "on_failure": "ignore", **options}
    engine = {"impl": "torch"} if "impl" in deqlm.SOLVERS[solver].__dataclass_fields__ else {}
    eager = DEQ(inner, solver={"name": solver, **engine}, **common)
    return DEQ(inner, solver=solver, graph=True, **common).eval(), eager.eval()


@pytest.mark.parametrize("solver", [*CAPTURED[:3], *(pytest.param(s, marks=pytest.mark.slow) for s in CAPTURED[3:])])
@pytest.mark.parametrize("stop", [BUDGET, UNREAD], ids=["budget", "unread"])
@torch.no_grad()
def test_a_replay_is_the_call(solver, stop):
    captured, eager = pair(layer(), solver, stop)
    with graphs_on_the_cpu() as made:
        for rows in (3, 3, 2, 3):
            x = torch.randn(rows, 6)
            y, sol = captured(x, with_stats=True)
            want, told = eager(x, with_stats=True)
            assert torch.equal(y, want)
            for name in ("residual", "relative", "steps", "status"):
                assert torch.equal(getattr(sol, name), getattr(told, name))
            assert sol.cost == told.cost
    assert [twin.replays for twin in made] == [3, 1], "one graph for each shape"


@torch.no_grad()
def test_a_result_is_left_alone_by_later_calls():
    captured, _ = pair(layer())
    with graphs_on_the_cpu():
        first = captured(torch.ones(2, 6))
        kept = first.clone()
        captured(torch.zeros(2, 6))
    assert torch.equal(first, kept)


@torch.no_grad()
def test_parameters_that_change_are_seen():
    inner = layer()
    captured, eager = pair(inner)
    x = torch.randn(2, 6)
    with graphs_on_the_cpu() as made:
        captured(x)
        inner[0].weight.mul_(0.5)
        assert torch.equal(captured(x), eager(x))
        assert len(made) == 1
        inner[0].weight = nn.Parameter(0.5 * inner[0].weight)
        assert torch.equal(captured(x), eager(x))
        assert len(made) == 2
        captured.double(), eager.double()
        assert torch.equal(captured(x.double()), eager(x.double()))


class Scaled(nn.Module):
    def forward(self, z: Tensor, scale: Tensor, *, power: int = 1) -> Tensor:
        return torch.tanh(scale * z) ** power


@torch.no_grad()
def test_arguments_are_copied_in_and_settings_recorded():
    captured, eager = pair(Scaled())
    x = torch.randn(2, 6)
    with graphs_on_the_cpu() as made:
        for scale, options in ((0.3, {}), (0.6, {}), (0.6, {"power": 2})):
            given = (x, torch.tensor(scale))
            assert torch.equal(captured(*given, **options), eager(*given, **options))
        assert len(made) == 2
        assert torch.equal(captured(x, torch.ones(()), stop=UNREAD), eager(x, torch.ones(()), stop=UNREAD))
        assert len(made) == 3
        start = torch.ones_like(x)
        assert torch.equal(captured(x, torch.ones(()), start=start), eager(x, torch.ones(()), start=start))


@torch.no_grad()
def test_no_more_than_eight_graphs_are_held():
    captured, _ = pair(layer())
    with graphs_on_the_cpu() as made:
        for rows in (*range(1, 11), 10, 1):
            captured(torch.randn(rows, 6))
    assert captured.graphs.size == 8
    assert len(made) == 11, "the first one had gone"


class Reads(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z if bool(z.abs().max() < 10) else torch.zeros_like(z)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(z)


@pytest.mark.parametrize(
    ("inner", "error", "message"),
    [
        (Reads(), RuntimeError, r"cannot be captured \(HostReadError.*_local_scalar_dense.*graph=False"),
        (nn.Sequential(nn.Dropout(0.1), nn.Tanh()), ValueError, "graph must be False for a layer that draws noise"),
        (Counts(), ValueError, "graph must be False for a layer that moves buffers"),
    ],
    ids=["reads", "noise", "buffers"],
)
@torch.no_grad()
def test_what_cannot_be_captured_is_told_and_leaves_nothing(inner, error, message):
    captured = DEQ(inner, solver="fixed_point", stop=BUDGET, graph=True).train()
    with graphs_on_the_cpu():
        for _ in range(2):
            with pytest.raises(error, match=message):
                captured(torch.zeros(2, 6))
        assert captured.graphs.size == 0
    captured.graph = False
    assert captured(torch.zeros(2, 6)).shape == (2, 6)


@torch.no_grad()
def test_an_error_of_the_layer_in_the_first_call_is_its_own():
    class Fails(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise KeyError("mine")

    captured = DEQ(Fails(), stop=BUDGET, graph=True)
    with graphs_on_the_cpu(), pytest.raises(KeyError, match="mine"):
        captured(torch.zeros(2, 6))


@torch.no_grad()
def test_bad_settings():
    x = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="graph must be False unless all tensors are on one cuda device, got cpu"):
        DEQ(layer(), stop=BUDGET, graph=True)(x)
    with pytest.raises(ValueError, match=r"stop must be a budget .* got Stop\("):
        DEQ(layer(), graph=True)(x)
    with pytest.raises(ValueError, match="graph must be False with causal=True"):
        DEQ(layer(), causal=True, graph=True)
    with pytest.raises(ValueError, match="graph must be True or False"):
        DEQ(layer(), graph="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="graph must be False with states or on_evaluation"):
        DEQ(layer(), stop=BUDGET, graph=True)(x, states=[1])


@torch.no_grad()
def test_failures_are_reported_behind_the_graph():
    captured = DEQ(Scaled(), solver="fixed_point", stop=BUDGET, graph=True, on_failure="raise").eval()
    with graphs_on_the_cpu():
        captured(torch.ones(2, 6), torch.ones(()))
        with pytest.raises(deqlm.ConvergenceError):
            captured(torch.full((2, 6), torch.nan), torch.ones(()))


def test_calls_with_grad_are_not_captured_and_copies_hold_no_graph():
    captured, _ = pair(layer())
    with graphs_on_the_cpu() as made:
        captured(torch.randn(2, 6)).sum().backward()
        assert not made
        with torch.no_grad():
            captured(torch.randn(2, 6))
        for other in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
            assert other.graphs.size == 0
            with torch.no_grad():
                x = torch.randn(2, 6)
                assert torch.equal(other(x), captured(x))
        with torch.inference_mode():
            assert captured(torch.ones(2, 6)).shape == (2, 6)
