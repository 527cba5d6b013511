"""What one Anderson step costs, written four ways: eager torch, inductor, numba, and the compiled step of the library.

    python tests/benchmarks/speed_compiled_step.py [--record FILE]

The step is the same in all: residual and norms, best point, freezing of finished rows, a row of the Gram matrix, its
scaled Cholesky factorisation, the mix. memory 12, float32 state, Gram in float64. The first three replay one recorded
run and so exclude f; the library's is a whole solve less its evaluations times the cost of f, loop included. numba and
a compiler are optional: what is missing is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqlm.reporting.environment import environment
from deqlm_solvers import Anderson, Solve, Stop

SIZES = ((32, 64), (24, 384), (96, 1024))
MEMORY = 12
PAIRS = MEMORY - 1
EVALUATIONS = 40
RTOL = 1e-30
RIDGE = 1e-6


class Buffers:
    """Everything a step reads and writes, allocated once. Pairs in a ring; the Gram matrix in ring order."""

    def __init__(self, z0: Tensor) -> None:
        rows, unknowns = z0.shape
        self.s = z0.new_zeros(rows, PAIRS, unknowns)
        self.y = z0.new_zeros(rows, PAIRS, unknowns)
        self.gram = torch.zeros(rows, PAIRS, PAIRS, dtype=torch.float64)
        self.z_before = z0.clone()
        self.r_before = torch.zeros_like(z0)
        self.best_z = z0.clone()
        self.best = torch.full((rows,), torch.inf, dtype=torch.float64)
        self.done = torch.zeros(rows, dtype=torch.bool)
        self.z_next = torch.zeros_like(z0)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the buffers in the order in which the steps take them."""
        return self.s, self.y, self.gram, self.z_before, self.r_before, self.best_z, self.best, self.done, self.z_next


def torch_step(
    k: int,
    order: Tensor,
    z: Tensor,
    fz: Tensor,
    s: Tensor,
    y: Tensor,
    gram: Tensor,
    z_before: Tensor,
    r_before: Tensor,
    best_z: Tensor,
    best: Tensor,
    done: Tensor,
    z_next: Tensor,
    slot: Tensor,
) -> None:
    """Do step ``k`` >= 1 with batched torch operations; pairs that are not used yet are zero."""
    r = fz - z
    residual = torch.linalg.vector_norm(r, dim=1, dtype=torch.float64)
    size = torch.linalg.vector_norm(fz, dim=1, dtype=torch.float64)
    done |= residual <= RTOL * size
    better = (residual < best) & ~done
    best_z.copy_(torch.where(better[:, None], z, best_z))
    best.copy_(torch.where(better, residual, best))
    s.index_copy_(1, slot, (z - z_before)[:, None])
    y.index_copy_(1, slot, (r - r_before)[:, None])
    row = torch.bmm(y, (r - r_before)[:, :, None]).double()
    gram.index_copy_(2, slot, row)
    gram.index_copy_(1, slot, row.mT)
    squares = gram.diagonal(dim1=1, dim2=2)
    scale = torch.where(squares > 0, squares, 1.0).rsqrt()
    unused = squares <= 0
    scaled = gram * scale[:, :, None] * scale[:, None]
    scaled = scaled + torch.diag_embed(torch.where(unused, 1.0, RIDGE))
    rhs = torch.bmm(y, r[:, :, None])[:, :, 0].double() * scale
    factor, _ = torch.linalg.cholesky_ex(scaled)
    gamma = (torch.cholesky_solve(rhs[:, :, None], factor)[:, :, 0] * scale).masked_fill(unused, 0.0).to(z.dtype)
    mixed = fz - torch.bmm(gamma[:, None], s + y)[:, 0]
    z_next.copy_(torch.where(done[:, None], z, mixed))
    z_before.copy_(z)
    r_before.copy_(r)


def numba_step() -> Callable[..., None]:
    """Return the step as one function of numpy views, compiled.

    Raises:
        ImportError: numba is missing.
    """
    import numba
    import numpy as np

    sums = {"reassoc", "contract", "nsz", "arcp"}

    @numba.njit(fastmath=sums)
    def step(k, newest, z, fz, s, y, gram, z_before, r_before, best_z, best, done, z_next):  # type: ignore
        rows, unknowns = z.shape
        used = min(k, PAIRS)
        lower = np.empty((PAIRS, PAIRS))
        scale = np.empty(PAIRS)
        x = np.empty(PAIRS)
        r = np.empty(unknowns, z.dtype)
        for b in range(rows):
            if done[b]:
                z_next[b] = z[b]
                continue
            rr = np.float32(0)
            ff = np.float32(0)
            sn, yn = s[b, newest], y[b, newest]
            zb, fb, pz, pr = z[b], fz[b], z_before[b], r_before[b]
            for i in range(unknowns):
                value = fb[i] - zb[i]
                r[i] = value
                rr += value * value
                ff += fb[i] * fb[i]
                sn[i] = zb[i] - pz[i]
                yn[i] = value - pr[i]
                pz[i] = zb[i]
                pr[i] = value
            if rr <= RTOL * RTOL * ff:
                done[b] = True
                best_z[b] = z[b]
                z_next[b] = z[b]
                continue
            if rr < best[b]:
                best[b] = rr
                best_z[b] = z[b]
            g = gram[b]
            for j in range(used):
                yj = y[b, j]
                product = np.float32(0)
                onto = np.float32(0)
                for i in range(unknowns):
                    product += yj[i] * yn[i]
                    onto += yj[i] * r[i]
                g[newest, j] = product
                g[j, newest] = product
                x[j] = onto
            for a in range(used):  # from the newest pair to the oldest
                ja = (newest - a) % PAIRS
                scale[a] = 1.0 / np.sqrt(g[ja, ja]) if g[ja, ja] > 0 else 0.0
            rank = used
            for a in range(used):
                ja = (newest - a) % PAIRS
                for c in range(a + 1):
                    jc = (newest - c) % PAIRS
                    total = g[ja, jc] * scale[a] * scale[c] + (RIDGE if a == c else 0.0)
                    for i in range(c):
                        total -= lower[a, i] * lower[c, i]
                    if a == c:
                        if not total > 1e-8:
                            rank = a
                            break
                        lower[a, a] = np.sqrt(total)
                    else:
                        lower[a, c] = total / lower[c, c]
                if rank == a:
                    break
            half = np.empty(PAIRS)
            for a in range(rank):
                total = x[(newest - a) % PAIRS] * scale[a]
                for i in range(a):
                    total -= lower[a, i] * half[i]
                half[a] = total / lower[a, a]
            for a in range(rank - 1, -1, -1):
                total = half[a]
                for i in range(a + 1, rank):
                    total -= lower[i, a] * half[i]
                half[a] = total / lower[a, a]
            out = z_next[b]
            out[:] = fb
            for a in range(rank):
                j = (newest - a) % PAIRS
                weight = np.float32(half[a] * scale[a])
                sj, yj = s[b, j], y[b, j]
                for i in range(unknowns):
                    out[i] -= weight * (sj[i] + yj[i])

    return step


def recorded(rows: int, unknowns: int) -> tuple[Callable[[Tensor], Tensor], Tensor, list[tuple[Tensor, Tensor]]]:
    """Return a tanh map of radius .99, a start, and the points of an Anderson run on it, none of which is solved."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(unknowns, unknowns, generator=g, dtype=torch.float64)
    w = ((w + w.mT) * (0.99 / torch.linalg.eigvalsh(w + w.mT).abs().max())).float()
    b = torch.randn(rows, unknowns, generator=g)

    def f(z: Tensor) -> Tensor:
        return torch.addmm(b, z, w)

    z0 = torch.zeros(rows, unknowns)
    points: list[tuple[Tensor, Tensor]] = []

    def watched(z: Tensor) -> Tensor:
        fz = f(z)
        points.append((z.clone(), fz))
        return fz

    Solve(Anderson(memory=MEMORY), Stop(max_iter=EVALUATIONS, rtol=RTOL, atol=1e-30))(watched, z0)
    return f, z0, points


def run_torch(step: Callable[..., None], points: list[tuple[Tensor, Tensor]], buffers: Buffers) -> None:
    """Replay a run with the torch step."""
    for k, (z, fz) in enumerate(points):
        if k == 0:
            buffers.z_before.copy_(z)
            torch.sub(fz, z, out=buffers.r_before)
        else:
            newest = (k - 1) % PAIRS
            step(k, ORDERS[newest], z, fz, *buffers.tensors(), SLOTS[newest])


ORDERS = [(newest - torch.arange(PAIRS)) % PAIRS for newest in range(PAIRS)]
SLOTS = [torch.tensor([newest]) for newest in range(PAIRS)]


def run_numba(step: Callable[..., None], points: list[tuple[Any, Any]], buffers: Buffers) -> None:
    """Replay a run with the numba step; views are made per step, as a solver would have to."""
    held = tuple(t.numpy() for t in buffers.tensors())
    for k, (z, fz) in enumerate(points):
        if k == 0:
            buffers.z_before.copy_(z)
            torch.sub(fz, z, out=buffers.r_before)
        else:
            step(k, (k - 1) % PAIRS, z.numpy(), fz.numpy(), *held)


def per_evaluation(run: Callable[[], None], evaluations: int, repeats: int = 15) -> float:
    """Return the median process CPU time of a run in microseconds per evaluation."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        run()
        taken.append((time.process_time() - begun) / evaluations)
    return 1e6 * statistics.median(taken)


def library(impl: str | None, rows: int, unknowns: int) -> dict[str, Any]:
    """Return what a whole solve of the library spends per evaluation beyond f; ``impl`` None is its plain field set."""
    given = {} if impl is None else {"impl": impl}
    how = Solve(Anderson(memory=MEMORY, **given), Stop(max_iter=EVALUATIONS, rtol=RTOL, atol=1e-30))
    f, z0, _ = recorded(rows, unknowns)
    begun = time.perf_counter()
    how(f, z0)
    first = time.perf_counter() - begun
    total = per_evaluation(lambda: how(f, z0) and None, EVALUATIONS)
    bare = per_evaluation(lambda: [f(z0) for _ in range(EVALUATIONS)] and None, EVALUATIONS)
    return {"us": total - bare, "first_s": first}


def measure(rows: int, unknowns: int) -> dict[str, dict[str, Any]]:
    """Return microseconds per evaluation and seconds of the first call, by how the step is written."""
    _, z0, points = recorded(rows, unknowns)
    found: dict[str, dict[str, Any]] = {}
    reference = Buffers(z0)
    run_torch(torch_step, points, reference)
    found["eager step"] = {"us": per_evaluation(lambda: run_torch(torch_step, points, Buffers(z0)), len(points))}
    torch._dynamo.reset()
    compiled = torch.compile(torch_step, dynamic=False)
    found["inductor step"] = timed(lambda b: run_torch(compiled, points, b), z0, reference, len(points))
    if importlib.util.find_spec("numba") is None:
        found["numba step"] = {"missing": "numba"}
    else:
        step = numba_step()
        found["numba step"] = timed(lambda b: run_numba(step, points, b), z0, reference, len(points))
    impls = ["torch", "cpp"] if "impl" in Anderson.__dataclass_fields__ else [None]
    for impl in impls:
        label = f"whole solve, impl={impl}" if impl else "whole solve"
        try:
            found[label] = library(impl, rows, unknowns)
        except (ImportError, RuntimeError, ValueError) as error:
            found[label] = {"missing": str(error).splitlines()[0]}
    return found


def timed(run: Callable[[Buffers], None], z0: Tensor, reference: Buffers, evaluations: int) -> dict[str, Any]:
    """Return the cost of a step, of its first call, and how far its last point is from the eager step's."""
    buffers = Buffers(z0)
    begun = time.perf_counter()
    try:
        run(buffers)
    except Exception as error:  # a compiler may raise anything
        return {"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    first = time.perf_counter() - begun
    apart = ((buffers.z_next - reference.z_next).norm() / reference.z_next.norm()).item()
    return {"us": per_evaluation(lambda: run(Buffers(z0)), evaluations), "first_s": first, "apart": apart}


def main(argv: list[str]) -> int:
    """Measure, print, and write a record where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    record: dict[str, Any] = {"record": "compiled step", "environment": environment(), "sizes": []}
    with torch.no_grad():
        for rows, unknowns in SIZES:
            found = measure(rows, unknowns)
            record["sizes"].append({"rows": rows, "unknowns": unknowns, "steps": found})
            print(f"B={rows} N={unknowns}")
            for name, values in found.items():
                shown = values.get("missing") or ", ".join(f"{key} {value:.3g}" for key, value in values.items())
                print(f"  {name:26} {shown}", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
