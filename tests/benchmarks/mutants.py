"""Small, meaningful mistakes, each a change of one place: of Python by its syntax tree, of C++ by its text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutated import PARTS

__all__ = ["ROOT", "Mutant", "all_mutants"]

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One change: the text from ``start`` to ``end`` of a file becomes ``new``."""

    part: str
    file: str
    start: int
    end: int
    old: str
    new: str
    line: int


COMPARE = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.BitAnd: "|", ast.BitOr: "&", ast.FloorDiv: "*"}
WORDS = {
    "torch.maximum": "torch.minimum",
    "torch.minimum": "torch.maximum",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    ".any(": ".all(",
    ".all(": ".any(",
    "masked_fill_(": "masked_fill(",
    ".detach()": "",
}


def python_mutants(part: str, file: str) -> Iterator[Mutant]:
    text = (ROOT / file).read_text()
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    data = text.encode()

    def span(node: ast.AST) -> tuple[int, int]:
        return lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def made(start: int, end: int, new: str, node: ast.AST) -> Mutant:
        return Mutant(part, file, start, end, data[start:end].decode(), new, node.lineno)  # type: ignore[attr-defined]

    def between(left: ast.AST, right: ast.AST, table: dict, op: ast.AST, node: ast.AST) -> Iterator[Mutant]:
        start, end = span(left)[1], span(right)[0]
        match = re.search(rb"(<=|>=|==|!=|//|<|>|\+|-|\*|/|&|\|)", data[start:end])
        if match and type(op) in table:
            yield made(start + match.start(), start + match.end(), table[type(op)], node)

    tree = ast.parse(text)
    skipped = {id(c) for n in ast.walk(tree) for c in _annotations(n)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from between(node.left, node.comparators[0], COMPARE, node.ops[0], node)
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, BINARY, node.op, node)
        elif isinstance(node, ast.BoolOp):
            new = "or" if isinstance(node.op, ast.And) else "and"
            start, end = span(node.values[0])[1], span(node.values[1])[0]
            match = re.search(rb"\b(and|or)\b", data[start:end])
            if match:
                yield made(start + match.start(), start + match.end(), new, node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            start, _ = span(node)
            yield made(start, span(node.operand)[0], "", node)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)
        ):
            start, end = span(node)
            value = node.value
            yield made(start, end, repr(value + 1 if isinstance(value, int) else value * 1.5 or 1.0), node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield made(*span(node), repr(not node.value), node)
        elif isinstance(node, ast.Call | ast.Attribute):
            yield from _words(data, *span(node), node, made)
        elif isinstance(node, ast.Assign | ast.AugAssign) and not isinstance(
            getattr(node, "value", None), ast.Constant
        ):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute):
                yield made(*span(node), "pass", node)


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    """Return what runs only as a type or a text."""
    roots = [getattr(node, name, None) for name in ("annotation", "returns")]
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        roots.append(node)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        roots.append(node.value)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("require", "whole", "number")
    ):
        roots.append(node)
    for root in roots:
        if root is not None:
            yield from ast.walk(root)


def _words(data: bytes, start: int, end: int, node: ast.AST, made) -> Iterator[Mutant]:
    inner = node.func if isinstance(node, ast.Call) else None
    if inner is None or not isinstance(inner, ast.Attribute):
        return
    for old, new in WORDS.items():
        place = data.find(old.encode(), start, end)
        if place >= 0:
            yield made(place, place + len(old), new, node)
            return


TEXT = [
    (r"(?<![<>=!\-+*/&|])<=(?!=)", "<"),
    (r"(?<![<>=!\-+*/&|])>=(?!=)", ">"),
    (r"(?<= )<(?= )", "<="),
    (r"(?<= )>(?= )", ">="),
    (r"(?<= )==(?= )", "!="),
    (r"(?<= )&&(?= )", "||"),
    (r"(?<= )\|\|(?= )", "&&"),
    (r"(?<= )\+(?= )", "-"),
    (r"(?<= )-(?= )", "+"),
    (r"(?<= )\*(?= )", "/"),
    (r"(?<=[ (])!(?=[a-z(])", ""),
    (r"\b(0\.\d+|1e\d+)\b", "2"),
]


def text_mutants(part: str, file: str) -> Iterator[Mutant]:
    text = (ROOT / file).read_text()
    at = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        code = line.split("//")[0]
        if not code.lstrip().startswith(("#", "template", "namespace")):
            for pattern, new in TEXT:
                for match in re.finditer(pattern, code):
                    start, end = (len(text[: at + m].encode()) for m in match.span())
                    yield Mutant(part, file, start, end, match.group(), new, number)
        at += len(line)


def all_mutants(parts: list[str]) -> list[Mutant]:
    found = []
    for part in parts:
        for file in PARTS[part][0]:
            found += (python_mutants if file.endswith(".py") else text_mutants)(part, file)
    return found
