"""The distribution as others get it: wheel, sdist, editable install, and plugins found by entry point."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(python: Path, *what: object) -> None:
    """Install without network: dependencies and build tools are those of the environment that runs the tests."""
    offline = (
        "--ignore-installed",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--quiet",
    )
    run(python, "-m", "pip", "install", *offline, *what, cwd=python.parent)


def fresh_environment(folder: Path) -> Path:
    """Return the Python of a new virtual environment that sees our dependencies behind its own packages."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    shared = {str(Path(module.__file__).parents[1]) for module in (torch, np, pytest)}
    Path(site, "shared.pth").write_text("\n".join(sorted(shared)))
    return python


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Copy the sources, so that nothing is written into the working tree."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("deqlm", "solvers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def built(tree) -> tuple[Path, Path]:
    run(sys.executable, "-m", "hatchling", "build", cwd=tree)
    (wheel,) = (tree / "dist").glob("*.whl")
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    python = fresh_environment(tmp_path_factory.mktemp("environment"))
    install(python, built[0])
    return python


WHERE = """
import sys; from pathlib import Path; import deqlm, deqlm_solvers
from importlib.metadata import version
assert version("deqlm") == deqlm.__version__
for package in (deqlm, deqlm_solvers):
    home = Path(package.__file__).parent
    assert (home / "py.typed").exists()
    print(home.parent)
"""


def test_wheel_holds_both_packages_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {"deqlm/py.typed", "deqlm_solvers/py.typed"} <= set(names)
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"deqlm", "deqlm_solvers"}


def test_sdist_builds_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=source)
    (again,) = (source / "dist").glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_wheel_works_away_from_the_tree(installed, tmp_path):
    homes = run(installed, "-W", "error", "-c", WHERE, cwd=tmp_path).split()
    assert all(Path(home).is_relative_to(installed.parents[1]) for home in homes)


def test_command_is_installed(installed, tmp_path):
    command = installed.parent / "deqlm"
    for name in ("anderson", "broyden", "fixed_point"):
        assert name in run(command, "solvers", cwd=tmp_path)


def test_editable_install_leads_to_the_sources(tree, tmp_path):
    python = fresh_environment(tmp_path / "environment")
    install(python, "--editable", tree)
    homes = run(python, "-c", WHERE, cwd=tmp_path).split()
    assert [Path(home) for home in homes] == [tree, tree / "solvers"]


PLUGIN = '''
import deqlm

@deqlm.options
class Toy(deqlm.StepSolver):
    """Three quarters of a plain step."""

    def init(self, z):
        return None

    def step(self, f, at, state):
        return at.z + 0.75 * at.r, state

@deqlm.options
class ToyGradient(deqlm.Gradient):
    """One evaluation, doubled."""

    def connect(self, f, z, adjoint):
        fz = f(z)
        return z + 2 * (fz - fz.detach())
'''
PLUGIN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "deqlm-toy"
version = "1.0"

[project.entry-points."deqlm.solvers"]
toy = "deqlm_toy:Toy"

[project.entry-points."deqlm.gradients"]
toy = "deqlm_toy:ToyGradient"
"""
USE_PLUGIN = """
import sys, torch, deqlm
assert "toy" in deqlm.SOLVERS and "toy" in list(deqlm.GRADIENTS)
assert "deqlm_toy" not in sys.modules
u = torch.ones(2, 3, requires_grad=True)
sol = deqlm.solve(lambda z: 0.5 * z + u, torch.zeros(2, 3), solver="toy", gradient="toy")
sol.z.sum().backward()
assert deqlm.SOLVERS["toy"].__module__ == "deqlm_toy" and sol.converged.all()
assert torch.allclose(sol.z, torch.full((2, 3), 2.0), rtol=1e-3) and (u.grad == 2).all()
print("found")
"""


def test_installed_plugin_is_found(installed, tmp_path):
    package = tmp_path / "deqlm_toy"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    (tmp_path / "pyproject.toml").write_text(PLUGIN_PROJECT)
    install(installed, tmp_path)
    assert run(installed, "-W", "error", "-c", USE_PLUGIN, cwd=tmp_path.parent).strip() == "found"
