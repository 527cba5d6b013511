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
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mutants import ROOT, Mutant, all_mutants
from mutated import PARTS, tests_near


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
                verdict, told, took = judge(mutant, tests_near(mutant.part, mutant.file)[not near], tree, given.seconds)
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
