"""Every public name has a docstring, and every example in one runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from importlib.util import find_spec

import pytest

import deqlm
import deqlm_solvers

PACKAGES = [deqlm_solvers, deqlm]
LAZY = ("deqlm_solvers.triton_kernels.availability",)
"""Of the Triton kernels, what is imported without triton."""
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    if not module.name.endswith("__main__")
    and (find_spec("triton") or module.name in LAZY or "triton_kernels." not in module.name)
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def undocumented(public) -> list[str]:
    """Return what lacks a docstring: the name itself, or a public method that inherits none either."""
    missing = [] if inspect.getdoc(public) else [public.__qualname__]
    if inspect.isclass(public) and public.__module__.startswith("deqlm"):
        for name, member in vars(public).items():
            documentable = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
            if documentable and not name.startswith("_") and not inspect.getdoc(getattr(public, name)):
                missing.append(f"{public.__qualname__}.{name}")
    return missing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_have_docstrings(package):
    public = [getattr(package, name) for name in package.__all__]
    missing = [gap for each in public if inspect.isclass(each) or inspect.isroutine(each) for gap in undocumented(each)]
    assert not missing
