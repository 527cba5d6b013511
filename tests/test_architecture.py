"""Arrows point one way, the top level is fixed, files stay small, optional parts stay lazy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from importlinter.cli import lint_imports

from benchmarks.mutated import PARTS

ROOT = Path(__file__).resolve().parents[1]

TOP_LEVEL = {
    *("deqlm", "solvers", "docs", "examples", "tests", "pyproject.toml"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "constraints.txt", "mkdocs.yml"),
    *(".ci", ".git", ".gitignore", ".pre-commit-config.yaml"),
}
MAX_LINES = 400
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".txt", ".sh", ""}
CORE = {"torch", "numpy", "deqlm", "deqlm_solvers", *sys.stdlib_module_names}
OPTIONAL = ["scipy", "torchdeq", "matplotlib", "tqdm", "triton", "transformers", "mamba_ssm", "numba"]


class Import(NamedTuple):
    """One imported module, as written at one line; ``lazy`` inside a function or under TYPE_CHECKING."""

    file: Path
    line: int
    module: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(file: Path) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            module = node.module or ""
            for alias in node.names:
                yield Import(file, node.lineno, f"{module}.{alias.name}", lazy)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inner = lazy or guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(file.read_text()), lazy=False)


def test_arrows_point_one_way(monkeypatch):
    """The contracts of pyproject.toml hold: layers, no circles; imports inside functions count too."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_the_top_of_the_package_leaves_the_outer_rooms_alone():
    imported = {i.module.split(".")[1] for i in imports_of(ROOT / "deqlm/__init__.py") if i.module.startswith("deqlm.")}
    assert not imported & {"hf", "comparison", "cli", "examples"}


def test_nothing_is_loose_at_the_root():
    loose = {path.name for path in (ROOT / "deqlm").glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "_version.py", "deq.py", "functional.py"}


def test_optional_packages_are_imported_inside_functions():
    rooms = python_files("deqlm", "solvers/deqlm_solvers")
    found = [i for file in rooms for i in imports_of(file) if not i.lazy and i.module.split(".")[0] not in CORE]
    # the kernels themselves are imported inside functions, and need triton where they stand
    rooms_apart = {ROOT / "deqlm/hf", ROOT / "solvers/deqlm_solvers/triton_kernels"}
    eager = [str(i) for i in found if not rooms_apart & set(i.file.parents)]
    assert not eager, "\n".join(eager)


def test_only_trees_knows_pytrees():
    files = python_files("deqlm", "solvers/deqlm_solvers", "examples")
    found = {file for file in files if re.search(r"\b_?pytree\b", file.read_text())}
    assert found <= {ROOT / "deqlm/wrap/trees.py"}


def test_one_file_holds_the_loop():
    looping = set()
    for file in python_files("deqlm", "solvers/deqlm_solvers", "examples"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.For | ast.While | ast.comprehension):
                head = node.test if isinstance(node, ast.While) else node.iter
                if "max_iter" in ast.unparse(head):
                    looping.add(file)
    assert looping == {ROOT / "solvers/deqlm_solvers/loop/loop.py"}


def test_mutants_are_planted_in_files_that_exist_and_judged_by_tests_that_do():
    named = [*(file for files, _ in PARTS.values() for file in files)]
    named += [f"tests/{test}" for _, tests in PARTS.values() for test in tests]
    assert not [name for name in named if not (ROOT / name).is_file()]


def ignored(path: Path) -> bool:
    """Tell whether .gitignore names the path; git itself may be missing where the tests run."""
    patterns = (ROOT / ".gitignore").read_text().split()
    names = path.relative_to(ROOT).parts
    return any(fnmatch(name, pattern.rstrip("/")) for name in names for pattern in patterns)


def test_the_top_level_is_fixed():
    extra = {path.name for path in ROOT.iterdir() if not ignored(path)} - TOP_LEVEL
    assert not extra


def test_files_are_small():
    long = []
    for top in sorted(TOP_LEVEL - {"docs", ".git"}):
        for path in [ROOT / top, *(ROOT / top).rglob("*")]:
            if path.is_file() and path.suffix in TEXT and not ignored(path):
                lines = len(path.read_text().splitlines())
                if lines > MAX_LINES:
                    long.append(f"{path.relative_to(ROOT)}: {lines} lines")
    assert not long, "\n".join(long)


def test_importing_leaves_optional_packages_alone(tmp_path):
    packages = "deqlm_solvers, deqlm_solvers.adapters, deqlm, deqlm.cli.main"
    script = f"import sys, {packages}; print(*sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    plain = "import sys, torch; print(*sorted(sys.modules))"
    ours, torchs = (
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()
        for code in (script, plain)
    )
    assert not set(ours) - set(torchs)
