"""Where a measurement was made: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deqlm._version import __version__

__all__ = ["PACKAGES", "environment", "version_of"]

PACKAGES = ("torch", "numpy", "scipy", "torchdeq", "matplotlib", "tqdm")
"""Packages whose versions a record carries."""


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return versions, hardware, threads, commit and command line as plain data.

    Args:
        device: where the work runs; a GPU's name is recorded.
    """
    return {
        "deqlm": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version_of(name) for name in PACKAGES},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device or torch.device("cpu")),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Return the kind of a device, and a GPU's name."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def commit() -> str | None:
    """Return the commit of a source tree, with ``+`` when files differ from it; None for an installed package."""
    here = Path(__file__).resolve().parents[1]
    try:
        if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
            return None
        head = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except OSError:
        return None
    return head and head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
