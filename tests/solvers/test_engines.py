"""Every engine does what torch operations do for what it says it knows, and declines the rest.

The suite runs over engines, methods and pairs of values of all fields of `Stop`: an engine that is registered is tested
by that, and a field that is added to `Stop` must be given values here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
import torch

from deqlm.testing.solvers.problems import exact_rows, normal
from deqlm_solvers import SOLVERS, Anderson, Broyden, Evaluation, FixedPoint, Layout, Rule, Solve, Solver, Stop, options
from deqlm_solvers.core.norms import NORMS
from deqlm_solvers.loop.backend import Backend, unknown
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.loop import ENGINES, run
from deqlm_solvers.triton_kernels.availability import why_not
from solvers.pairwise import pairwise


@options
class Small(Rule):
    """Passes where the largest change is small."""

    def ratio(self, z: Any, fz: Any) -> torch.Tensor:
        return (fz - z).abs().flatten(1).amax(1) / 1e-3


VALUES: dict[str, tuple[Any, ...]] = {
    "max_iter": (1, 7, 18),
    "rtol": (1e-4, 0.0),
    "atol": (0.0, 3e-4),
    "norm": ("l2", "rms", "max", tuple(float(i % 3) for i in range(12))),
    "per": ("row", "token", "leaf"),
    "token_dim": (1, 2),
    "keep": ("best", "best_f"),
    "test_every": (1, 3, "auto"),
    "check_every": (1, 0, 5),
    "compact": (True, False, "at_once"),
    "trace": (False, True),
    "patience": (None, 3),
    "divergence": (1e8, 5.0),
    "criterion": (None, Small()),
    "share": (1.0, 0.6),
    "first_tokens": ((), (9.0,)),
    "collective": (False, True),
}
METHODS: dict[str, Solver] = {
    **{name: SOLVERS[name]() for name in SOLVERS if hasattr(SOLVERS[name], "impl")},
    "damped": FixedPoint(damping=0.7, first_damping=1.0),
    "mixing": Anderson(plain_rate=0.0, memory=3),
    "bad": Broyden(update="bad"),
    "armijo": Broyden(line_search="armijo"),
}
LEAVES = {"token": ((4, 3),), "leaf": ((7,), (5,))}
COMBINATIONS = pairwise(VALUES)


def stops() -> list[Stop]:
    """Return the combinations that `Stop` accepts, and those that it refuses with the clashing field left out."""
    found = []
    for values in COMBINATIONS:
        while values:
            try:
                found.append(Stop(**values))
                break
            except ValueError as refusal:
                clash = next((name for name in reversed(values) if f"{name}" in str(refusal)), None)
                if clash is None:
                    raise
                values = {name: value for name, value in values.items() if name != clash}
    return found


def rows() -> tuple[Any, torch.Tensor]:
    b, gain = normal(3, 5, 12), torch.tensor([[0.3], [0.9], [-0.8], [1.2], [0.95]], dtype=torch.float64)
    return exact_rows(b, gain), torch.zeros_like(b)


def layout_of(stop: Stop) -> Layout:
    return Layout(leaves=LEAVES.get(stop.per), batch_dims=stop.token_dim if stop.per == "token" else 1)


def compare(method: Solver, engine: str, stop: Stop) -> bool:
    """Hold an engine against torch operations; say whether it took the solve."""
    f, z0 = rows()
    layout = layout_of(stop)
    asked = method.replace(impl=engine)
    with torch.no_grad():
        why = ENGINES[engine].declines(asked.fitted(12, stop.max_iter), stop, layout, z0)
    if why:
        with pytest.raises(ValueError, match="is not possible here"):
            run(asked, f, z0, stop, layout)
        return False
    truth, sol = run(method.replace(impl="torch"), f, z0, stop, layout), run(asked, f, z0, stop, layout)
    assert torch.equal(sol.status, truth.status), stop
    assert torch.equal(sol.steps, truth.steps), stop
    assert torch.allclose(sol.z, truth.z, rtol=1e-7, atol=1e-7), stop
    assert torch.allclose(sol.residual, truth.residual, rtol=1e-7, atol=1e-7), stop
    assert sol.cost.evaluations == truth.cost.evaluations, stop
    assert (sol.trace is None) == (truth.trace is None), stop
    return True


def skip_where_it_cannot_run(engine: str) -> None:
    """Kernels for a GPU have this suite in tests/gpu/interpreted, in Triton's interpreter."""
    if engine == "triton" and (why := why_not(torch.device("cpu"))):
        pytest.skip(why)


def test_all_fields_of_a_stop_have_values_here():
    assert VALUES.keys() == Stop.__dataclass_fields__.keys()
    pairs = {(a, str(v[a]), b, str(v[b])) for v in COMBINATIONS for a, b in combinations(VALUES, 2)}
    assert len(pairs) == sum(len(VALUES[a]) * len(VALUES[b]) for a, b in combinations(VALUES, 2))
    assert any(stop.rtol > 0 and stop.atol > 0 for stop in stops())
    assert set(NORMS) <= set(VALUES["norm"])


@pytest.mark.filterwarnings("ignore:rtol=")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_engine_does_what_torch_operations_do(method: Solver, engine: str):
    skip_where_it_cannot_run(engine)
    taken = [compare(method, engine, stop) for stop in stops()]
    assert any(taken), "it declines everything"


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_engine_declines_a_field_that_it_does_not_name(engine: type[Backend]):
    @dataclass(frozen=True)
    class Later(Stop):
        momentum: float = 0.0

    assert not unknown("Stop", Later(), engine.knows_stop)
    assert "momentum=0.5" in unknown("Stop", replace(Later(), momentum=0.5), engine.knows_stop)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("field", ["norm", "per", "keep", "compact", "test_every"])
def test_an_engine_declines_a_value_that_it_does_not_name(engine: type[Backend], field: str):
    later = Stop()
    object.__setattr__(later, field, "another")
    method = Anderson(impl="auto")
    with torch.no_grad():
        assert f"Stop({field}='another')" in engine.declines(method, later, Layout(), torch.zeros(1, 3))


@pytest.mark.parametrize("per", ["row", "token", "leaf"])
def test_a_norm_is_one_entry_of_a_table(per: str, monkeypatch):
    """Torch operations measure by it at once, in rows, tokens and leaves; an engine that was not told declines."""
    monkeypatch.setitem(NORMS, "max", lambda t: t.abs().amax(-1).double())
    stop, layout = Stop(rtol=1e-6, norm="max", per=per), Layout(leaves=((4, 3),))  # type: ignore[arg-type]
    sol = Solve(Anderson(), stop)(lambda z: torch.tanh(0.5 * z + 1), torch.zeros(2, 12, dtype=torch.float64), layout)
    largest = (torch.tanh(0.5 * sol.z + 1) - sol.z).abs().amax(1)
    assert sol.converged.all()
    torch.testing.assert_close(sol.residual, largest, rtol=1e-9, atol=1e-15)
    with pytest.raises(ValueError, match=r"it does not know Stop\(norm='max'\)"):
        Solve(Anderson(impl="cpp"), stop)(lambda z: 0.5 * z, torch.ones(2, 12), layout)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_engine_declines_what_a_layout_may_hold_later(engine: type[Backend]):
    @dataclass(frozen=True, eq=False)
    class Later(Layout):
        weights: torch.Tensor | None = None

    assert "weights=of shape (2,)" in unknown("Layout", Later(weights=torch.ones(2)), engine.knows_layout)


@pytest.mark.parametrize("engine", ENGINES)
def test_another_tolerance_formula_on_one_side_is_noticed(engine: str, monkeypatch):
    skip_where_it_cannot_run(engine)
    honest = Criterion.groups

    def larger_of_both(self: Criterion, at: Evaluation) -> Any:
        residual, relative, _, size = honest(self, at)
        tolerance = torch.maximum(self.norm(at.fz) * self.stop.rtol, torch.as_tensor(self.floor, dtype=torch.float64))
        return residual, relative, residual / tolerance.clamp_min(1e-270), size

    monkeypatch.setattr(Criterion, "groups", larger_of_both)
    with pytest.raises(AssertionError):
        [compare(FixedPoint(), engine, stop) for stop in stops()]
