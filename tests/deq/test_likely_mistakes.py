"""A failure is told with what is probably wrong, and with the one call to make; nothing else changes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop
from deqlm_solvers.core.policy import OnFailure
from diagnostics.layers import made

FEW = Stop(max_iter=3, rtol=1e-6)
HINT = "raise max_iter"


def told(call: Callable[[], Any]) -> str:
    """Return the text of the one warning of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (one,) = caught
    assert one.category is deqlm.ConvergenceWarning
    return str(one.message)


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.mlp(self.norm(z))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.gru(z)[0]


MISTAKES: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "pre-norm": (PreNorm, r"put a norm after the sum, such as DEQ\(nn.Sequential\(layer, nn.LayerNorm"),
    "batch second": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), "MultiheadAttention takes the batch s"),
    "recurrent": (Recurrent, "GRU takes the batch second .* give it batch_first=True"),
    "statistics": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(5), nn.Tanh()), r"BatchNorm in train\(\)"),
    "mixed": (lambda: lambda z: torch.tanh(z + 3 * z.flip(0)), "one row depends on other rows: .* batch_dims=0"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MISTAKES)
def test_likely_mistakes_are_named_in_place_of_hints(name: str, grad: bool) -> None:
    make, text = MISTAKES[name]
    deq = DEQ(make(), stop=Stop(max_iter=40, rtol=1e-4) if name == "pre-norm" else FEW)
    with torch.set_grad_enabled(grad):
        message = told(lambda: deq(torch.randn(4, 5, 8)))
    assert re.search(f"Likely: .*{text}", message), message
    assert HINT not in message
    assert message.endswith("print(deqlm.diagnose(deq, x)) says more.")
    assert not re.search(r"\d", message.replace("batch_dims=0", "")), "numbers would show it at every call"


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point", "newton_krylov"])
def test_a_layer_that_runs_away_is_told_so_by_every_solver(solver: str) -> None:
    assert "norm after the sum" in told(lambda: DEQ(PreNorm(), solver=solver)(torch.randn(4, 5, 8)))


@pytest.mark.parametrize("max_iter", [30, 100])
@pytest.mark.parametrize("name", ["gpt2", "norm_first", "mlp", "mlp, bounded"])
def test_a_method_that_ends_before_the_state_has_grown_names_such_layers_too(name: str, max_iter: int) -> None:
    layer, x = made(name)
    with torch.no_grad():
        message = told(lambda: DEQ(layer, solver="newton_krylov", stop=Stop(max_iter=max_iter))(x))
    assert "a layer z + F(z), such as a pre-norm block" in message
    assert "norm after the sum" in message


def test_noise_that_nobody_holds_is_named() -> None:
    own = torch.Generator().manual_seed(0)
    noisy = lambda z: 0.5 * z + torch.rand(z.shape, generator=own)  # noqa: E731
    message = told(lambda: deqlm.solve(noisy, torch.zeros(3, 8), stop=FEW))
    assert "f gives another value at every evaluation" in message
    assert message.endswith("print(deqlm.diagnose(f, z0)) says more.")


@pytest.mark.parametrize(
    ("f", "hint"),
    [
        (lambda z: 0.99 * z + 1, HINT),
        (lambda z: 2 * z + 1, "f expands"),
        (lambda z: 1 - z, HINT),
        (lambda z: torch.sqrt(z - 1), "f returned NaN"),
    ],
    ids=["slow", "expanding", "two-cycle", "nonfinite"],
)
def test_where_no_mistake_is_found_the_hints_stay(f: Callable[[Tensor], Tensor], hint: str) -> None:
    stop = Stop(max_iter=60, rtol=1e-6)
    message = told(lambda: deqlm.solve(f, torch.zeros(3, 8), solver="fixed_point", stop=stop))
    assert hint in message
    assert "Likely" not in message


def test_an_error_says_what_a_warning_says() -> None:
    with pytest.raises(deqlm.ConvergenceError, match=r"rows 0, 1.*Likely: .*norm after the sum.*diagnose\(deq, x\)"):
        DEQ(PreNorm(), on_failure="raise")(torch.randn(2, 5, 8))


def test_a_failed_backward_solve_names_the_call_too() -> None:
    weak = deqlm.Implicit(solve=deqlm.Solve("fixed_point", Stop(max_iter=2, rtol=1e-6)))
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    y = DEQ(layer, gradient=weak)(torch.randn(3, 8))
    message = told(lambda: y.sum().backward())
    assert message.startswith("backward solve")
    assert message.endswith("print(deqlm.diagnose(deq, x)) says more.")


def test_looking_costs_nothing_that_is_counted_and_moves_no_generator() -> None:
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(len(z))
        return 0.99 * z + 1

    def run(policy: OnFailure) -> tuple[int, int, Tensor]:
        calls.clear()
        torch.manual_seed(0)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sol = deqlm.solve(f, torch.zeros(3, 8), solver="fixed_point", stop=FEW, on_failure=policy)
        return sol.cost.evaluations, len(calls), torch.rand(1)

    ignored, warned = run("ignore"), run("warn")
    assert ignored[:2] == (3, 3)
    assert warned[0] == 3
    assert 3 < warned[1] <= 8
    assert torch.equal(ignored[2], warned[2])


def test_a_map_that_raises_elsewhere_is_no_error() -> None:
    def f(z: Tensor) -> Tensor:
        if float(z.detach().abs().max()) > 5:
            raise RuntimeError("too large")
        return 0.9 * z + 0.1

    message = told(lambda: deqlm.solve(f, torch.full((3, 8), 4.5), solver="fixed_point", stop=FEW))
    assert HINT in message


def test_a_backward_solve_sends_first_to_the_solve_before_it():
    deq = DEQ(lambda z: 0.9 * z.cos(), gradient=deqlm.Implicit(solve=deqlm.Solve("fixed_point", FEW)))
    loss = deq(torch.ones(2, 8, requires_grad=True)).sum()
    text = told(loss.backward)
    assert "backward solve: some rows ended MAX_ITER" in text
    assert "Where the solve itself failed, mend that first. MAX_ITER" in text


class Direction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.linear(z / z.norm(dim=-1, keepdim=True)) + u)


def test_a_map_without_a_value_at_zero_is_told_to_start_elsewhere():
    torch.manual_seed(0)
    layer, x = Direction(), torch.randn(4, 8)
    text = told(lambda: DEQ(layer, inject="argument")(x))
    assert "not finite at the start" in text
    assert "start=torch.ones_like" in text
    assert DEQ(layer, inject="argument", start=torch.ones_like)(x).isfinite().all()


def test_inputs_that_are_not_finite_are_no_matter_of_the_start():
    x = torch.randn(4, 8)
    x[1, 2] = torch.nan
    text = told(lambda: DEQ(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))(x))
    assert "NaN in the inputs" in text
    assert "Likely" not in text


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(8, 2, batch_first=True), lambda z, more: z, lambda *, z: z])
def test_a_layer_that_takes_other_arguments_is_told_how_it_is_called(layer):
    with pytest.raises(TypeError) as caught:
        DEQ(layer)(torch.ones(2, 3, 8))
    assert any("layer(z + x)" in note for note in caught.value.__notes__)


def test_other_errors_of_type_are_left_alone():
    def layer(z: Tensor) -> Tensor:
        raise TypeError("no")

    with pytest.raises(TypeError) as caught:
        DEQ(layer)(torch.ones(2, 8))
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize(
    ("parts", "named"), [(tuple, "output=0"), (lambda two: {"out": two[0], "more": two[1]}, "'out'")]
)
def test_the_part_that_is_the_state_is_named_as_the_layer_returns_it(parts, named):
    with pytest.raises(TypeError, match=re.escape(named)):
        DEQ(lambda z: parts((z.tanh(), z.mean())))(torch.ones(2, 8))


def test_another_width_is_sent_outside_of_the_layer():
    with pytest.raises(ValueError, match=r"that of z, \(2, 8\), got \(2, 3\); f keeps the shape .* outside of it"):
        DEQ(nn.Linear(8, 3))(torch.ones(2, 8))
