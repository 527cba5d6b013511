"""Tensors are made on a device and of a dtype that the call names, never on defaults, which users may change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXEMPT = ("models", "hf", "layers", "ops", "testing")
"""Modules that are built on the default device like those of torch, and checks of plug-ins,
which set and put back the defaults."""

FACTORIES = {"zeros", "ones", "empty", "full", "eye", "linspace", "rand", "randn", "tensor"}
"""Take the default device, and the default dtype for floating-point values."""
WHOLE = {"arange", "randint", "randperm", "as_tensor"}
"""Take the default device."""


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in FACTORIES | WHOLE:
                yield node.func.attr, node


def missing(name: str, call: ast.Call) -> set[str]:
    given = {keyword.arg for keyword in call.keywords}
    if None in given or "out" in given:  # **options say it
        return set()
    wanted = {"device"} | ({"dtype"} if name in FACTORIES else set())
    return wanted - given


def test_no_tensor_is_made_on_a_default():
    found = []
    for file in sorted((ROOT / "deqlm").rglob("*.py")):
        if not file.relative_to(ROOT / "deqlm").as_posix().startswith(EXEMPT):
            for name, call in calls(file):
                if lacking := missing(name, call):
                    where = f"{file.relative_to(ROOT)}:{call.lineno}"
                    found.append(f"{where}: torch.{name} without {' and '.join(sorted(lacking))}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "lacking"),
    [
        ("torch.zeros(3)", {"device", "dtype"}),
        ("torch.zeros(3, dtype=d)", {"device"}),
        ("torch.arange(3)", {"device"}),
        ("torch.randn(3, **like)", set()),
        ("torch.tensor(3, dtype=d, device=e)", set()),
    ],
)
def test_what_is_looked_for(source: str, lacking: set[str], tmp_path: Path):
    (tmp_path / "a.py").write_text(source)
    ((name, call),) = calls(tmp_path / "a.py")
    assert missing(name, call) == lacking
