"""The day a GPU comes: one command, ten minutes, a JSON file after every part.

    python tests/benchmarks/gpu.py                    # measures; a second call goes on where the first one ended
    python tests/benchmarks/gpu.py --dry-run          # prints the forecasts, needs no GPU
    python tests/benchmarks/gpu.py --rehearse         # runs every part at tiny sizes on the CPU; no number of it counts

Correctness comes first, and a difference from the CPU ends the run. Times are medians; where a forecast was made, it
stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop
from deqlm.layers import Attention, Block, LlamaMLP, Mamba2
from deqlm.models import Backbone, ImplicitLM
from deqlm.reporting.environment import commit
from deqlm_solvers import SOLVERS, Solve

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs/records/gpu.json"
LAUNCHES = ROOT / "docs/records/launches.json"
LAUNCH = 5e-6
"""Seconds of host time for a launch by torch; assumed."""
BANDWIDTH = 4.3e12
"""Bytes per second that element-wise kernels reach on an H200-class card; its stated rate less a tenth."""


class Sizes(NamedTuple):
    """Sizes of a run."""

    rows: tuple[int, ...] = (1, 8, 64)
    tokens: tuple[int, ...] = (128, 2048)
    width: int = 768
    depth: int = 24
    vocabulary: int = 50_000
    repeats: int = 7


TINY = Sizes((2,), (4,), 16, 1, 50, 1)


def forecast(solver: str, kind: str, rows: int, unknowns: int) -> float:
    """Return the least seconds of an evaluation beside f: launches by the host, or bytes by the device.

    Args:
        solver: name.
        kind: "tested", "unread" or "budget", as in the record of launches.
        rows: B.
        unknowns: N.

    Raises:
        KeyError: nothing was counted of it.
    """
    counted = json.loads(LAUNCHES.read_text())[solver][kind]
    return max(counted["launches"] * LAUNCH, counted["passes"] * rows * unknowns * 4 / BANDWIDTH)


def forecasts(sizes: Sizes) -> list[dict[str, Any]]:
    """Return the forecast of every row of the part `overhead`."""
    return [
        {"solver": solver, "kind": kind, "rows": rows, "tokens": tokens, "width": sizes.width, "forecast_us": us}
        for solver in ("fixed_point", "anderson", "broyden")
        for kind in ("tested", "budget")
        for rows in sizes.rows
        for tokens in sizes.tokens
        for us in [round(1e6 * forecast(solver, kind, rows, tokens * sizes.width), 1)]
    ]


def correct(device: str, sizes: Sizes) -> dict[str, Any]:
    """Compare every solver on the device with the CPU, in float64 and float32; empty ``wrong`` is green."""
    wrong = []
    for name in SOLVERS:
        if "." in name or name in ("deer", "fallback"):
            continue
        for dtype, most in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
            z0 = torch.linspace(-1, 1, 24, dtype=dtype).view(6, 4)
            want, got = (Solve(name, Stop(max_iter=200, rtol=1e-5))(_map, z0.to(place)) for place in ("cpu", device))
            apart = (got.z.cpu() - want.z).abs().max().item()
            if apart > most or not bool(got.converged.all()):
                wrong.append({"solver": name, "dtype": str(dtype), "apart": apart})
    return {"wrong": wrong}


def overhead(device: str, sizes: Sizes) -> dict[str, Any]:
    """Time an evaluation beside f, which is free here, by torch operations and by what impl="auto" takes."""
    rows = []
    for row in forecasts(sizes):
        times = {f"{impl}_us": round(1e6 * _evaluation(row, impl, device, sizes), 1) for impl in ("torch", "auto")}
        rows.append({**row, **times})
    return {"rows": rows}


def _evaluation(row: dict[str, Any], impl: str, device: str, sizes: Sizes) -> float:
    z0 = torch.zeros(row["rows"], row["tokens"] * row["width"], device=device)
    stop = Stop(rtol=0) if row["kind"] == "budget" else Stop(rtol=0, atol=1e-300)
    target, solver = torch.randn_like(z0), {"name": row["solver"], "impl": impl}

    def solve(evaluations: int) -> None:
        Solve(solver, stop.replace(max_iter=evaluations))(lambda z: target, z0)

    return (_seconds(lambda: solve(24), device, sizes) - _seconds(lambda: solve(8), device, sizes)) / 16


def gradients(device: str, sizes: Sizes) -> dict[str, Any]:
    """Time forward and backward of a wrapped layer, by gradient method, and its peak of memory."""
    layer = nn.TransformerEncoderLayer(sizes.width, 2, 2 * sizes.width, batch_first=True, device=device)
    x, rows = torch.randn(sizes.rows[0], sizes.tokens[0], sizes.width, device=device), []
    for name in ("implicit", "phantom", "one_step", "neumann"):
        deq = DEQ(layer, gradient=name, stop=Stop(max_iter=20, rtol=1e-3), on_failure="ignore").eval()
        _forget_peak(device)
        seconds = _seconds(lambda deq=deq: deq(x).sum().backward(), device, sizes)
        rows.append({"gradient": name, "seconds": seconds, "peak_bytes": _peak(device)})
    return {"rows": rows}


def training(device: str, sizes: Sizes) -> dict[str, Any]:
    """Time a step of both families, implicit at 4 and 24 evaluations, and explicit."""
    rows = []
    ids = torch.randint(sizes.vocabulary, (sizes.rows[-1], sizes.tokens[-1]), device=device)[:8]
    for family in ("mamba2", "llama"):
        for label, implicit, evaluations in (("explicit", False, 0), ("4+1", True, 4), ("24+4", True, 24)):
            model = _model(family, sizes, device, implicit)
            stop = {"stop": Stop(max_iter=evaluations, rtol=0)} if implicit else {}
            _forget_peak(device)
            seconds = _seconds(lambda m=model, s=stop: m(ids, labels=ids, **s).loss.backward(), device, sizes)
            done = {"family": family, "step": label, "tokens_per_second": ids.numel() / seconds}
            rows.append({**done, "peak_bytes": _peak(device)})
    return {"rows": rows}


@torch.no_grad()
def decoding(device: str, sizes: Sizes) -> dict[str, Any]:
    """Time a generated token behind a prompt, and the bare evaluations in it."""
    rows = []
    for family in ("mamba2", "llama"):
        model = _model(family, sizes, device, True).eval()
        for batch in sizes.rows:
            ids = torch.randint(sizes.vocabulary, (batch, sizes.tokens[0]), device=device)
            cache = model(ids, use_cache=True, stop=Stop(max_iter=4, rtol=0)).cache
            more = {"cache": cache, "use_cache": True, "stop": Stop(max_iter=6, rtol=0), "mode": "sequential"}
            seconds = _seconds(lambda m=model, i=ids, more=more: m(i[:, :1], **more), device, sizes)
            rows.append({"family": family, "batch": batch, "token_ms": 1e3 * seconds})
    return {"rows": rows}


def growth(device: str, sizes: Sizes) -> dict[str, Any]:
    """Time one evaluation's solve as the number of tokens grows to 65536."""
    rows, tokens = [], sizes.tokens[0]
    while tokens <= (65_536 if sizes.depth > 1 else sizes.tokens[-1]):
        z0 = torch.zeros(1, tokens * sizes.width, device=device)
        run = lambda z0=z0: Solve("anderson", Stop(max_iter=8, rtol=0))(torch.tanh, z0)  # noqa: E731
        rows.append({"tokens": tokens, "seconds": _seconds(run, device, sizes)})
        tokens *= 4
    return {"rows": rows}


PARTS: dict[str, Callable[[str, Sizes], dict[str, Any]]] = {
    part.__name__: part for part in (correct, overhead, gradients, training, decoding, growth)
}


def main(argv: list[str]) -> int:
    """Run what is missing in the file, part by part; return 0, or 1 where the device is wrong or not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--dry-run", action="store_true", help="print the forecasts and measure nothing")
    parser.add_argument("--rehearse", action="store_true", help="run everything, tiny, on the CPU")
    options = parser.parse_args(argv)
    if options.dry_run:
        for row in forecasts(Sizes()):
            print(", ".join(f"{name} {value}" for name, value in row.items()))
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print("no CUDA or ROCm device is here: --dry-run prints the forecasts, --rehearse runs it tiny on the CPU")
        return 1
    device, sizes = ("cpu", TINY) if options.rehearse else ("cuda", Sizes())
    return _run(options.out, device, sizes)


def _run(out: Path, device: str, sizes: Sizes) -> int:
    name = torch.cuda.get_device_name() if device == "cuda" else "a rehearsal on the CPU"
    made = {"device": name, "torch": torch.__version__, "deqlm": deqlm.__version__, "commit": commit()}
    found = json.loads(out.read_text()) if out.exists() else {}
    done = found if {key: found.get(key) for key in made} == made else made
    for part, run in PARTS.items():
        if part not in done:
            print(f"{part} ...", flush=True)
            done[part] = run(device, sizes)
            out.write_text(json.dumps(done, indent=1) + "\n")
        if part == "correct" and done[part]["wrong"]:
            print(f"the device computes something else than the CPU, so nothing is timed: {done[part]['wrong']}")
            return 1
    print(f"wrote {out}")
    return 0


def _map(z: Tensor) -> Tensor:
    return 0.5 * torch.cos(z) + 0.1


def _model(family: str, sizes: Sizes, device: str, implicit: bool) -> ImplicitLM:
    width = sizes.width
    blocks = {
        "mamba2": lambda: Block(Mamba2(width, headdim=min(64, width), d_state=min(128, width))),
        "llama": lambda: Block(Attention(width, n_head=max(1, width // 64)), mlp=LlamaMLP(width, 4 * width)),
    }
    backbone = Backbone([blocks[family]() for _ in range(sizes.depth)], implicit=implicit)
    return ImplicitLM(backbone, vocab_size=sizes.vocabulary, on_failure="ignore").to(device)


def _seconds(run: Callable[[], Any], device: str, sizes: Sizes) -> float:
    """Return the median time of a call, with the device waited for."""
    times = []
    for index in range(sizes.repeats + 2):
        _wait(device)
        begun = time.perf_counter()
        run()
        _wait(device)
        if index >= 2:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
