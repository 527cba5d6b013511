"""Do the tests notice? Plants small, meaningful mistakes in the source, one at a time, and runs the tests concerned.

    python tests/benchmarks/mutation.py --count 100 --jobs 1 --out docs/records/mutation.json

A mutant is one change of one place: a comparison, an operator, a constant, a condition, a statement left out; in Python
by its syntax tree, in the compiled step's headers by its text. They are drawn by a seed from the files named in
`PARTS`, in proportion to the places that each has. A mutant is *caught* when a test of its part fails, *timed out* when
the tests do not end (which is caught too), and *survives* otherwise: then it needs a test, or the reason why nobody can
tell it from the original. Runs in a copy of the tree; nothing here is changed.

Two passes: every mutant meets the tests that bear the name of its file, and those who pass meet the rest of their part.
A record that is there goes on: what was caught stays so, survivors are judged again unless they have a "reason". It
holds for one draw from one state of the sources, which it names by commit and digest; another one needs a new record.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

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
    *("magnitudes", "inputs", "best_f", "newton", "newton_krylov", "deer"),
)
SECANT = solver_tests(
    *(
        "fixed_point",
        "anderson",
        "broyden",
        "fused",
        "wild_points",
        "repelling_roots",
        "fitted",
        "magnitudes",
        "contract",
    ),
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
    "gradients/test_masked.py",
]
TOKENS = [
    *(
        "deq/test_modes.py",
        "deq/test_sizes.py",
        "deq/test_frontier.py",
        "deq/test_causal.py",
        "models/test_frontier.py",
    ),
    *("models/test_modes.py", "models/test_at_once.py"),
]
FUZZ = "fuzz/test_solves.py"

NEAR = {
    "driver": ("rows", "stop", "inputs", "compact"),
    "pace": ("compact", "rows"),
    "ledger": ("best_f", "statuses", "stop", "mixed_rows", "rows"),
    "counted": ("cost", "inputs", "newton", "newton_krylov", "deer"),
    "narrow": ("compact",),
    "watch": ("anderson", "repelling_roots", "fused"),
    "secant": ("wild_points", "anderson", "broyden", "fused"),
    "damping": ("fitted", "wild_points", "fused"),
    "read.h": ("fused",),
    "step.cpp": ("fused", "mixed_rows"),
    "secant.h": ("fused",),
    "watch.h": ("fused",),
    "damping.h": ("fused",),
    "products.h": ("fused",),
    "systems.h": ("fused",),
    "dense": ("newton", "dogleg"),
    "implicit": ("second_order",),
    "rows": ("compact",),
    "noise": ("buffers",),
    "line_search": ("newton", "newton_krylov", "trial_points"),
    "attempts": ("fallback", "fallback_rows", "fallback_members"),
    "broyden": ("fitted",),
    "anderson": ("fitted",),
    "base": ("same_value", "failed_rows"),
    "adjoint": ("implicit", "overflow", "masked"),
    "linear_solve": ("implicit", "backward_choice", "overflow"),
    "trees": ("rows",),
    "cuts": ("failed_rows", "rows"),
    "held": ("masked",),
    "failures": ("deq", "failed_rows"),
    "chunks": ("modes", "sizes"),
    "pieces": ("modes", "causal"),
    "prefix": ("frontier",),
    "fixed_point": ("fixed_point", "deq", "rows"),
}
"""Tests that a file is likeliest to be caught by, besides one of its own name."""

PARTS: dict[str, tuple[list[str], list[str]]] = {
    "loop": (
        files(SOLVERS, "driver", "pace", "ledger", "measure", "schedule", "counted", "narrow", "runaway"),
        [*LOOP, FUZZ],
    ),
    "compiled loop": (files(f"{SOLVERS}/native", "read.h", "step.cpp"), [*LOOP, FUZZ]),
    "secant": (
        files(SOLVERS, "secant", "anderson", "broyden", "watch", "damping", "fixed_point"),
        [*SECANT, FUZZ],
    ),
    "compiled secant": (
        files(f"{SOLVERS}/native", "secant.h", "watch.h", "damping.h", "products.h", "systems.h"),
        [*SECANT, FUZZ],
    ),
    "newton": (
        files(SOLVERS, "newton", "newton_krylov", "dogleg", "dense", "line_search", "gmres", "linalg", "attempts"),
        [*NEWTON, FUZZ],
    ),
    "gradients": (
        files("deqlm/gradients", "base", "implicit", "adjoint", "linear_solve", "phantom", "one_step", "unrolled"),
        GRADIENTS,
    ),
    "rows": (files("deqlm", "rows", "trees", "cuts", "held", "noise", "buffers", "fixed_point", "failures"), ROWS),
    "chunks and window": (files("deqlm", "chunks", "pieces", "frontier", "prefix"), TOKENS),
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


def tests_of(mutant: Mutant) -> tuple[list[str], list[str]]:
    """Return the tests that are near a mutant, and the others of its part."""
    path = Path(mutant.file)
    names = {path.stem, *NEAR.get(path.stem, ()), *NEAR.get(path.name, ())}
    tests = PARTS[mutant.part][1]
    near = [test for test in tests if Path(test).stem.removeprefix("test_") in names]
    assert near, f"no test of part {mutant.part!r} is near {mutant.file}"
    return near, [test for test in tests if test not in near] or near


def judge(mutant: Mutant, tests: list[str], tree: Path, seconds: int) -> tuple[str, str, float]:
    """Return the verdict of ``tests`` on a mutant planted in ``tree``, what told, and how long it took."""
    path = tree / mutant.file
    before = path.read_bytes()
    path.write_bytes(before[: mutant.start] + mutant.new.encode() + before[mutant.end :])
    begun = time.perf_counter()
    printed = tree / "printed.txt"
    child = CONTEXT.Process(target=run_tests, args=(tree, [f"tests/{name}" for name in tests], printed))
    child.start()
    try:
        child.join(seconds)
        if child.exitcode is None:
            os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
            return "timed out", "", time.perf_counter() - begun
    finally:
        path.write_bytes(before)
    lines = printed.read_text(errors="replace").splitlines()
    told = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    if child.exitcode and child.exitcode > 0 and not told:
        raise RuntimeError("the tests did not run:\n" + "\n".join(lines[-20:]))
    took = time.perf_counter() - begun
    if not child.exitcode:
        return "survived", "", took
    return "caught", told.split(" - ")[0] or f"exit {child.exitcode}", took


CONTEXT = multiprocessing.get_context("forkserver")
"""Children start from a process that has imported what takes long and is not mutated."""
CONTEXT.set_forkserver_preload(["torch", "numpy", "pytest"])


def run_tests(tree: Path, tests: list[str], printed: Path) -> None:
    """Run ``tests`` of ``tree`` in this process, up to the first that fails; end with the exit status of pytest."""
    os.setsid()
    os.chdir(tree)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    places = [str(tree), str(tree / "solvers")]
    os.environ.update(
        PYTHONPATH=os.pathsep.join(places), HYPOTHESIS_PROFILE="mutation", DEQLM_CACHE=str(tree / "kernels")
    )
    sys.path[:0] = places
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line", *tests]))


def copy_tree(folder: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(("deqlm/", "solvers/", "tests/")) or "/" not in name:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)


def digest(parts: list[str]) -> str:
    """Return what tells one state of the mutated sources from another."""
    total = hashlib.sha256()
    for part in parts:
        for file in PARTS[part][0]:
            total.update((ROOT / file).read_bytes())
    return total.hexdigest()


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


NEAR_PASSED = "passed the tests near it"


class Record:
    """What was judged so far, written down after every verdict.

    Args:
        path: JSON file, or None to keep nothing.
        facts: what the draw is from; a record of other facts is refused.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"commit": commit(), **facts, "mutants": []}
        if path is not None and path.exists():
            self.data = json.loads(path.read_text())
            other = [name for name, value in facts.items() if self.data.get(name) != value]
            if other:
                raise SystemExit(f"{path} is a record of another {' and '.join(other)}; move it away")

    def find(self, mutant: Mutant) -> dict[str, Any] | None:
        entry = mutant._asdict()
        return next((m for m in self.data["mutants"] if entry.items() <= m.items()), None)

    def open(self, mutant: Mutant, near: bool) -> bool:
        """Say whether there is still something to find out about a mutant, by the tests near it or by the others."""
        known = self.find(mutant) or {"verdict": "survived"}
        return known["verdict"] == ("survived" if near else NEAR_PASSED) and "reason" not in known

    def note(self, mutant: Mutant, **verdict: Any) -> None:
        known = self.find(mutant)
        if known is None:
            self.data["mutants"].append({**mutant._asdict(), **verdict})
        else:
            known.update(verdict)
        if self.path:
            self.path.write_text(json.dumps(self.data, indent=1) + "\n")

    def count(self, *verdicts: str) -> int:
        return sum(m["verdict"] in verdicts for m in self.data["mutants"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    longest = "several times what the tests of a part take: whose tests do not end counts as caught"
    parser.add_argument("--seconds", type=int, default=1800, help=longest)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--list", action="store_true", help="print the drawn mutants and run nothing")
    parser.add_argument("--out", type=Path, help="JSON file that the verdicts are written to, and gone on with")
    given = parser.parse_args()
    parts = given.part or list(PARTS)
    found = all_mutants(parts)
    drawn = random.Random(given.seed).sample(found, min(given.count, len(found)))
    print(f"{len(found)} places, {len(drawn)} drawn", flush=True)
    if given.list:
        for m in drawn:
            print(f"{m.file}:{m.line}: {m.old!r} -> {m.new!r}")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    record = Record(given.out, {"seed": given.seed, "places": len(found), "sources": digest(parts)})
    trees: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        for job in range(given.jobs):
            copy_tree(Path(folder) / str(job))
            trees.put(Path(folder) / str(job))

        def work(mutant: Mutant, near: bool) -> None:
            tree = trees.get()
            try:
                verdict, told, took = judge(mutant, tests_of(mutant)[not near], tree, given.seconds)
            finally:
                trees.put(tree)
            if near and verdict == "survived":
                verdict = NEAR_PASSED
            record.note(mutant, verdict=verdict, told=told, seconds=round(took, 1))
            caught, judged = record.count("caught", "timed out"), len(record.data["mutants"])
            change = f"{mutant.file}:{mutant.line}: {mutant.old!r} -> {mutant.new!r}"
            print(f"[{judged}/{len(drawn)}, {caught} caught] {change}: {verdict} {told}", flush=True)

        for near in (True, False):
            wanted = [m for m in drawn if record.open(m, near)]
            list(pool.map(work, wanted, [near] * len(wanted)))


if __name__ == "__main__":
    main()
