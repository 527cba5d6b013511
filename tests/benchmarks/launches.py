"""What an evaluation costs on an accelerator beside f, per solver, counted: docs/records/launches.json and its table.

python tests/benchmarks/launches.py            # writes the record and the table of docs/guides/gpu.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqlm.testing.device import SimulatedDevice
from deqlm.testing.solvers.counting import Played, geometric
from deqlm_solvers import SOLVERS, Solve, Solver, Stop

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs/records/launches.json"
PAGE = ROOT / "docs/guides/gpu.md"
MARK = "<!-- launches: tests/benchmarks/launches.py -->"
END = "<!-- end of launches -->"

ROWS, UNKNOWNS = 4, 256
ENDLESS = Stop(rtol=0, atol=1e-300)
STOPS = {"tested": ENDLESS, "unread": ENDLESS.replace(check_every=0), "budget": Stop(rtol=0)}
"""Rules by what is done at every evaluation: a test that the host reads, one that it does not, and none."""
WITHOUT_DERIVATIVES = ("alternating_anderson", "anderson", "anderson_type1", "broyden", "df_sane", "fixed_point")
WITHOUT_DERIVATIVES += ("momentum", "reversible")


def measure(solver: Solver, stop: Stop, few: int = 16, many: int = 32) -> dict[str, float]:
    """Return launches, passes over the state and reads per evaluation, in the middle of a solve of played frames."""
    frames, z0 = geometric(0.98, ROWS, UNKNOWNS, many), torch.zeros(ROWS, UNKNOWNS)
    counts = []
    for length in (few, many):
        with SimulatedDevice(numbers=z0.numel()) as device:
            Solve(solver, stop.replace(max_iter=length))(Played(frames), z0)
        counts.append((device.kernels, device.bytes / (z0.numel() * 4), device.reads.total()))
    names = ("launches", "passes", "reads")
    rates = ((b - a) / (many - few) for a, b in zip(*counts, strict=True))
    return {name: round(rate, 2) for name, rate in zip(names, rates, strict=True)}


def table(record: dict[str, Any]) -> str:
    """Return the record as a table in Markdown."""
    lines = ["| solver | tested: launches / passes / reads | without a read | budget |", "|---|---|---|---|"]
    for name, kinds in record.items():
        cells = [" / ".join(f"{kinds[kind][part]:g}" for part in ("launches", "passes", "reads")) for kind in STOPS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def made() -> dict[str, Any]:
    """Return what is recorded, measured anew."""
    return {
        name: {kind: measure(SOLVERS[name](), stop) for kind, stop in STOPS.items()} for name in WITHOUT_DERIVATIVES
    }


def written(page: str, record: dict[str, Any]) -> str:
    """Return a page with the table of ``record`` between its marks."""
    before, rest = page.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{END}{rest.split(END)[1]}"


def halves(z: Tensor) -> Tensor:
    """A map that every solver solves in a few evaluations."""
    return 0.5 * torch.cos(z) + 0.1


if __name__ == "__main__":
    record = made()
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    if PAGE.exists():
        PAGE.write_text(written(PAGE.read_text(), record))
    print(table(record))
