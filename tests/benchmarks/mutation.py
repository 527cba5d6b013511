"""Do the tests notice? Plants small, meaningful mistakes in the source, one at a time, and runs the tests concerned.

    python tests/benchmarks/mutation.py --count 100 --jobs 2 --out docs/records/mutation.json

A mutant is one change of one place: a comparison, an operator, a constant, a condition, a statement left out; in Python
by its syntax tree, in the compiled step's headers by its text. They are drawn by a seed from the files named in
`PARTS`, in proportion to the places that each has. A mutant is *caught* when a test of its part fails, *timed out* when
the tests do not end (which is caught too), and *survives* otherwise: then it needs a test, or the reason why nobody can
tell it from the original. Runs in a copy of the tree; nothing here is changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOLVERS = "solvers/deqlm_solvers"


def solver_tests(*names: str) -> list[str]:
    return [f"solvers/test_{name}.py" for name in names]


def files(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" if "." in name else f"{folder}/{name}.py" for name in names]


LOOP = solver_tests(
    *(
        "statuses",
        "stop",
        "engines",
        "measure",
        "schedule",
        "runaway",
        "mixed_rows",
        "compact",
        "at_once",
        "rows",
        "cost",
        "fused",
    ),
    *("magnitudes", "inputs", "best_f"),
)
SECANT = solver_tests(
    *("anderson", "broyden", "fused", "wild_points", "repelling_roots", "fitted", "magnitudes", "contract"),
)
NEWTON = solver_tests(
    *("newton", "newton_krylov", "dogleg", "trial_points", "gmres", "linalg", "fallback", "fallback_rows"),
    *("fallback_members", "contract"),
)
GRADIENTS = [
    f"gradients/test_{name}.py"
    for name in (
        *("implicit", "phantom", "one_step", "unrolled", "second_order", "failed_rows", "mixed_rows", "masked"),
        *("backward_choice", "functional", "left_behind", "overflow", "same_value", "truth", "contract"),
    )
]
ROWS = [
    *("test_rows.py", "deq/test_deq.py", "deq/test_compact.py", "deq/test_noise.py", "deq/test_buffers.py"),
    *("deq/test_wrap_anything.py", "deq/test_kinds.py", "deq/test_bad_input.py", "gradients/test_failed_rows.py"),
]
TOKENS = [
    *("deq/test_modes.py", "deq/test_frontier.py", "deq/test_causal.py", "models/test_frontier.py"),
    *("models/test_modes.py", "models/test_at_once.py"),
]
FUZZ = "fuzz/test_solves.py"

PARTS: dict[str, tuple[list[str], list[str]]] = {
    "loop": (
        [
            *files(f"{SOLVERS}/loop", "loop", "evaluator", "derivative", "subset", "criterion", "schedule", "runaway"),
            *files(f"{SOLVERS}/loop", "tracker", "backend", "torch_backend", "native_backend"),
        ],
        [*LOOP, FUZZ],
    ),
    "compiled loop": (files(f"{SOLVERS}/native", "read.h", "step.cpp"), [*LOOP, FUZZ]),
    "secant": (
        files(
            f"{SOLVERS}/methods", "secant", "anderson", "broyden", "plain_phase", "decision", "damping", "fixed_point"
        ),
        [*SECANT, FUZZ],
    ),
    "compiled secant": (
        files(f"{SOLVERS}/native", "secant.h", "watch.h", "damping.h", "products.h", "systems.h"),
        [*SECANT, FUZZ],
    ),
    "newton": (
        [
            *files(f"{SOLVERS}/methods", "newton", "newton_krylov", "dogleg", "dense", "attempts"),
            *files(f"{SOLVERS}/linalg", "line_search", "gmres", "small_systems"),
        ],
        [*NEWTON, FUZZ],
    ),
    "gradients": (
        files("deqlm/gradients", "base", "implicit", "adjoint", "linear_solve", "phantom", "one_step", "unrolled"),
        GRADIENTS,
    ),
    "rows": (files("deqlm/wrap", "rows", "trees", "cuts", "held", "replay", "buffers", "turns", "failures"), ROWS),
    "chunks and window": (files("deqlm/sequence", "chunks", "pieces", "frontier", "prefix"), TOKENS),
}


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
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and not isinstance(node.value, bool):
            start, end = span(node)
            value = node.value
            yield made(start, end, repr(value + 1 if isinstance(value, int) else value * 1.5), node)
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


def judge(mutant: Mutant, tree: Path, seconds: int) -> tuple[str, str, float]:
    """Return the verdict on a mutant planted in ``tree``, what told, and how long it took."""
    path = tree / mutant.file
    before = path.read_bytes()
    path.write_bytes(before[: mutant.start] + mutant.new.encode() + before[mutant.end :])
    begun = time.perf_counter()
    environment = dict(os.environ, PYTHONPATH=f"{tree}:{tree}/solvers", OMP_NUM_THREADS="1", HYPOTHESIS_PROFILE="ci")
    tests = [f"tests/{name}" for name in PARTS[mutant.part][1]]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds)
        told = next((line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        verdict = "survived" if run.returncode == 0 else "caught"
    except subprocess.TimeoutExpired:
        verdict, told = "timed out", ""
    finally:
        path.write_bytes(before)
    return verdict, told.split(" - ")[0], time.perf_counter() - begun


def copy_tree(folder: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(("deqlm/", "solvers/", "tests/")) or "/" not in name:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=600, help="longest run of the tests of one mutant")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--list", action="store_true", help="print the drawn mutants and run nothing")
    parser.add_argument("--out", type=Path, help="JSON file that the verdicts are written to, after every mutant")
    given = parser.parse_args()
    found = all_mutants(given.part or list(PARTS))
    drawn = random.Random(given.seed).sample(found, min(given.count, len(found)))
    print(f"{len(found)} places, {len(drawn)} drawn", flush=True)
    if given.list:
        for m in drawn:
            print(f"{m.file}:{m.line}: {m.old!r} -> {m.new!r}")
        return
    trees: SimpleQueue[Path] = SimpleQueue()
    results = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        for job in range(given.jobs):
            copy_tree(Path(folder) / str(job))
            trees.put(Path(folder) / str(job))

        def work(mutant: Mutant) -> None:
            tree = trees.get()
            try:
                verdict, told, took = judge(mutant, tree, given.seconds)
            finally:
                trees.put(tree)
            results.append({**mutant._asdict(), "verdict": verdict, "told": told, "seconds": round(took, 1)})
            caught = sum(r["verdict"] != "survived" for r in results)
            change = f"{mutant.file}:{mutant.line}: {mutant.old!r} -> {mutant.new!r}"
            print(f"[{len(results)}/{len(drawn)}, {caught} caught] {change}: {verdict} {told}", flush=True)
            if given.out:
                given.out.write_text(
                    json.dumps({"seed": given.seed, "places": len(found), "mutants": results}, indent=1)
                )

        list(pool.map(work, drawn))


if __name__ == "__main__":
    main()
