"""``deqlm env``: what is installed, what is missing, and what it would give."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

import deqlm
from deqlm.compare.environment import commit, cpu_name, version_of
from deqlm.ops import ssd
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
        _line("fused step", fused_step()),
        _line("ssd scan", ssd_scan()),
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


def fused_step() -> str:
    """Return whether the solvers' compiled step is there, what it cost to build, and what runs without it."""
    library, why = load()
    if library is None:
        return f"none: {why}; solvers run on torch operations (impl='torch'), several times slower beside a small f"
    found = "found in the cache" if library.cached else "built now"
    return (
        f"C++ ({' '.join(library.flags)}), {found}, {library.seconds:.1f} s to build once per machine, {library.path}"
    )


def ssd_scan() -> str:
    """Return which realisation of Mamba2's scan impl="auto" takes on each device."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return "auto takes " + ", ".join(f"{ssd.pick(kind)} on {kind}" for kind in kinds)


def _line(name: str, value: str) -> str:
    return f"{name:10} {value}"
