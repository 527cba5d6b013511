"""``deqlm diagnose`` end to end."""

from __future__ import annotations

import json
import re

import pytest

from deqlm.cli.main import main

MINE = """
import deqlm, torch

def make(dtype, width=6):
    layer = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh()).to(dtype)
    return deqlm.DEQ(layer), torch.randn(4, width, dtype=dtype)

def rotation():
    turn = 0.99 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    return lambda z: z @ turn.T + 1, torch.zeros(1, 2)

def wrong():
    return 3

def divides():
    return 1 / 0

def mismatched():
    def f(z):
        return z @ torch.zeros(3, 3)
    return f, torch.zeros(2, 4)

def misspelt():
    return deqlm.DEQ(torch.nn.Linear(2, 2), solvr="anderson"), torch.zeros(2, 2)

def late():
    seen = []
    def f(z):
        seen.append(z)
        if len(seen) > 3:
            raise IndexError("after three")
        return 0.9 * z + 1
    return f, torch.zeros(2, 4)
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path}/mine.py"


def test_a_healthy_deq_ends_with_0(mine, capsys):
    assert main(["diagnose", f"{mine}:make:width=5", "--dtype", "float64"]) == 0
    out = capsys.readouterr()
    assert "HEALTHY" in out.out
    assert "float64" in out.out
    assert out.err == ""


def test_a_sick_map_ends_with_1_and_is_written_down(mine, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    argv = ["diagnose", f"{mine}:rotation", "--solver", "fixed_point:damping=1.0", "--rtol", "1e-5", "--max-iter", "50"]
    argv += ["--json", str(tmp_path / "d.json"), "--plot", str(tmp_path / "d.png")]
    assert main(argv) == 1
    assert "COMPLEX_PAIR" in capsys.readouterr().out
    record = json.loads((tmp_path / "d.json").read_text())
    assert record["cause"] == "COMPLEX_PAIR"
    assert record["rtol"] == 1e-5
    assert record["contraction"]["radius"][0] == pytest.approx(0.99, abs=1e-3)
    assert record["suggestion"]["worked"] is True
    assert (tmp_path / "d.png").exists()


def test_the_suggestion_is_not_tried_on_request(mine, capsys):
    assert main(["diagnose", f"{mine}:rotation", "--solver", "fixed_point", "--no-try"]) == 1
    assert "tried" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["symmetric"], "module:callable"),
        (["{mine}:mkae"], "did you mean 'make'"),
        (["{mine}:wrong"], "a pair (f, z0)"),
        (["{mine}:make", "--rtol", "1e-3"], "--rtol: a DEQ has its own"),
        (["{mine}:rotation", "--solver", "andersen"], "did you mean 'anderson'"),
        (["{mine}:rotation", "--max-iter", "0"], "max_iter"),
        (["{mine}:rotation", "--json", "/nowhere/at/all.json"], "/nowhere"),
    ],
)
def test_mistakes_end_with_2_and_one_line(mine, arguments, message, capsys):
    assert main(["diagnose", *(each.format(mine=mine) for each in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_help_teaches(capsys):
    assert main(["diagnose", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("examples", "exit status", "--plot", "--json", "def make"):
        assert word in out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("divides", "in divides: ZeroDivisionError: division by zero"),
        ("mismatched", "in f: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("misspelt", "in misspelt: TypeError: unknown option 'solvr': did you mean 'solver'?"),
    ],
)
def test_an_error_of_the_users_code_is_one_line_with_its_place(mine, name, told, capsys):
    assert main(["diagnose", f"{mine}:{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    place = re.escape(f"deqlm: error: {mine}:") + r"\d+, " + re.escape(told)
    assert re.match(place, line)
    assert main(["compare", "--problems", f"{mine}:{name}", "--solvers", "fixed_point", "--no-plots"]) == 1
    assert told.split(":")[0] in capsys.readouterr().out


def test_a_file_that_cannot_be_read_and_an_error_on_the_way_name_their_place(mine, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def make(:\n")
    assert main(["diagnose", f"{tmp_path}/broken.py:make"]) == 2
    assert "broken.py:1: SyntaxError: invalid syntax" in capsys.readouterr().err
    assert main(["diagnose", f"{mine}:late"]) == 1
    told = "".join(capsys.readouterr().out.split())  # lines are wrapped, within paths too
    assert re.search(r"stoppedbyIndexError:afterthree\(\S+mine\.py:\d+,inf\)", told)
