"""What a reader walks through: frames, files and types of our own code in one forward of a `DEQ`.

    PYTHONPATH=. python tests/benchmarks/walk.py [--out docs/records/walk.json] [--label before]

Counts, not times: the second call of ``DEQ(Sequential(Linear, Tanh))`` with Anderson is traced by `sys.setprofile`. "To
the loop" are the frames from ``DEQ.forward`` to the function that loops, both counted; "to the layer" those from the
loop to the user's layer, the loop and the layer left out. Comprehensions and lambdas are frames, as Python has it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import deqlm

OWN = ("/deqlm/", "/deqlm_solvers/")
LOOP = "/deqlm_solvers/loop/loop.py"


class Probe(nn.Sequential):
    """The user's layer; it notes the stack of its first evaluation of a call."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's value."""
        self.calls += 1
        if self.calls == 2:
            self.stack = [code for frame in _stack(sys._getframe(1)) if (code := _own(frame))]
        return super().forward(z)

    calls = 0
    stack: list[tuple[str, str, int]]


def _stack(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def _own(frame: FrameType) -> tuple[str, str, int] | None:
    """Return file, name and line of a frame of our own code."""
    file = frame.f_code.co_filename
    if not any(part in file for part in OWN) or "/tests/" in file:
        return None
    return file, frame.f_code.co_qualname, frame.f_code.co_firstlineno


def walk(impl: str) -> dict[str, Any]:
    """Return the counts of one forward with Anderson's ``impl``."""
    torch.manual_seed(0)
    layer = Probe(nn.Linear(8, 8), nn.Tanh())
    with torch.no_grad():
        layer[0].weight.mul_(0.9 / torch.linalg.matrix_norm(layer[0].weight, 2))
    deq = deqlm.DEQ(layer, solver=deqlm.Anderson(impl=impl), stop=deqlm.Stop(rtol=1e-6))
    x = torch.randn(4, 8)
    frames: list[tuple[str, str, int]] = []
    types: set[type] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (code := _own(frame)) is None:
            return
        frames.append(code)
        owner = frame.f_locals.get("self")
        if owner is not None and type(owner).__module__.startswith(("deqlm", "deqlm_solvers")):
            types.add(type(owner))

    with torch.no_grad():
        deq(x)
        layer.calls = 0
        sys.setprofile(look)
        try:
            _, sol = deq(x, with_stats=True)
        finally:
            sys.setprofile(None)
    evaluations = int(sol.cost.evaluations)
    per = _per_evaluation(deq, x, impl)
    names = [name for _, name, _ in layer.stack]
    at = max(i for i, (file, *_) in enumerate(layer.stack) if file.endswith(LOOP))
    start = names.index("DEQ.forward")
    return {
        "to_the_loop": at - start + 1,
        "to_the_layer": len(names) - at - 1,
        "files": len({file for file, *_ in frames}),
        "types": len(types),
        "frames": len(frames),
        "frames_per_evaluation": per,
        "evaluations": evaluations,
        "ladder": names[start : at + 1],
        "down": names[at + 1 :],
        "type_names": sorted(kind.__name__ for kind in types),
    }


def _per_evaluation(deq: deqlm.DEQ, x: torch.Tensor, impl: str) -> float:
    """Return how many frames one more evaluation costs: the slope between two lengths of the same solve."""
    counts = []
    for length in (4, 12):
        short = deqlm.DEQ(deq.layer, solver=deqlm.Anderson(impl=impl), stop=deqlm.Stop(max_iter=length, rtol=1e-15))
        short.failures = type(deq.failures)("ignore", "keep")
        seen = 0

        def look(frame: FrameType, event: str, _: Any) -> None:
            nonlocal seen
            seen += event == "call" and _own(frame) is not None

        with torch.no_grad():
            short(x)
            sys.setprofile(look)
            try:
                short(x)
            finally:
                sys.setprofile(None)
        counts.append(seen)
    return (counts[1] - counts[0]) / 8


def main() -> None:
    """Print the counts, and keep them under a label."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]).split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, help="JSON file that holds one entry a label")
    parser.add_argument("--label", default="now", help="name of the entry (default: now)")
    arguments = parser.parse_args()
    import warnings

    warnings.simplefilter("ignore")
    found = {"compiled": walk("cpp"), "torch": walk("torch")}
    print(json.dumps(found, indent=1))
    if arguments.out is not None:
        kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        arguments.out.write_text(json.dumps({**kept, arguments.label: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
