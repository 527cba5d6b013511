"""The contract of solvers, held by the kernels where they take a solve, and by torch operations where they decline."""

from __future__ import annotations

import os

import pytest

from deqlm.testing import solver_checks
from deqlm.testing.check import Check
from deqlm_solvers import Anderson, Broyden, FixedPoint
from gpu.interpreter import checked

APART = ("torch-", "lean", "differentiable")
"""Asked of torch operations; counts the interpreter's own operations (test_launches.py counts launches); no kernels."""

CHECKS = [
    pytest.param(check, id=f"{type(solver).__name__}-{name}")
    for solver in (FixedPoint(), Anderson(memory=4), Broyden(memory=4))
    for name, check in solver_checks(solver)
    if not name.startswith(APART)
]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("DEQLM_NIGHT") != "1", reason="hours in the interpreter: DEQLM_NIGHT=1")
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check):
    with checked(order=7):
        check()
