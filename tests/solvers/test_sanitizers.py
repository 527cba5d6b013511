"""The compiled step and layers under the address and the undefined-behaviour sanitizer of the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deqlm_solvers.native.compiler import CompilerError, find_compiler

FUZZ = Path(__file__).with_name("step_fuzz.py")
ROOT = FUZZ.parents[2]
CASES = 200

pytestmark = pytest.mark.slow


def compiler() -> list[str]:
    try:
        return find_compiler()
    except CompilerError as error:
        pytest.skip(str(error))


def shared(name: str) -> str:
    """Return where a library of the compiler lies that has to be there before all others."""
    found = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"the compiler has no {name}")
    return found


def needs(flag: str, folder: Path) -> None:
    source = folder / "empty.cpp"
    source.write_text("int main() {}")
    made = subprocess.run([*compiler(), flag, source, "-o", folder / "empty"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no {flag}: {made.stderr.strip()[-200:]}")


def fuzz(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [*(str(ROOT / part) for part in ("", "solvers", "tests")), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "DEQLM_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, "-W", "ignore", str(FUZZ), str(CASES), "-O1", "-g", "-fno-sanitize-recover=all", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_undefined_behaviour(tmp_path):
    needs("-fsanitize=undefined", tmp_path)
    done = fuzz(tmp_path / "cache", "-fsanitize=undefined")
    assert (done.returncode, done.stdout) == (0, f"ran {CASES}\n"), done.stderr[-3000:]


def test_no_byte_outside_of_what_was_given(tmp_path):
    needs("-fsanitize=address", tmp_path)
    before = " ".join(shared(name) for name in ("libasan.so", "libstdc++.so.6"))
    done = fuzz(tmp_path / "cache", "-fsanitize=address", LD_PRELOAD=before, ASAN_OPTIONS="detect_leaks=0")
    assert (done.returncode, done.stdout) == (0, f"ran {CASES}\n"), done.stderr[-3000:]
