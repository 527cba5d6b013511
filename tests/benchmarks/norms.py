"""Lengths of long float32 rows in two stages against a float64 copy: docs/records/norms.json.

python tests/benchmarks/norms.py
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from deqlm.reporting.environment import commit, cpu_name
from deqlm_solvers.core.norms import lengths

RECORD = Path(__file__).resolve().parents[2] / "docs/records/norms.json"
SHAPES = ((8, 2**20), (8, 2048, 768), (8, 2**15))

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        t, times = torch.randn(shape), {"two stages": [], "copy": []}
        for _ in range(9):
            for name in times:
                begun = time.perf_counter()
                lengths(t) if name == "two stages" else torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64)
                times[name].append(time.perf_counter() - begun)
        ratio = statistics.median(a / b for a, b in zip(times["copy"], times["two stages"], strict=True))
        rows.append({"shape": shape, "copy_over_two_stages": round(ratio, 1), "seconds": times})
    about = {"cpu": cpu_name(), "torch": torch.__version__, "commit": commit(), "seed": 0, "threads": 1}
    RECORD.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print([(row["shape"], row["copy_over_two_stages"]) for row in rows])
