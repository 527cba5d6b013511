"""Fixed and running costs of two checkouts, old and new, measured in turns, so that a loaded machine is fair to both.

    python tests/benchmarks/speed_of_checkouts.py ../old . [--pairs 7] [--out record.json]

Each pair times either checkout once, in a process of its own and in turns, on one thread: CPU microseconds of 4 rows of
8 unknowns, what f itself takes left out. "one" is a call that ends after its first evaluation, "more" what each further
evaluation costs. A checkout is a folder with ``deqlm`` and ``solvers``, as ``git worktree add ../old main~20`` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

CALLS, ROUNDS, LONG = 30, 5, 12


def cost(call: Callable[[], object]) -> float:
    """Return CPU microseconds of a call, the best of some rounds."""
    for _ in range(20):
        call()
    seconds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(CALLS):
            call()
        seconds.append(time.process_time() - begun)
    return 1e6 * min(seconds) / CALLS


def measured() -> dict[str, float]:
    """Return the costs of the checkout that is imported, by name."""
    import torch

    import deqlm

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()).eval()
    x = torch.randn(4, 8)
    costs = {}
    with torch.no_grad():
        bare = cost(lambda: layer(x + x))
        for impl in ("cpp", "torch"):
            solver = deqlm.Anderson(impl=impl)
            for what in ("Solve", "solve", "DEQ"):
                one, long = (cost(_call(what, solver, layer, x, length)) for length in (1, LONG))
                costs[f"{what}, {impl}, one"] = one - bare
                costs[f"{what}, {impl}, more"] = (long - one) / (LONG - 1) - bare
    return costs


def _call(what: str, solver: object, layer: Callable[..., object], x: object, length: int) -> Callable[[], object]:
    """Return a solve of exactly ``length`` evaluations, by one of the three doors."""
    import torch

    import deqlm

    stop = deqlm.Stop(max_iter=length, rtol=1e-30, atol=1e-30)
    z0 = torch.zeros_like(x)  # type: ignore[arg-type]
    if what == "Solve":
        how = deqlm.Solve(solver, stop)  # type: ignore[arg-type]
        return lambda: how(lambda z: layer(z + x), z0)  # type: ignore[arg-type,operator]
    if what == "solve":
        return lambda: deqlm.solve(lambda z: layer(z + x), z0, solver=solver, stop=stop, on_failure="ignore")  # type: ignore[arg-type,operator]
    deq = deqlm.DEQ(layer, solver=solver, stop=stop, on_failure="ignore")  # type: ignore[arg-type]
    return lambda: deq(x)


def run(checkout: Path) -> dict[str, float]:
    """Return the costs of a checkout, measured in a process of its own."""
    path = os.pathsep.join((str(checkout), str(checkout / "solvers")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure pairs of checkouts, print their medians, and keep all numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, help="the old one and the new one")
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        warnings.simplefilter("ignore")
        print(json.dumps(measured()))
        return
    if len(arguments.checkouts) != 2:
        parser.error("two checkouts are compared, the old one and the new one")
    old, new = (checkout.resolve() for checkout in arguments.checkouts)
    pairs = [(run(old), run(new)) for _ in range(arguments.pairs)]
    print(f"{'CPU us':24} {'old':>8} {'new':>8} {'ratio':>6}")
    for name in pairs[0][0]:
        a, b = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        print(f"{name:24} {a:8.1f} {b:8.1f} {b / a:6.2f}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"pairs": pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
