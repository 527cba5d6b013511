"""The command line, end to end through `main`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from deqlm import GRADIENTS
from deqlm.cli.main import COMMANDS, main
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
        (["compare", "--seed", "x"], "must be a whole number in [0, 2**63), got 'x'"),
        (["compare", "--seed", "-1"], "must be a whole number"),
        (["compare", "--problems", "mine.py"], "name a function in it: mine.py:make"),
        (["compare", "--problems", "symmetric:rho=abc"], "rho must be a number in (0, 1), got 'abc'"),
        (["compare", "--problems", "tanh:unknowns=many"], "unknowns must be a whole number >= 2, got 'many'"),
        (["compare", "--solvers", "anderson:damping=half"], "damping must be a number in (0, 1], got 'half'"),
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


@pytest.mark.parametrize("blocked", ["parent", "compare.json", "profile.png", "full disk"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys, monkeypatch, blocked):
    import deqlm.cli.compare as command

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "compare", lambda *_, **__: pytest.fail("it ran"))
    out = tmp_path / "out"
    if blocked == "parent":
        out.write_text("")
        out = out / "below"
    elif blocked == "full disk":
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    else:
        (out / blocked).mkdir(parents=True)
    assert main([*TINY, "--solvers", "fixed_point", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"deqlm: error: cannot write into {out}: ")


SETTINGS = '"record": "deqlm compare", "settings": {"dtype": 1, "seed": 2}, "problems": []'
MALFORMED = [
    '{"record": "deqlm compare", "files": null}',
    '{"record": "deqlm compare", "files": [["profile.svg"], 1, "profile.svg"]}',
    f'{{{SETTINGS}, "environment": {{"argv": [1, 2]}}}}',
    '{"record": "deqlm compare", "settings": [], "environment": 1, "problems": null, "files": {"profile.svg": 1}}',
    f'{{{SETTINGS}, "environment": {{"argv": ["\\ud800"]}}}}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_record_of_a_former_run_is_replaced(tmp_path, capsys, text):
    (tmp_path / "compare.json").write_text(text)
    assert main([*TINY, "--solvers", "fixed_point", "--no-plots", "--out", str(tmp_path)]) == 0
    assert ("a record that is malformed" in capsys.readouterr().out) is ("ud800" not in text)
    assert len(json.loads((tmp_path / "compare.json").read_text())["problems"]) == 2


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "\xff", '{"record": "another"}', "[]", '{"record": ["deqlm compare"]}']
)
def test_a_file_that_is_no_record_is_replaced(tmp_path, capsys, text):
    (tmp_path / "compare.json").write_text(text, encoding="latin-1")
    assert main([*TINY, "--solvers", "fixed_point", "--no-plots", "--out", str(tmp_path)]) == 0
    assert "in place of" not in capsys.readouterr().out


def test_a_run_replaces_the_former_one_and_says_so(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    foreign = tmp_path / "notes.png"
    foreign.write_text("mine")
    argv = [*TINY, "--solvers", "fixed_point", "--out", str(tmp_path)]
    assert main([*argv, "--seed", "7"]) == 0
    assert "in place of" not in capsys.readouterr().out
    assert (tmp_path / "profile.svg").exists()
    assert main([*argv, "--no-plots"]) == 0
    assert "(2 problems, float32, seed 7)" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"compare.json", "compare.txt", "notes.png"}


def test_plots_that_no_former_run_wrote_stay(tmp_path):
    (tmp_path / "profile.png").write_text("mine")
    argv = [*TINY, "--solvers", "fixed_point", "--no-plots", "--out", str(tmp_path)]
    assert main(argv) == main(argv) == 0
    assert (tmp_path / "profile.png").read_text() == "mine"


@pytest.mark.parametrize("gradients", [[], ["--gradients"]])
def test_nothing_compared_is_status_1_and_leaves_the_former_run(gradients, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    raise RuntimeError('no data')\n")
    argv = ["compare", "--problems", f"{file}:make", "--no-plots", "--out", str(tmp_path / "o"), *gradients]
    assert main(argv) == 1
    out = capsys.readouterr()
    assert out.err == "deqlm: nothing was compared\n"
    assert "no data" in out.out
    assert not (tmp_path / "o").exists()
    argv[2] += ",symmetric:rho=0.5,unknowns=4"
    assert main(argv) == 1
    assert capsys.readouterr().err == f"deqlm: {file}:make was not compared\n"


@pytest.mark.slow
def test_a_named_solver_that_cannot_run_is_status_1(tmp_path, capsys, registries):
    @register_solver("crashes")
    @options
    class Crashes(StepSolver):
        def init(self, z):
            return None

        def step(self, f, at, state):
            raise RuntimeError("no step today")

    argv = [*TINY, "--no-plots", "--out", str(tmp_path)]
    assert main([*argv, "--solvers", "fixed_point,crashes"]) == 1
    assert capsys.readouterr().err == "deqlm: crashes ran on no problem\n"
    assert main(argv) == 0


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


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_prose_of_the_help_follows_the_terminal(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([command, "--help"]) == 0
    long = [line for line in capsys.readouterr().out.splitlines() if len(line) > min(columns, 120)]
    assert all(line.startswith("    ") or line.lstrip().startswith(("deqlm ", "[")) for line in long), long


def test_the_command_alone_prints_its_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr()
    assert "deqlm compare --quick" in out.out
    assert out.err == ""


@pytest.mark.parametrize("extra", [["--solvers", "anderson"], ["--gradients", "--solvers", "implicit"]])
def test_the_example_of_the_help_runs(extra, tmp_path, capsys):
    from deqlm.cli.compare import EPILOG

    block = EPILOG.split("A file mine.py that works:")[1].split("  Return an")[0]
    lines = [line[6:] for line in block.splitlines() if line.strip()]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    argv = ["compare", "--problems", f"{tmp_path}/mine.py:make:width=12", "--no-plots", *extra]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "B=8, N=12" in text
    assert "FAILS" not in text
    assert "note:" not in text


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
    assert "a_plugin\n  A solver from elsewhere.\n  options: strength=3\n  declared guarantees:" in text
    assert "declared ones are the word of their author" in text


def test_guarantees_of_our_own_are_tested(capsys):
    assert main(["solvers"]) == 0
    assert "declared" not in capsys.readouterr().out


@pytest.fixture(params=["import no_such_module", "raise RuntimeError('boom')", "Thing = 3", "", "def"])
def broken_plugin(request, tmp_path, monkeypatch, registries):
    """An installed distribution whose solver cannot be used, for the reason in the parameter."""
    module = f"broken_plugin_{request.param_index}"
    info = tmp_path / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[deqlm.solvers]\nbroken = {module}:Thing\n")
    (tmp_path / f"{module}.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:Thing"


def test_a_plugin_that_cannot_be_used_is_listed(broken_plugin, capsys):
    assert main(["solvers"]) == 0
    assert f"broken\n  solver 'broken' of {broken_plugin} cannot be imported: " in capsys.readouterr().out


def test_a_plugin_that_cannot_be_used_is_one_line_when_named(broken_plugin, capsys):
    assert main([*TINY, "--solvers", "anderson,broken"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(f"deqlm: error: solver 'broken' of {broken_plugin} cannot be imported: ")
    assert len(out.err.splitlines()) == 1


def test_a_plugin_that_cannot_be_used_has_a_row_when_everything_runs(broken_plugin):
    from deqlm.comparison import compare

    entry = compare("symmetric:rho=0.5,unknowns=4", repeats=1, memory=False, progress=False).problems[0].entry("broken")
    assert not entry.ran
    assert broken_plugin in entry.message


def test_env_says_whether_the_step_is_compiled(capsys, monkeypatch):
    import deqlm.cli.env as env
    from deqlm_solvers.native.library import Outcome, load

    assert main(["env"]) == 0
    assert ("to build once per machine" in capsys.readouterr().out) is (load().library is not None)
    monkeypatch.setattr(env, "load", lambda: Outcome(None, "no C++ compiler found"))
    assert main(["env"]) == 0
    assert "compiled step none: no C++ compiler found; solvers run on torch operations" in capsys.readouterr().out


def test_env_of_python_dash_m_says_what_a_strange_compiler_does(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_bytes(b"#!/bin/sh\nprintf '\\377 caf\\351'\nexit 1\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "DEQLM_CACHE": os.fsdecode(bytes(tmp_path) + b"/caf\xe9")}
    command = [sys.executable, "-m", "deqlm", "env"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for part in ("compiled step", "layers    "):
        assert f"{part} none: {compiler} could not build the kernel: \ufffd caf\ufffd; " in text


def test_env_names_what_is_missing_and_what_it_would_give(capsys, monkeypatch):
    import deqlm.cli.env as env

    monkeypatch.setattr(env, "find_spec", lambda name: None if name == "torchdeq" else object())
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert 'extra compare: incomplete; pip install "deqlm[compare]"' in text
    assert "torchdeq     missing      solvers torchdeq.*" in text
    assert "torch " in text


def test_env_says_what_the_machine_can_do_and_why_not(capsys, monkeypatch):
    import deqlm.cli.abilities as abilities

    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    for name, found in abilities.abilities().items():
        assert found.startswith(("yes: ", "no: "))
        assert f"{name:13} {found}" in shown
    monkeypatch.setattr(abilities, "find_spec", lambda name: None)
    assert "triton is not installed" in abilities.triton()
    assert "mamba-ssm is not installed" in abilities.mamba_kernels()
    monkeypatch.setattr(abilities, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton is installed and cannot be imported" in abilities.triton()
    monkeypatch.setattr(abilities.torch.cuda, "is_available", lambda: False)
    assert "needs a CUDA device" in abilities.mamba_kernels()
    monkeypatch.setattr(abilities.torch.version, "cuda", "13.0")
    assert "finds no device or no driver" in abilities.cuda()
    monkeypatch.setattr(abilities.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(abilities, "why_not", lambda: "OSError: undefined symbol")
    assert abilities.mamba_kernels() == "no: OSError: undefined symbol"
    assert abilities.graphs().startswith("yes")
