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

ROOT = Path(__file__).resolve().parents[1]

ARROWS = {
    "deqlm_solvers": set(),
    "eager": set(),
    "graph": set(),
    "held": {"graph", "deqlm_solvers"},
    "cuts": {"deqlm_solvers"},
    "trees": {"deqlm_solvers"},
    "rows": {"held", "cuts", "trees"},
    "buffers": set(),
    "turns": set(),
    "noise": {"buffers", "turns"},
    "likely_mistakes": {"rows"},
    "failures": {"likely_mistakes"},
    "inject": {"rows"},
    "memory_cap": {"rows"},
    "gradients": {"failures", "rows", "graph", "left_behind"},
    "fixed_point": {"gradients", "memory_cap", "eager"},
    "modes": {"deqlm_solvers"},
    "pieces": {"cuts", "rows", "noise"},
    "prefix": {"deqlm_solvers"},
    "frontier": {"pieces", "prefix"},
    "sizes": set(),
    "chunks": {"fixed_point", "modes", "frontier", "sizes"},
    "causal": {"chunks", "inject"},
    "functions": set(),
    "hidden": {"functions"},
    "left_behind": {"functions"},
    "collective": {"gradients"},
    "deq": {"causal", "collective", "hidden"},
    "ops": set(),
    "layers": {"ops"},
    "models": {"deq", "layers"},
    "training": {"deq"},
    "hf": {"models", "training"},
    "diagnostics": {"models", "training", "compare"},
    "compat": {"models", "training"},
    "compare": {"models", "training"},
    "cli": {"models", "training", "compare", "compat", "diagnostics"},
    "examples": {"hf", "training"},
}
"""Room -> rooms that it may import directly; what those may import, it may too."""

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


def room_of_file(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return {"solvers": "deqlm_solvers", "examples": "examples"}.get(parts[0]) or parts[1]


def room_of_module(module: str) -> str | None:
    """Return the room that a dotted name leads to; "__init__" for the top of deqlm, None for foreign modules."""
    first, *rest = module.split(".")
    if first != "deqlm":
        return first if first in ARROWS else None
    is_room = rest and ((ROOT / "deqlm" / rest[0]).is_dir() or (ROOT / "deqlm" / f"{rest[0]}.py").exists())
    return rest[0] if is_room else "__init__"


def reach(room: str) -> set[str]:
    direct = ARROWS[room]
    return direct.union(*(reach(other) for other in direct))


def test_every_module_has_a_room():
    known = ARROWS.keys() | {"__init__", "__main__"}
    homeless = {room_of_file(file) for file in python_files("deqlm")} - known
    assert not homeless, f"say in ARROWS what these may import: {sorted(homeless)}"


def test_arrows_point_one_way():
    outer = {"hf", "diagnostics", "compat", "compare", "cli", "examples"}
    wrong = []
    for file in python_files("deqlm", "solvers/deqlm_solvers", "examples"):
        room = room_of_file(file)
        if room not in ARROWS:
            continue
        allowed = reach(room) | {room} | ({"__init__"} if room in outer else set())
        for imported in imports_of(file):
            target = room_of_module(imported.module)
            if (room, target) == ("cli", "hf") and imported.lazy:
                continue  # a command that reads a model; `import deqlm.cli` stays without transformers
            if target is not None and target not in allowed:
                wrong.append(f"{imported}: {room} may not know {target}")
    assert not wrong, "\n".join(wrong)


def test_the_top_of_the_package_leaves_the_outer_rooms_alone():
    imported = {room_of_module(i.module) for i in imports_of(ROOT / "deqlm/__init__.py") if not i.lazy}
    assert not imported & {"hf", "compare", "cli", "examples"}


def test_layers_and_deq_do_not_know_each_other():
    assert not reach("layers") & {"deq", "fixed_point", "gradients", "deqlm_solvers"}
    assert not reach("deq") & {"layers", "ops", "models"}


def test_optional_packages_are_imported_inside_functions():
    rooms = python_files("deqlm", "solvers/deqlm_solvers")
    found = [i for file in rooms for i in imports_of(file) if not i.lazy and i.module.split(".")[0] not in CORE]
    eager = [str(i) for i in found if room_of_file(i.file) != "hf"]
    assert not eager, "\n".join(eager)


def test_only_trees_knows_pytrees():
    files = python_files("deqlm", "solvers/deqlm_solvers", "examples")
    found = {file for file in files if re.search(r"\b_?pytree\b", file.read_text())}
    assert found <= {ROOT / "deqlm/trees.py"}


def test_only_the_driver_holds_the_loop():
    looping = set()
    for file in python_files("deqlm", "solvers/deqlm_solvers", "examples"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.For | ast.While | ast.comprehension):
                head = node.test if isinstance(node, ast.While) else node.iter
                if "max_iter" in ast.unparse(head):
                    looping.add(file)
    assert looping == {ROOT / "solvers/deqlm_solvers/driver.py"}


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
