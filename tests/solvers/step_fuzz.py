"""Drives the compiled step and the compiled layers through small random cases, for sanitizers to watch.

Run as a program with the number of cases and flags of the compiler; see test_sanitizers.py.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import deqlm
from deqlm.layers import Context, Mamba2
from deqlm.ops.native.library import SOURCE
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Stop
from deqlm_solvers.loop import native_backend
from deqlm_solvers.native import library
from deqlm_solvers.native.build import build


def solver_of(draw: random.Random) -> Any:
    memory, damping = draw.choice([1, 2, 3, 5, 12]), draw.choice([1.0, 0.7])
    return draw.choice(
        [
            lambda: FixedPoint(impl="cpp", damping=damping),
            lambda: Anderson(impl="cpp", memory=memory, damping=damping, plain_rate=draw.choice([0.0, 0.45])),
            lambda: Broyden(impl="cpp", memory=memory, update=draw.choice(["good", "bad"])),
            lambda: Broyden(impl="cpp", memory=memory, line_search="armijo"),
        ]
    )()


def shape_of(draw: random.Random) -> tuple[int, int, int]:
    """Return rows, tokens and width."""
    return draw.choice([0, 1, 2, 3, 8, 9, 17]), draw.choice([0, 1, 1, 2, 5]), draw.choice([1, 1, 3, 7, 16, 33])


def stop_of(draw: random.Random, unknowns: int) -> Stop:
    max_iter = draw.choice([1, 2, 7, 25])
    if draw.random() < 0.2:
        return Stop(max_iter=max_iter, rtol=0, trace=draw.random() < 0.5)
    per, every = draw.choice(["row", "row", "token", "leaf"]), draw.choice([1, 3, "auto"])
    weights = tuple(float(i % 3 + (i == 0)) for i in range(unknowns)) if per == "row" and unknowns else "l2"
    return Stop(
        max_iter=max_iter,
        rtol=draw.choice([1e-3, 1e-7]),
        atol=draw.choice([0.0, 1e-9]),
        per=per,
        norm=draw.choice(["l2", "rms", weights]),
        test_every=every,
        check_every=1 if every == "auto" else draw.choice([1, 0, 4]),
        trace=draw.random() < 0.3,
        patience=draw.choice([None, 2, 9]),
        divergence=draw.choice([1e8, 3.0]),
    )


def map_of(draw: random.Random, b: Tensor) -> Callable[[Tensor], Tensor]:
    """Return f of rows (B, N) that converge, stall, diverge or are not finite."""
    gain = torch.tensor([draw.choice([0.3, 0.9, -0.8, 3.0]) for _ in range(b.shape[0])], dtype=b.dtype)
    if len(b) and draw.random() < 0.3:
        b[draw.randrange(len(b))] = draw.choice([torch.nan, torch.inf, 1e30])
    kind = draw.choice([torch.tanh, torch.sin, lambda t: t])
    return lambda z: kind(gain[:, None] * z.roll(1, dims=1)) + b


def solve_rows(draw: random.Random) -> None:
    """Solve with a layout: tokens, leaves, masks, scales."""
    rows, tokens, width = shape_of(draw)
    dtype, unknowns = draw.choice([torch.float32, torch.float64]), tokens * width
    b = torch.randn(rows, unknowns, dtype=dtype)
    stop = stop_of(draw, unknowns)
    leaves = ((unknowns // 2,), (unknowns - unknowns // 2,)) if stop.per == "leaf" else ((tokens, width),)
    masks = stop.per == "token" and draw.random() < 0.5
    layout = Layout(
        leaves=leaves,
        token_mask=torch.rand(rows, tokens) > 0.4 if masks else None,
        scale=torch.rand(rows, dtype=torch.float64) if draw.random() < 0.3 and not stop.is_budget else None,
        atol_scale=torch.rand(rows, dtype=torch.float64) if draw.random() < 0.3 and stop.atol else None,
    )
    Solve(solver_of(draw), stop)(map_of(draw, b), torch.zeros_like(b), layout)


def solve_leaving(draw: random.Random) -> None:
    """Solve rows that leave the batch when they are done."""
    rows, unknowns = draw.choice([2, 9, 33]), draw.choice([1, 5, 70])
    b, gain = torch.randn(rows, unknowns), torch.rand(rows, 1)
    stop = Stop(max_iter=40, rtol=1e-6, compact=draw.choice([True, "at_once"]), test_every=draw.choice([1, "auto"]))
    f = lambda z, b, gain: torch.tanh(gain * z) + b  # noqa: E731
    with torch.no_grad():
        deqlm.solve(f, torch.zeros_like(b), args=(b, gain), solver=solver_of(draw), stop=stop, on_failure="ignore")


def run_layers(draw: random.Random, functions: Callable[..., Any]) -> None:
    """Evaluate Mamba2, its derivative, and RMSNorm."""
    rows, length, dtype = (
        draw.choice([0, 1, 3, 4]),
        draw.choice([1, 2, 5, 65]),
        draw.choice([torch.float32, torch.float64]),
    )
    heads, groups = draw.choice([(2, 1), (2, 2), (4, 2)])
    sizes = {
        "headdim": draw.choice([1, 3, 16]),
        "d_state": draw.choice([1, 5, 8, 19]),
        "d_conv": draw.choice([1, 2, 4]),
    }
    mixer = Mamba2(heads * sizes["headdim"], expand=1, ngroups=groups, dtype=dtype, **sizes)
    z = torch.randn(rows, length, heads * sizes["headdim"], dtype=dtype)
    mask = torch.rand(rows, length) > 0.3 if draw.random() < 0.5 else None
    u = torch.randn(rows, length, mixer.d_inject, dtype=dtype) if draw.random() < 0.5 else None
    grad = draw.random() < 0.5
    norm = torch.nn.RMSNorm(z.shape[2], dtype=dtype)
    with torch.set_grad_enabled(grad):
        y, cache = mixer.forward_chunk(
            z, u, mixer.empty_cache(rows), Context.open(mixer, z, mask=mask, build=functions)
        )
        if grad:
            sum(t.sum() for t in (y, *cache)).backward()
    with torch.no_grad():
        Context.open(norm, z, build=functions).normalise(norm, z)


def main(cases: int, *flags: str) -> None:
    """Run so many cases with code that is built with these flags."""
    os.environ.pop("LD_PRELOAD", None)  # of this process, not of the compiler
    step, layers = library.load(flags), build(SOURCE, flags)
    assert step.library is not None, step.why
    assert layers.library is not None, layers.why
    native_backend.load = lambda: step
    functions = layers.library.functions
    for seed in range(cases):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(draw.choice([1, 2]))
        solve_rows(draw)
        solve_leaving(draw)
        run_layers(draw, lambda _: functions)
    print("ran", cases)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
