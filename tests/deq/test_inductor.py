"""Compiled models and layers with the compiler that everybody uses: in a process of its own, as users start one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

SETUP = """
import copy, warnings, torch, deqlm
from torch import nn
warnings.simplefilter("ignore")
torch.manual_seed(0)
torch.set_num_threads(1)
TIGHT = deqlm.Stop(max_iter=200, rtol=1e-6)

def layer():
    made = nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.LayerNorm(5))
    made[0].weight.data.mul_(0.3)
    made[2].weight.data.mul_(0.3)
    return made

def trained(run, module, x):
    module.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in module.parameters())]

def same(run, plain, module, *sizes):
    for rows in sizes:
        x = torch.randn(rows, 5)
        want = trained(plain, module, x)
        torch.testing.assert_close(trained(run, module, x), want, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(run(x), plain(x), rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(run(x), plain(x), rtol=1e-4, atol=1e-5)
"""

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.deq = deqlm.DEQ(layer(), solver=SOLVER, gradient=GRADIENT, stop=TIGHT)
        self.again = deqlm.Equilibrium(stop=TIGHT)
        self.weight = nn.Parameter(0.2 * torch.randn(5, 5))

    def forward(self, x):
        y = self.deq(torch.relu(self.first(x)))
        y = self.again(lambda z: torch.tanh(z @ self.weight + y), torch.zeros_like(y))
        sol = deqlm.solve(lambda z, y: 0.5 * torch.cos(z) + y, torch.zeros_like(y), args=(y,), stop=TIGHT)
        return self.last(sol.z)

model = Model()
names = list(model.state_dict())
compiled = torch.compile(model, mode=MODE)
same(compiled, model, model, 3, 4, 6)
assert [name.removeprefix("_orig_mod.") for name in compiled.state_dict()] == names
copied = copy.deepcopy(compiled)
same(copied, copied._orig_mod, copied._orig_mod, 4)
model.eval()
same(compiled, model, model, 3)
"""

LAYER = """
inner = layer()
for gradient in GRADIENTS:
    options = {"gradient": gradient, "stop": TIGHT, "solver": "fixed_point" if gradient == "unrolled" else SOLVER}
    same(deqlm.DEQ(torch.compile(inner, mode=MODE), **options), deqlm.DEQ(inner, **options), inner, 3, 4)
"""


def run(code: str, **names: object) -> None:
    """Run code in a process that compiles for itself."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "solvers")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    done = subprocess.run([sys.executable, "-c", given + SETUP + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("solver", "gradient", "mode"),
    [
        ("anderson", "implicit", "default"),
        ("broyden", "phantom", "reduce-overhead"),
        ("fixed_point", "unrolled", "default"),
        ("newton_krylov", "implicit", "default"),
        ("newton", "one_step", "default"),
    ],
)
def test_a_compiled_model_that_holds_solves_is_the_plain_one(solver: str, gradient: str, mode: str) -> None:
    run(MODEL, SOLVER=solver, GRADIENT=gradient, MODE=mode)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_layer_solves_and_trains_like_the_plain_one(mode: str) -> None:
    run(LAYER, SOLVER="anderson", MODE=mode, GRADIENTS=("implicit", "phantom", "one_step", "neumann", "unrolled"))
