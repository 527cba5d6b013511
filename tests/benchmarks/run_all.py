"""The measurement behind docs/how_it_compares.md, with jax in a virtual environment of its own.

    python tests/benchmarks/run_all.py --out docs

makes a temporary environment with jax, jaxopt and optimistix (or takes one, --jax), then does what
`PYTHONPATH=tests python -m benchmarks.comparison --out docs --jax ...` does, and adds the record of the compiled step.
Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison.__main__ import main as compare

HERE = Path(__file__).resolve().parent
PEERS = ("jax", "jaxopt", "optimistix")


def jax_environment(folder: str) -> str:
    """Make a virtual environment with jax and its solvers; return its interpreter."""
    venv.create(folder, with_pip=True)
    python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return str(python)


def main(argv: list[str]) -> int:
    """Measure everything; return the exit status of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs", help="folder of the page, its records and its plots (default docs)")
    parser.add_argument("--jax", metavar="PYTHON", help="an interpreter that has jax; default: a temporary one")
    parser.add_argument("--no-jax", action="store_true", help="leave jax out")
    parser.add_argument("--parts", help="only these parts, as for benchmarks.comparison")
    parser.add_argument("--compiled", action="store_true", help="also measure the compiled step, two minutes more")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        asked = arguments.parts is None or "jax" in arguments.parts.split(",")
        python = arguments.jax
        if asked and python is None and not arguments.no_jax:
            python = jax_environment(folder)
        options = ["--jax", python] if python else []
        options += ["--parts", arguments.parts] if arguments.parts else []
        status = compare(["--out", arguments.out, "--progress", *options])
    if status == 0 and arguments.compiled:
        record = Path(arguments.out, "records", "compiled_step.json")
        command = [sys.executable, str(HERE / "speed_compiled_step.py"), "--record", str(record)]
        status = subprocess.run(command, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
