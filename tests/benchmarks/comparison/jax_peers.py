"""Jitted jaxopt and optimistix on the same maps, in an interpreter of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison import jax_side
from benchmarks.comparison.maps import SpeedMap, speed_maps

__all__ = ["jax_missing", "measure_jax"]

NEEDS = ("jax", "jaxopt", "optimistix")

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}


def jax_missing(python: str) -> str:
    """Return why an interpreter cannot measure jax's solvers, or an empty text.

    Args:
        python: path of an interpreter.
    """
    script = f"import {', '.join(NEEDS)}"
    try:
        done = subprocess.run([python, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python}: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def measure_jax(
    python: str,
    maps: Iterable[SpeedMap] | None = None,
    rounds: int = 9,
    step: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Return versions and a record per float32 map, as `jax_side.measure` made it, in a process on one core.

    In float64 jitting and solving took longer than all other parts together, so those maps are left out.

    Args:
        python: an interpreter that has jax, jaxopt and optimistix.
        maps: what to solve; None takes `speed_maps`. Maps without a jax twin are left out.
        rounds: interleaved timed rounds.
        step: told what is under way.

    Raises:
        RuntimeError: the other process fails; the message is the last line of its errors.
    """
    given = speed_maps() if maps is None else maps
    chosen = [m for m in given if m.kind != "transformer" and m.z0.dtype == torch.float32]
    step("jaxopt and optimistix, float32")
    return _run(python, chosen, rounds)


def _run(python: str, maps: list[SpeedMap], rounds: int) -> dict[str, Any]:
    job = {"rounds": rounds, "maps": [_spec(m) for m in maps]}
    held = {f"{i}/{name}": value for i, m in enumerate(maps) for name, value in _arrays(m).items()}
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    with tempfile.TemporaryDirectory() as folder:
        problems, results = Path(folder, "problems.npz"), Path(folder, "results.json")
        np.savez(problems, job=np.array(json.dumps(job)), **held)  # type: ignore[arg-type]
        command = [python, "-W", "ignore", jax_side.__file__, str(problems), str(results)]
        environment = {**os.environ, **ONE_THREAD}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run([*pin, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the jax process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return json.loads(results.read_text(encoding="utf-8"))


def _spec(m: SpeedMap) -> dict[str, Any]:
    dtype = str(m.z0.dtype).removeprefix("torch.")
    return {"name": m.name, "kind": m.kind, "tol": m.tol, "max_iter": m.max_iter, "dtype": dtype}


def _arrays(m: SpeedMap) -> dict[str, np.ndarray]:
    shared = {f"shared{i}": t.numpy() for i, t in enumerate(m.shared)}
    return {"z0": m.z0.numpy(), **shared, **{f"args{i}": t.numpy() for i, t in enumerate(m.args)}}
