"""The command line, end to end through `main`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deqlm import GRADIENTS
from deqlm.cli.main import main
from deqlm_solvers import SOLVERS, StepSolver, options, register_solver

TINY = ["compare", "--problems", "symmetric:rho=0.5,unknowns=8,two_cycle:unknowns=4", "--repeats", "1"]


def test_compare_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--solvers", "anderson:memory=4,damping=0.9,fixed_point", "--no-plots", "--seed", "3"]) == 0
    out = capsys.readouterr()
    assert "anderson:memory=4,damping=0.9" in out.out
    assert "FAILS" in out.out
    assert out.err == ""
    assert max(map(len, out.out.splitlines())) <= 120
    assert {path.name for path in (tmp_path / "deqlm-compare").iterdir()} == {"compare.json", "compare.txt"}
    assert "wrote deqlm-compare/compare.json" in out.out.replace("\\", "/")
    record = json.loads((tmp_path / "deqlm-compare/compare.json").read_text())
    assert record["settings"]["seed"] == 3
    assert len(record["problems"]) == 2


def test_compare_gradients(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    argv = ["compare", "--gradients", "--problems", "tanh:rho=0.5,unknowns=8", "--repeats", "1", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "cosine" in capsys.readouterr().out
    assert (tmp_path / "gradients.svg").exists()


def test_a_map_of_ones_own(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef make():\n    return torch.cos, torch.zeros(2, 3)\n")
    argv = [
        "compare",
        "--problems",
        f"{file}:make",
        "--solvers",
        "anderson",
        "--no-plots",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(argv) == 0
    assert "2/2" in capsys.readouterr().out


def test_without_matplotlib_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*TINY, "--solvers", "anderson", "--out", str(tmp_path)]) == 0
    assert 'pip install "deqlm[compare]"' in capsys.readouterr().err
    assert (tmp_path / "compare.json").exists()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["compar"], "did you mean 'compare'"),
        (["compare", "--solvers", "andersn"], "did you mean 'anderson'"),
        (["compare", "--problems", "symetric"], "did you mean 'symmetric'"),
        (["compare", "--dtype", "float23"], "did you mean 'float32'"),
        (["compare", "--device", "cpuu"], "did you mean 'cpu'"),
        (["compare", "--repeats", "0"], "a whole number >= 1"),
        (["compare", "--solvers", "anderson:memory=0"], "memory must be"),
        (["compare", "--gradients", "--solvers", "implict"], "did you mean 'implicit'"),
        (["compare", "--problems", "nowhere:make"], "no module 'nowhere'"),
        (["compare", "--unheard-of"], "--unheard-of"),
        ([], "required"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, text, capsys):
    assert main(argv) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert text in out.err
    assert len(out.err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main([*TINY, "--solvers", "fixed_point", "--no-plots", "--out", str(blocked / "below")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_interrupted_runs_write_what_they_have(tmp_path, capsys, monkeypatch, registries):
    @register_solver("interrupts")
    @options
    class Interrupts(StepSolver):
        def init(self, z):
            raise KeyboardInterrupt

        def step(self, f, at, state):
            raise AssertionError

    argv = [*TINY, "--solvers", "fixed_point,interrupts", "--no-plots", "--out", str(tmp_path)]
    assert main(argv) == 130
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["interrupted"]
    assert record["problems"][0]["entries"][0]["outcome"] == "solved"
    assert "interrupted" in capsys.readouterr().out


def test_help_teaches_with_examples(capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples" in text
    assert "module:callable" in text
    assert "anderson:memory=5" in text
    assert main(["--help"]) == 0


def test_the_example_of_the_help_runs(tmp_path, capsys):
    from deqlm.cli.compare import EPILOG

    block = EPILOG.split("A file mine.py that works:")[1].split("  Return an")[0]
    lines = [line[6:] for line in block.splitlines() if line.strip()]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    argv = ["compare", "--problems", f"{tmp_path}/mine.py:make", "--solvers", "anderson", "--no-plots"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert "8/8" in capsys.readouterr().out


def test_listings(capsys):
    assert main(["solvers"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SOLVERS)
    assert "memory=12" in text
    assert "guarantees" in text
    assert main(["gradients"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in GRADIENTS)
    assert "steps=4" in text
    assert main(["solvers", "--names"]) == 0
    assert capsys.readouterr().out.split() == list(SOLVERS)
    assert main(["compare", "--list-problems"]) == 0
    assert "rho=0.9" in capsys.readouterr().out


def test_plugins_are_listed(capsys, registries):
    @register_solver("a_plugin")
    @options
    class Plugin(StepSolver):
        """A solver from elsewhere."""

        strength: int = 3

        def init(self, z):
            return None

        def step(self, f, at, state):
            return at.fz, state

    assert main(["solvers"]) == 0
    text = capsys.readouterr().out
    assert "a_plugin\n  A solver from elsewhere.\n  options: strength=3" in text


def test_a_plugin_that_cannot_be_imported_is_listed(capsys, monkeypatch, registries):
    from importlib.metadata import EntryPoint, EntryPoints

    broken = EntryPoints([EntryPoint("broken", "no_such_module:Thing", "deqlm.solvers")])
    monkeypatch.setattr(SOLVERS, "_plugins", lambda: broken)
    assert main(["solvers"]) == 0
    assert "broken\n  cannot be imported: ModuleNotFoundError" in capsys.readouterr().out


def test_env_names_what_is_missing_and_what_it_would_give(capsys, monkeypatch):
    import deqlm.cli.env as env

    monkeypatch.setattr(env, "find_spec", lambda name: None if name == "torchdeq" else object())
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert 'extra compare: incomplete; pip install "deqlm[compare]"' in text
    assert "torchdeq     missing      solvers torchdeq.*" in text
    assert "torch " in text


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "deqlm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("deqlm ")
