"""Every registered solver is held to what it declares; a new entry is tested without a line here."""

from __future__ import annotations

import pytest
from torch import Tensor

import deqlm_solvers.adapters  # noqa: F401 - registers the peers
from deqlm_solvers import (
    GUARANTEES,
    SOLVERS,
    Evaluation,
    Frame,
    Map,
    Solution,
    Solve,
    Solver,
    StepSolver,
    Stop,
    options,
    register_solver,
)
from solvers import contract
from solvers.contract import Check, cases, checks_of
from solvers.problems import contractions


@pytest.mark.parametrize(("name", "check", "fields"), cases(SOLVERS, SOLVERS.__getitem__))
def test_contract(name: str, check: Check, fields: dict[str, str]):
    try:
        check(SOLVERS[name](**fields))
    except ImportError as error:
        pytest.skip(str(error))


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

    found = [case.values for case in cases(SOLVERS, SOLVERS.__getitem__)]
    mine = [check for name, check, _ in found if name == "toy"]
    assert len(mine) == len(checks_of(Toy)) > len(contract.ALWAYS)
    for check in (*contract.ALWAYS, contract.known_answers, contract.lean):
        assert check in mine
        check(SOLVERS["toy"]())


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
        def solve(self, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> Solution:
            raise NotImplementedError

    assert checks_of(Modest) == list(contract.ALWAYS)
