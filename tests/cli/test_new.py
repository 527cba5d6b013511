"""``deqlm new``: what it writes passes its own tests, is found by its name, and clobbers nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deqlm import GRADIENTS, SOLVERS
from deqlm.cli.main import main
from deqlm.cli.new import KINDS
from deqlm.comparison import PROBLEMS
from deqlm.models import MIXERS

REGISTRIES = {"solver": SOLVERS, "gradient": GRADIENTS, "mixer": MIXERS, "problem": PROBLEMS}


def here() -> dict[str, str]:
    """Return an environment in which this tree is imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_written(kind, tmp_path, capsys):
    assert main(["new", kind, "my_own", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "my_own"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["README.md", "pyproject.toml", "src/my_own/__init__.py", "tests/test_my_own.py"]
    out = capsys.readouterr().out
    assert all(str(folder / file) in out for file in files)
    assert not any("$" in (folder / file).read_text() for file in files)


@pytest.mark.parametrize("kind", KINDS)
def test_its_entry_point_names_a_class_of_the_kind(kind, tmp_path, monkeypatch):
    main(["new", kind, f"found_{kind}", "--out", str(tmp_path)])
    project = tomllib.loads((tmp_path / f"found_{kind}/pyproject.toml").read_text())["project"]
    assert project["name"] == f"found-{kind}"
    (points,) = project["entry-points"].items()
    assert points[0] == REGISTRIES[kind].group
    module, _, name = points[1][f"found_{kind}"].partition(":")
    monkeypatch.syspath_prepend(tmp_path / f"found_{kind}/src")
    assert issubclass(getattr(__import__(module), name), REGISTRIES[kind].base)


def test_it_installs_for_editing_with_what_builds_us(tmp_path):
    main(["new", "solver", "my_own", "--out", str(tmp_path)])
    hatch = tomllib.loads((tmp_path / "my_own/pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert hatch["dev-mode-dirs"] == ["src"]  # else hatchling asks for a further package, editables
    assert (tmp_path / "my_own/src/my_own/__init__.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_as_they_are_written(kind, tmp_path):
    main(["new", kind, "my_own", "--out", str(tmp_path)])
    run = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(run, cwd=tmp_path / "my_own", env=here(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_taken_is_refused(kind, tmp_path, capsys):
    taken = next(iter(REGISTRIES[kind]))
    for name in (taken, "deqlm", "torch"):
        assert main(["new", kind, name, "--out", str(tmp_path)]) == 2
        assert f"got {name!r}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Heavy", "1st", "with-dash", "class", "über", "a b", "", "../up", "_x"])
def test_a_name_that_is_no_module_is_refused(name, tmp_path, capsys):
    assert main(["new", "solver", name, "--out", str(tmp_path)]) == 2
    assert "NAME must be small letters" in capsys.readouterr().err


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["new", "solver", "mine", "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    assert main(["new", "solver", "mine", "--out", str(file)]) == 2
    assert "cannot write into" in capsys.readouterr().err
    assert Path(file).read_text() == ""


def test_an_unknown_kind_lists_what_there_is(capsys):
    assert main(["new", "solvr", "mine"]) == 2
    assert "solver" in capsys.readouterr().err
