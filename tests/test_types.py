"""What an editor and a type checker see of the calls that everybody makes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USE = """
from typing import assert_type

import torch
from torch import Tensor

import deqlm
from deqlm import DEQ, Broyden, Implicit, Phantom, Solution, Solve, Stop

deq = DEQ(torch.nn.Tanh(), solver="broyden", gradient=Phantom(steps=3), stop={"rtol": 1e-3})
x = torch.zeros(2, 3)
assert_type(deq(x), Tensor)
assert_type(deq(x, x, with_stats=False, scale=2), Tensor)
assert_type(deq({"a": x, "b": x}), dict[str, Tensor])

y, sol = deq(x, with_stats=True)
assert_type(y, Tensor)
assert_type(sol, Solution)
assert_type(sol.steps, Tensor)
tree, of_tree = deq((x, x), x, token_mask=None, start=None, with_stats=True)
assert_type(tree, tuple[Tensor, Tensor])
assert_type(of_tree, Solution)
some = bool(x.sum())
assert_type(deq(x, with_stats=some), Tensor | tuple[Tensor, Solution])
assert_type(deqlm.solve(torch.cos, x).residual, Tensor)

assert_type(Solve(), Solve)
assert_type(Solve("anderson", Stop()), Solve)
assert_type(Solve(Broyden(memory=4), {"rtol": 1e-3}), Solve)
assert_type(Solve(solver={"name": "anderson", "memory": 3}, stop=Stop(rtol="auto")), Solve)
assert_type(Solve("anderson").stop.max_iter, int)
assert_type(Solve("anderson").replace(stop=Stop()), Solve)
assert_type(Implicit(solve=Solve("newton")), Implicit)
"""

WRONG = {
    "a misspelled field of a solution": "sol.stepps",
    "a misspelled option": "Broyden(memori=4)",
    "a stop that is a number": 'Solve("anderson", 3)',
    "a solver that is a number": "Solve(3)",
    "one result taken as two": "y, sol = deq(x, with_stats=1)",
    "a mask that is none": "deq(x, token_mask=3)",
}


def pyright(file: Path) -> list[str]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in found if each["severity"] == "error"]


def mypy(file: Path) -> list[str]:
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "solvers"))
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={file.parent}", str(file)]
    environment = {**os.environ, "MYPYPATH": paths}
    done = subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line.partition(":")[2] for line in done.stdout.splitlines() if ": error:" in line]


CHECKERS = [
    pytest.param(
        check, marks=pytest.mark.skipif(importlib.util.find_spec(check.__name__) is None, reason="not installed")
    )
    for check in (pyright, mypy)
]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKERS)
def test_calls_have_the_types_that_they_return(check, tmp_path):
    file = tmp_path / "use.py"
    file.write_text(USE)
    assert check(file) == []


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKERS)
def test_mistakes_are_seen(check, tmp_path):
    """Every wrong line has an error, which an editor shows while it is written."""
    file = tmp_path / "wrong.py"
    file.write_text(USE + "\n".join(WRONG.values()) + "\n")
    first = USE.count("\n") + 1
    seen = {int(error.split(":")[0]) - first for error in check(file)}
    assert seen == set(range(len(WRONG)))


def test_the_types_cost_no_frame():
    """`DEQ.__call__` is still that of torch's Module, and `Solve.__init__` that of its dataclass."""
    import torch

    import deqlm

    assert "__call__" not in vars(deqlm.DEQ)
    assert deqlm.DEQ.__call__ is torch.nn.Module.__call__
    assert deqlm.Solve("broyden", {"rtol": 1e-2}).stop.rtol == 1e-2
