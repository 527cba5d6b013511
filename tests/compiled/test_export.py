"""A solve in a file answers as the eager one, from Python and from a program without it; bad files are told apart."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ, Stop

ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import sys
import torch
import deqlm

torch.manual_seed(0)
torch.set_num_threads(1)
layer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
deq = deqlm.DEQ(layer, on_failure="ignore").eval()
path = deqlm.export(deq, torch.randn(2, 16), "model.pt2")
solve = deqlm.load_exported(path)
print(solve.facts["solver"])
compiled = deqlm.compile(deq)
for rows in (5, 1, 2):
    x = torch.randn(rows, 16)
    with torch.no_grad():
        y, sol = deq(x, with_stats=True)
        z, same = compiled(x, with_stats=True)
    made = solve(x)
    torch.testing.assert_close(made.z, y)
    torch.testing.assert_close(made.z, z)
    assert torch.equal(made.steps, sol.steps)
    assert torch.equal(made.status, sol.status)
x = torch.cat([torch.randn(4, 16), torch.full((1, 16), torch.nan)])
x.numpy().tofile("input.bin")
solve(x).z.numpy().tofile("expected.bin")
"""


@pytest.mark.slow
def test_a_file_solves_in_python_and_in_a_program_without_it(tmp_path):
    path, cache = f"{ROOT}:{ROOT / 'solvers'}", str(tmp_path / "cache")
    env = {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-W", "ignore", "-c", WRITE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "anderson" in done.stdout
    torch_folder = Path(torch.__file__).parent
    readme = (ROOT / "examples/export/README.md").read_text()
    build = readme.split("```bash\n")[1].split("```")[0].split("\n", 1)[1].rsplit("./solve", 1)[0]
    source = shlex.quote(str(ROOT / "examples/export/solve.cpp"))
    command = build.replace("$T", str(torch_folder)).replace("solve.cpp", source)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    run = [str(tmp_path / "solve"), "model.pt2", "input.bin", "5", "16", "output.bin"]
    said = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 5
    assert "status 0" in said[0]
    assert "status 5" in said[4]
    assert (tmp_path / "output.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()


def test_what_is_no_exported_solve_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported solve"):
        deqlm.load_exported(tmp_path / "none.pt2")
    text = tmp_path / "text.pt2"
    text.write_text("no archive")
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("archive/data", "")
    empty = tmp_path / "empty.pt2"
    zipfile.ZipFile(empty, "w").close()
    paths = [text, other, empty]
    for name, told in {"list": b"[]", "bytes": b"\xff\xfe", "nothing": b"{}"}.items():
        paths.append(tmp_path / f"{name}.pt2")
        with zipfile.ZipFile(paths[-1], "w") as archive:
            archive.writestr("model/deqlm.json", told)
    for path in paths:
        with pytest.raises(ValueError, match="is no exported solve"):
            deqlm.load_exported(path)
    old = tmp_path / "old.pt2"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("model/deqlm.json", json.dumps({"format": 1, "torch": "1.0"}))
    with pytest.raises(ValueError, match=r"exported with torch 1\.0, and this is"):
        deqlm.load_exported(old)


@pytest.mark.parametrize(
    ("deq", "example", "error", "why"),
    [
        (nn.Tanh(), torch.ones(2, 3), TypeError, "must be a DEQ"),
        (DEQ(nn.Tanh()), torch.ones(1, 3), ValueError, "at least two rows"),
        (DEQ(nn.Tanh()), torch.ones(()), ValueError, "at least two rows"),
        (DEQ(nn.Tanh()), (), ValueError, "an input, or a tuple that begins with one"),
        (DEQ(nn.Tanh(), batch_dims=0), torch.ones(2, 3), deqlm.NotCompiledError, "batch_dims=0"),
        (DEQ(torch.tanh), torch.ones(2, 3), deqlm.NotCompiledError, "the layer is a function"),
        (DEQ(nn.Tanh(), solver="newton"), torch.ones(2, 3), deqlm.NotCompiledError, "'newton'"),
        (DEQ(nn.Tanh(), stop=Stop(per="leaf")), torch.ones(2, 3), deqlm.NotCompiledError, "per='leaf'"),
        (DEQ(nn.Dropout(0.5)), torch.ones(2, 3), deqlm.NotCompiledError, r"random numbers \(Dropout\)"),
    ],
)
def test_what_cannot_be_exported_says_why(deq, example, error, why, tmp_path):
    with pytest.raises(error, match=why):
        deqlm.export(deq, example, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"ends in \.pt2"):
        deqlm.export(DEQ(nn.Tanh()), torch.ones(2, 3), tmp_path / "model.so")
    with pytest.raises(FileNotFoundError, match="no folder"):
        deqlm.export(DEQ(nn.Tanh()), torch.ones(2, 3), tmp_path / "none" / "model.pt2")
