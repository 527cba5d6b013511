"""What runs in the interpreter that has jax, `python jax_side.py problems.npz results.json`; it has no deqlm.

Solves the maps of a file with jitted, warmed solvers of jaxopt and optimistix, each with the loosest of a few
tolerances that brings the true residual (float64, numpy) of every row within the one asked for, and times them by
process CPU time, interleaved.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

TIGHTER = (1.0, 0.3, 0.1)
SHORTEST = 4e-3
BUDGET = 0.5
HOPELESS = 0.15
"""Seconds of a warm call beyond which a solver is timed no further."""

DENSE = 128
"""Unknowns up to which a dense Newton step is asked, and jaxopt's Broyden, which keeps dense histories per row."""

HISTORY = 50


def true_residual(kind: str, p: dict[str, Any], z: Any) -> float:
    """Return the largest ||f(z) - z|| / ||f(z)|| over rows, float64."""
    wide = {key: np.asarray(value, np.float64) for key, value in p.items()}
    z = np.asarray(z, np.float64)
    b = wide["args1"] if kind == "gained" else wide["args0"]
    if kind == "two_cycle":
        fz = np.tanh(b - 1.6 * z)
    else:
        fz = (z * wide["args0"] if kind == "gained" else z) @ wide["shared0"] + b
        fz = np.tanh(fz) if kind == "tanh" else fz
    with np.errstate(all="ignore"):
        ratio = np.linalg.norm(fz - z, axis=1) / np.linalg.norm(fz, axis=1)
    return float(np.nan_to_num(ratio, nan=math.inf).max())


def maps_of(kind: str, p: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return f(z, *args) on one row or on a batch of them, and its per-row arguments."""
    import jax.numpy as jnp  # type: ignore[import-not-found]

    w = p.get("shared0")
    if kind == "two_cycle":
        return lambda z, b: jnp.tanh(b - 1.6 * z), (p["args0"],)
    if kind == "tanh":
        return lambda z, b: jnp.tanh(z @ w + b), (p["args0"],)
    if kind == "linear":
        return lambda z, b: z @ w + b, (p["args0"],)
    return lambda z, gain, b: (z * gain) @ w + b, (p["args0"], p["args1"])


def solvers_for(f: Callable[..., Any], unknowns: int, most: int) -> dict[str, Callable[..., Any]]:
    """Return solver(tol, z0, *args) -> z by name; per row under vmap, or with the batch as one problem ("joint")."""
    import jax  # type: ignore[import-not-found]
    import jaxopt  # type: ignore[import-not-found]
    import optimistix as optx  # type: ignore[import-not-found]

    def fixed_point(tol: float, z0: Any, *args: Any) -> Any:
        how = jaxopt.FixedPointIteration(f, maxiter=most, tol=tol, implicit_diff=False)
        return how.run(z0, *args).params

    def anderson(tol: float, z0: Any, *args: Any) -> Any:
        how = jaxopt.AndersonAcceleration(f, maxiter=most, tol=tol, implicit_diff=False)
        return how.run(z0, *args).params

    def broyden(tol: float, z0: Any, *args: Any) -> Any:
        how = jaxopt.Broyden(
            lambda z, *a: f(z, *a) - z, maxiter=most, tol=tol, history_size=HISTORY, implicit_diff=False
        )
        return how.run(z0, *args).params

    def optimistix(method: Any) -> Callable[..., Any]:
        def run(tol: float, z0: Any, *args: Any) -> Any:
            how = method(rtol=tol, atol=tol)
            fn = lambda z, a: f(z, *a)  # noqa: E731
            return optx.fixed_point(fn, how, z0, args, max_steps=most, throw=False).value

        return run

    def rows(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tol, z0, *args: jax.vmap(lambda z, *a: run(tol, z, *a))(z0, *args)

    found = {
        "jaxopt.FixedPointIteration, joint": fixed_point,
        "jaxopt.AndersonAcceleration": rows(anderson),
        "jaxopt.AndersonAcceleration, joint": anderson,
        "optimistix.FixedPointIteration": rows(optimistix(optx.FixedPointIteration)),
    }
    if unknowns <= DENSE:
        found["jaxopt.Broyden"] = rows(broyden)
        found["optimistix.Newton"] = rows(optimistix(optx.Newton))
    return found


def measure(spec: dict[str, Any], p: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return the record of one map: cost of f, and per solver time, tolerance and true residual."""
    import jax  # type: ignore[import-not-found]
    import jax.numpy as jnp  # type: ignore[import-not-found]

    kind, tol = spec["kind"], spec["tol"]
    p = {key: jnp.asarray(value) for key, value in p.items()}
    f, args = maps_of(kind, p)
    z0 = p["z0"]
    batched = jax.jit(f)
    size = float(np.linalg.norm(np.asarray(batched(z0, *args), np.float64), axis=1).min())
    entries, calls = [], []
    everybody = solvers_for(f, z0.shape[1], spec["max_iter"])
    for name, solve in everybody.items():
        entry: dict[str, Any] = {"solver": name, "solved": False, "residual": None, "ms": None, "message": ""}
        entries.append(entry)
        base = tol if name.startswith("optimistix") else tol * size
        jitted = jax.jit(solve)
        for factor in TIGHTER:
            run = functools.partial(jitted, jnp.asarray(factor * base, z0.dtype), z0, *args)
            try:
                begun = time.perf_counter()
                z = run().block_until_ready()
                entry.setdefault("first_s", time.perf_counter() - begun)
            except Exception as error:  # a peer may raise anything
                entry["message"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                break
            worst = true_residual(kind, p, z)
            entry["residual"], entry["factor"] = (worst if math.isfinite(worst) else None), factor
            if worst <= 1.05 * tol:
                entry["solved"] = True
            begun = time.process_time()
            run().block_until_ready()
            warm = time.process_time() - begun
            if entry["solved"]:
                entry["ms"] = 1e3 * warm
                if warm < HOPELESS:
                    calls.append((entry, lambda run=run: run().block_until_ready()))
            if entry["solved"] or warm > HOPELESS:
                break
    calls.append(({}, lambda: batched(z0, *args).block_until_ready()))
    for (entry, _), seconds in zip(calls, interleaved([call for _, call in calls], rounds), strict=True):
        entry["ms"] = 1e3 * statistics.median(seconds)
    return {"map": spec["name"], "dtype": spec["dtype"], "f_seconds": 1e-3 * calls[-1][0]["ms"], "entries": entries}


def interleaved(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """As `benchmarks.comparison.timing.interleaved`, which this process cannot import."""

    def once(call: Callable[[], Any], repeats: int) -> float:
        begun = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - begun) / repeats

    repeats = [max(1, math.ceil(SHORTEST / max(once(call, 1), 1e-7))) for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    gc.disable()
    for number in range(rounds):
        for turn in range(len(calls)):
            i = (number + turn) % len(calls)
            if number < 3 or sum(taken[i]) * repeats[i] < BUDGET:
                taken[i].append(once(calls[i], repeats[i]))
        gc.collect()
    return taken


def main(problems: str, results: str) -> None:
    """Read maps, measure, write a record."""
    with np.load(problems) as file:
        held = {key: file[key] for key in file.files}
    job = json.loads(str(held.pop("job")))
    records = []
    for i, spec in enumerate(job["maps"]):
        p = {key.split("/")[1]: value for key, value in held.items() if key.startswith(f"{i}/")}
        print(spec["name"], flush=True)
        records.append(measure(spec, p, job["rounds"]))
    from importlib.metadata import version

    versions = {name: version(name) for name in ("jax", "jaxlib", "jaxopt", "optimistix")}
    with open(results, "w", encoding="utf-8") as out:
        json.dump({"packages": versions, "maps": records}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
