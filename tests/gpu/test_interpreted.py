"""Runs tests/gpu/interpreted in processes of their own, because a process interprets triton or compiles it for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deqlm_solvers.triton_kernels.availability import why_not

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = sorted(path.name for path in (HERE / "interpreted").glob("test_*.py"))

pytest.importorskip("triton", reason="no triton")


def run(*arguments: str) -> None:
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "solvers"))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    # 5: there is no such test, as where a package of that file is missing
    assert done.returncode in (0, 5), done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_quick_ones():
    run("-m", "not slow", str(HERE / "interpreted"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_slow_ones(file: str):
    run("-m", "slow", str(HERE / "interpreted" / file))


def test_they_run_in_no_other_process():
    assert why_not(__import__("torch").device("cpu")) != "" or "TRITON_INTERPRET" in os.environ
