"""``deqlm env``: what is installed, what is missing, and what it would give."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

import deqlm
from deqlm.cli.abilities import abilities
from deqlm.ops import ssd
from deqlm.ops.native.library import SOURCE
from deqlm.reporting.environment import commit, cpu_name, version_of
from deqlm_solvers.native.build import Outcome, build
from deqlm_solvers.native.compiler import readable
from deqlm_solvers.native.library import load

__all__ = ["EXTRAS", "add", "report", "run"]

EXTRAS: dict[str, dict[str, str]] = {
    "compare": {
        "scipy": "solvers scipy.* in `deqlm compare` and everywhere else",
        "torchdeq": "solvers torchdeq.* in `deqlm compare` and everywhere else",
        "matplotlib": "plots of `deqlm compare` (SVG and PNG)",
        "tqdm": "progress bars",
    },
    "hf": {"transformers": "models and configurations of Hugging Face", "safetensors": "their files"},
    "gpu": {
        "mamba_ssm": "Triton kernels of Mamba2's scan on CUDA, impl='mamba_ssm'",
        "triton": "compiles them",
    },
    "test": {"pytest": "runs the tests", "hypothesis": "property tests"},
    "docs": {"mkdocs": "builds the documentation"},
    "dev": {"ruff": "lint and format", "pyright": "type checks"},
}
"""Extras of the distribution: package -> what it gives."""
WITHOUT_STEP = "solvers run on torch operations (impl='torch'), several times slower beside a small f"


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "show versions, devices, installed and missing extras"
    parser = commands.add_parser(
        "env", help=text, description=f"{text[0].upper()}{text[1:]}, and what the missing ones would give."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    print(report())
    return 0


def report() -> str:
    """Return the report as text."""
    lines = [
        _line("deqlm", deqlm.__version__ + (f", commit {revision}" if (revision := commit()) else "")),
        _line("python", f"{platform.python_version()} on {platform.platform()}"),
        _line("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        _line("numpy", version_of("numpy") or "missing"),
        _line("cpu", f"{cpu_name()}, {os.cpu_count()} cores"),
        _line("devices", ", ".join(devices())),
        _line("compiled step", compiled(load(), WITHOUT_STEP)),
        _line("layers", compiled(build(SOURCE), "Mamba2 and RMSNorm run on torch operations, slower")),
        _line("ssd scan", ssd_scan()),
        "",
        "what runs here",
        *(f"  {name:13} {found}" for name, found in abilities().items()),
    ]
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if find_spec(name) is None]
        state = "installed" if not missing else "incomplete" if len(missing) < len(packages) else "not installed"
        remedy = f'; pip install "deqlm[{extra}]"' if missing else ""
        lines += ["", f"extra {extra}: {state}{remedy}"]
        for name, gives in packages.items():
            lines.append(f"  {name:12} {'missing' if name in missing else version_of(name) or 'present':12} {gives}")
    return "\n".join(lines)


def devices() -> list[str]:
    """Return the devices torch can use here."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def compiled(outcome: Outcome, without: str) -> str:
    """Return whether a compiled part is there, what it cost to build, and what is without it."""
    library, why = outcome
    if library is None:
        return f"none: {why}; {without}"
    kept = f"once per machine, {library.path}"
    place = f"for this process alone: {library.unkept}" if library.unkept else kept
    found = "found in the cache" if library.cached else "built now"
    return readable(f"C++ ({' '.join(library.flags)}), {found}, {library.seconds:.1f} s to build {place}")


def ssd_scan() -> str:
    """Return which realisation of Mamba2's scan impl="auto" takes on each device."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return "auto takes " + ", ".join(f"{ssd.pick(kind)} on {kind}" for kind in kinds)


def _line(name: str, value: str) -> str:
    return f"{name:10} {value}"
