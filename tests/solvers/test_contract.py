"""Every registered solver is held to what it declares; a new entry is tested without a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import Tensor

import deqlm_solvers.adapters  # noqa: F401 - registers the peers
from deqlm.testing import solver_checks
from deqlm.testing.check import Check
from deqlm.testing.solvers import contract
from deqlm.testing.solvers.problems import contractions
from deqlm_solvers import (
    GUARANTEES,
    SOLVERS,
    Deer,
    Evaluation,
    Layout,
    Map,
    Solution,
    Solve,
    Solver,
    StepSolver,
    Stop,
    options,
    register_solver,
)


def cases(registry: Iterable[str], lookup: Callable[[str], type[Solver]]) -> list[Any]:
    """Return pytest parameters of all checks of every entry; entries that cannot be loaded become skips."""
    found = []
    for name in registry:
        try:
            checks = solver_checks(lookup(name))
        except ImportError as error:
            found.append(pytest.param(None, marks=pytest.mark.skip(reason=str(error)), id=name))
        else:
            found += [pytest.param(check, id=f"{name}-{label}") for label, check in checks]
    return found


@pytest.mark.parametrize("check", cases(SOLVERS, SOLVERS.__getitem__))
def test_contract(check: Check):
    try:
        check()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("promise", contract.CHECKS["sequences"], ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("solver", [Deer(structure="block"), Deer(structure="diagonal")], ids=lambda s: s.structure)
def test_every_structure_of_a_sequence(solver: Solver, promise: contract.Promise):
    assert "known_answers" not in solver.guarantees, "what is left out of a state without tokens may be what matters"
    promise(solver)


def test_every_guarantee_has_its_checks():
    assert contract.CHECKS.keys() == GUARANTEES.keys()


def test_guarantees_have_known_names():
    for name in SOLVERS:
        assert SOLVERS[name].guarantees <= GUARANTEES.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SOLVERS))
def test_known_answers_on_cuda(name: str):
    if "known_answers" not in SOLVERS[name].guarantees:
        pytest.skip("declares no known answers")
    for problem in contractions():
        sol = Solve(name, Stop(max_iter=500, rtol=1e-10))(problem.f, problem.z0().cuda())
        assert sol.z.device.type == sol.status.device.type == "cuda"
        assert sol.converged.all()
        error = (sol.z.cpu() - problem.truth).norm(dim=1)
        assert (error <= 1e-9 * max(problem.kappa, 1) * problem.truth.norm(dim=1)).all()


@pytest.mark.usefixtures("registries")
def test_a_new_entry_is_tested_for_free():
    @register_solver("toy")
    @options
    class Toy(StepSolver):
        guarantees = StepSolver.guarantees | {"known_answers", "lean", "differentiable"}

        def init(self, z: Tensor) -> None:
            return None

        def step(self, f: Map, at: Evaluation, state: None) -> tuple[Tensor, None]:
            return at.z + 0.75 * at.r, state

    mine = {case.id: case.values[0] for case in cases(SOLVERS, SOLVERS.__getitem__) if case.id.startswith("toy-")}
    assert len(mine) == len(contract.promises(Toy)) > len(contract.ALWAYS)
    for promise in (*contract.ALWAYS, *contract.CHECKS["known_answers"], *contract.CHECKS["lean"]):
        mine[f"toy-{promise.__name__}"]()


def test_an_entry_that_cannot_be_loaded_is_skipped_with_its_reason():
    def missing(name: str) -> type[Solver]:
        raise ImportError("needs the extra 'compare'")

    (case,) = cases(["gone"], missing)
    (mark,) = case.marks
    assert mark.name == "skip"
    assert "compare" in mark.kwargs["reason"]


def test_an_undeclared_guarantee_is_not_tested():
    @options
    class Modest(Solver):
        def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
            raise NotImplementedError

    assert contract.promises(Modest) == list(contract.ALWAYS)
