"""The real compiler, in a process of its own: every solver, stop and gradient agrees with the eager solve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
import torch
import deqlm
from deqlm import DEQ, Stop

torch.manual_seed(0)
torch.set_num_threads(1)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, z):
        return self.norm(0.3 * self.attention(z, z, z, need_weights=False)[0] + torch.tanh(0.5 * z))


layer = Layer().double()
x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
weight = torch.randn(5, 8, dtype=torch.float64)
eager, compiled = DEQ(layer, on_failure="ignore"), DEQ(layer, on_failure="ignore", compile=True)


def outcome(deq, x, **how):
    y, sol = deq(x, with_stats=True, **how)
    grads = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
    return sol, [y, torch.cat([grad.flatten() for grad in grads])]


told = []
STOPS = [Stop(rtol=1e-5), Stop(max_iter=6, rtol=0), Stop(rtol=1e-5, per="token"), Stop(max_iter=3, rtol=1e-7)]
for solver in ("anderson", "broyden", "fixed_point"):
    for stop in STOPS:
        for gradient in ("implicit", "phantom", "one_step"):
            how = {"solver": solver, "stop": stop, "gradient": gradient}
            (sol, want), (made, got) = outcome(eager, x, **how), outcome(compiled, x, **how)
            told.append({
                "how": f"{solver} {stop} {gradient}",
                "steps": (sol.steps - made.steps).abs().max().item(),
                "status": torch.equal(sol.status, made.status),
                "cost": sol.cost == made.cost,
                "apart": max(((a - b).norm() / a.norm()).item() for a, b in zip(want, got)),
            })
before = len(compiled.compiler.report)
for rows in (2, 4, 7):
    more = torch.randn(rows, 5, 8, dtype=torch.float64, requires_grad=True)
    (sol, want), (made, got) = outcome(eager, more), outcome(compiled, more)
    told.append({
        "how": f"{rows} rows",
        "steps": (sol.steps - made.steps).abs().max().item(),
        "status": torch.equal(sol.status, made.status),
        "cost": True,
        "apart": max(((a - b).norm() / a.norm()).item() for a, b in zip(want, got)),
    })
report = [(made.part, made.cached) for made in compiled.compiler.report]
print(json.dumps({"told": told, "before": before, "report": report}))
"""


def run(cache):
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'solvers'}", "TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_machine_code_agrees_with_the_eager_solve_and_is_found_again(tmp_path):
    first = run(tmp_path)
    for made in first["told"]:
        assert made["steps"] == 0, made
        assert made["status"], made
        assert made["cost"], made
        assert made["apart"] < 1e-9, made
    parts = [part for part, _ in first["report"]]
    # one program for all solvers and stops, one more for all other batch sizes; steps begin with a graph or without
    assert parts[: first["before"]] == ["loop", "adjoint", "steps", "steps"]
    assert parts[first["before"] :] == ["loop", "adjoint"]
    assert not any(cached for part, cached in first["report"] if part != "steps")
    again = run(tmp_path)
    assert all(cached for _, cached in again["report"])
    assert again["told"] == first["told"]
