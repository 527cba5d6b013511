"""Two processes train what one trains; kills lose nothing; a process that dies ends the others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training.pretraining import settings, text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 400
STEPS = 50


def command(folder: Path, run: str, processes: int, **changes: object) -> list[str]:
    given = settings(STEPS, precision="float64", **changes).replace(source=str(text(folder)), timeout=60.0)
    config = folder / f"{run}.json"
    config.write_text(json.dumps(given.to_dict()))
    where = ["--config", str(config), "--out", str(folder / run), "--data", str(folder / "data"), "--device", "cpu"]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, "-W", "ignore"]
    return [*start, *(many if processes > 1 else []), "-m", "examples.pretrain.train", *where]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'solvers'}", "OMP_NUM_THREADS": "1"}


def run(folder: Path, name: str, processes: int, **changes: object) -> None:
    told = {"capture_output": True, "text": True, "env": environment(), "cwd": ROOT, "timeout": LIMIT}
    done = subprocess.run(command(folder, name, processes, **changes), **told)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(folder: Path, name: str) -> torch.Tensor:
    found = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in found], dtype=torch.float64)


@pytest.mark.parametrize("family", ["mamba2", "llama3"])
def test_two_processes_train_what_one_trains(tmp_path, family):
    run(tmp_path, "one", 1, family=family, rows=4)
    for name, changes in {
        "ddp": {"parallel": "ddp"},
        "fsdp": {"parallel": "fsdp"},
        "blocks": {"parallel": "fsdp", "shard": "blocks"},
    }.items():
        run(tmp_path, name, 2, family=family, rows=2, **changes)
        torch.testing.assert_close(losses(tmp_path, name), losses(tmp_path, "one"), rtol=1e-6, atol=1e-6, msg=name)


def test_it_goes_on_with_other_numbers_of_processes(tmp_path):
    """Killed with two processes, continued by one, killed again, continued by two, another way of sharing."""
    run(tmp_path, "whole", 1, rows=4)
    same = {"checkpoint_every": 5}
    kill_at(command(tmp_path, "cut", 2, rows=2, **same), tmp_path / "cut", 15)
    kill_at(command(tmp_path, "cut", 1, rows=4, **same), tmp_path / "cut", 30)
    run(tmp_path, "cut", 2, rows=2, parallel="fsdp", **same)
    torch.testing.assert_close(losses(tmp_path, "cut"), losses(tmp_path, "whole"), rtol=1e-6, atol=1e-6)


def kill_at(started: list[str], folder: Path, step: int) -> None:
    """Start a training and kill all of its processes when a checkpoint of at least ``step`` is there."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(started, env=environment(), cwd=ROOT, start_new_session=True, **silent)
    limit = time.monotonic() + LIMIT
    while newest(folder) < step and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    end(child)
    assert newest(folder) >= step


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill the session of a child."""
    for process in children(child.pid):
        os.kill(process, signal.SIGKILL)
    child.kill()
    child.wait()


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def newest(folder: Path) -> int:
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for match in found if match), default=0)


def test_twenty_kills_lose_no_checkpoint(tmp_path):
    """A warm parent forks trainings, kills each at a random moment, and looks at what lies there."""
    forks = tmp_path / "forks.py"
    forks.write_text(FORKS)
    (tmp_path / "run").mkdir()
    told = {"capture_output": True, "text": True, "env": {**environment(), "FOLDER": str(tmp_path)}, "cwd": ROOT}
    path = f"{environment()['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"
    told["env"]["PYTHONPATH"] = path
    done = subprocess.run([sys.executable, "-W", "ignore", str(forks)], timeout=2 * LIMIT, **told)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed 20 times" in done.stdout


FORKS = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from training.pretraining import settings, training

folder, draw = Path(os.environ["FOLDER"]), random.Random(0)
torch.set_num_threads(1)


def newest():
    names = [p.name for p in (folder / "run").iterdir()]
    return max((int(n[5:]) for n in names if n.startswith("step-") and n[5:].isdigit()), default=0)


def child():
    training(folder, settings(10**6, family="llama3", checkpoint_every=2, keep=2)).run()


before = 0
for kill in range(20):
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(os.devnull, "w")
        child()
        os._exit(1)
    limit = time.monotonic() + 60
    while newest() == before and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(draw.random() * 0.4)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert newest() > before, (kill, newest(), before)
    before = newest()
    pid = os.fork()
    if pid == 0:  # a process that has computed cannot be forked from
        made = training(folder, settings(10**6, family="llama3", checkpoint_every=2, keep=2))
        os._exit(0 if made.step == before else 1)
    assert os.waitpid(pid, 0)[1] == 0, (kill, before)
print("killed 20 times, at step", before)
"""


def test_a_process_that_dies_ends_the_others(tmp_path):
    """One of two is killed; the other, without torchrun to end it, gives up by itself and says so."""
    config = command(tmp_path, "run", 1, rows=2, recipe={"tokens": 64 * 10**5})
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    pair = [
        subprocess.Popen(
            config,
            env={**environment(), **store, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    limit = time.monotonic() + LIMIT
    metrics = tmp_path / "run/metrics.jsonl"
    while (not metrics.exists() or len(metrics.read_text().splitlines()) < 3) and time.monotonic() < limit:
        time.sleep(0.1)
    pair[1].kill()
    began = time.monotonic()
    _, error = pair[0].communicate(timeout=120)
    pair[1].communicate()
    assert time.monotonic() - began < 90
    assert pair[0].returncode == 1
    assert "error: training stopped" in error


def free_port() -> int:
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]
