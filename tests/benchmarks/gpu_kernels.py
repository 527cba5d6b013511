"""What the Triton kernels compile to, and what an evaluation launches and moves, without a GPU.

    PYTHONPATH=.:solvers:tests python tests/benchmarks/gpu_kernels.py binaries
    TRITON_INTERPRET=1 PYTHONPATH=.:solvers:tests python tests/benchmarks/gpu_kernels.py launches
    python tests/benchmarks/gpu_kernels.py page

The first compiles every specialisation of tests/gpu/test_compiled.py and notes registers, spills, shared bytes and
instructions of the largest one of each kernel; minutes of a CPU, seconds from triton's cache. The second counts the
last evaluation of each case of tests/gpu/interpreted/test_launches.py: launches, and passes, bytes moved over those of
the state; of ours from loads and stores in the interpreter, of torch operations and of torchdeq from operations that
are no views and the bytes of their arguments and results. What f does is left out. The third writes both records into
the tables of docs/guides/gpu_kernels.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/guides/gpu_kernels.md"
RECORDS = {
    "launches": ROOT / "docs/records/gpu_launches.json",
    "binaries": ROOT / "docs/records/gpu_kernels.json",
}
LEAST = {
    "FixedPoint()": 4,
    "FixedPoint(damping=0.8)": 4,
    "FixedPoint(), long rows": 4,
    "FixedPoint(), tokens": 4,
    "Anderson()": 31,
    "Anderson(memory=6)": 19,
    "Broyden()": 87,
    'Broyden(update="bad")': 49,
}
"""Passes of a step that reads the point, f and the history once, the history twice where its weights depend on products
with it, and writes the next point, the best one with its residual, the newest pair and where the next one starts."""


class Moved(TorchDispatchMode):
    """Counts operations and the bytes that they read and write, outside of f."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes, self.inside = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.inside and not func.is_view and func._schema.name != "aten::detach":
            self.operations += 1
            tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
            self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        return made


def counted_operations(solve: Any, unknowns: int) -> dict[str, float]:
    """Return operations and passes between the last two evaluations of f."""
    book, seen = Moved(), []
    b, turn = torch.randn(1, unknowns), torch.linspace(0.2, 0.97, unknowns)

    def f(z: Tensor) -> Tensor:
        seen.append((book.operations, book.bytes))
        book.inside = True
        made = torch.tanh(turn * z.roll(1, 1) + b)
        book.inside = False
        return made

    with book:
        solve(f, torch.zeros(1, unknowns))
    (operations, size), (later, more) = seen[-3:-1]
    return {"launches": later - operations, "passes": round((more - size) / 4 / unknowns, 1)}


def load(path: str) -> Any:
    """Return a test file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    return module


def launches() -> dict[str, Any]:
    """Return what an evaluation takes, by case."""
    from gpu.interpreter import install

    install()
    cases = load("tests/gpu/interpreted/test_launches.py")
    record: dict[str, Any] = {"torch": torch.__version__, "cases": {}, "operations": {}, "torchdeq": {}}
    for name, (solver, unknowns, stop) in cases.CASES.items():
        from deqlm_solvers import Layout, Solve

        record["cases"][name] = cases.counted(name)
        layout, plain = Layout(leaves=((64, unknowns // 64),)), Solve(solver.replace(impl="torch"), stop)
        record["operations"][name] = counted_operations(lambda f, z, s=plain, at=layout: s(f, z, at), unknowns)
        print(name, record["cases"][name], record["operations"][name], flush=True)
    from torchdeq.solver import get_solver

    for name, memory in (
        ("fixed_point_iter", {}),
        ("anderson", {"m": 12}),
        ("anderson", {"m": 6}),
        ("broyden", {"m": 20}),
    ):
        label = f"{name}({', '.join(f'{k}={v}' for k, v in memory.items())})"
        solve = get_solver(name)
        options = {"max_iter": 26, "tol": 1e-14, "stop_mode": "rel", **memory}
        record["torchdeq"][label] = counted_operations(lambda f, z, s=solve, o=options: s(f, z, **o), 4096)
    return record


def binaries() -> dict[str, Any]:
    """Return the largest specialisation of each kernel, by dtype and target."""
    import triton

    from gpu.compiled import TARGETS, build

    tests = load("tests/gpu/test_compiled.py")
    record: dict[str, Any] = {"triton": triton.__version__, "kernels": {}}
    for dtype in (torch.float32, torch.float64):
        for name in tests.CASES:
            for one in tests.specialisations(name, dtype):
                for target in TARGETS:
                    made = build(one, target)._asdict()
                    key = f"{one.kernel.__name__}, {str(dtype).removeprefix('torch.')}"
                    held = record["kernels"].setdefault(key, {}).setdefault(target, made)
                    for field, value in made.items():
                        held[field] = max(held[field], value)
        print(dtype, flush=True)
    return record


def tables() -> dict[str, str]:
    """Return the tables of the page, by name."""
    held = json.loads(RECORDS["launches"].read_text())
    rows = ["| | Triton | torch operations | must move |", "|---|---|---|---|"]
    for name, ours in held["cases"].items():
        plain = held["operations"][name]
        rows.append(f"| `{name}` | {_both(ours)} | {_both(plain)} | {LEAST[name]} |")
    rows += [f"| torchdeq `{name}` | | {_both(theirs)} | |" for name, theirs in held["torchdeq"].items()]
    made = json.loads(RECORDS["binaries"].read_text())
    targets = list(next(iter(made["kernels"].values())))
    binaries = [f"| kernel | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
    for name, by_target in sorted(made["kernels"].items()):
        cells = [f"{by_target[t]['registers']} / {by_target[t]['instructions']}" for t in targets]
        binaries.append(f"| `{name.split(',')[0]}`,{name.split(',')[1]} | {' | '.join(cells)} |")
    return {"launches": "\n".join(rows), "binaries": "\n".join(binaries)}


def _both(counted: dict[str, float]) -> str:
    return f"{counted['launches']} / {counted['passes']:g}"


def page(text: str) -> str:
    """Return the page with its tables as the records have them."""
    for name, table in tables().items():
        head, rest = text.split(f"<!-- {name}: tests/benchmarks/gpu_kernels.py -->")
        text = f"{head}<!-- {name}: tests/benchmarks/gpu_kernels.py -->\n\n{table}\n\n<!-- end of {name} -->"
        text += rest.split(f"<!-- end of {name} -->")[1]
    return text


def main() -> None:
    """Write a record, or the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("binaries", "launches", "page"))
    what = parser.parse_args().what
    if what == "page":
        PAGE.write_text(page(PAGE.read_text()))
        return
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    record = launches() if what == "launches" else binaries()
    RECORDS[what].write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
