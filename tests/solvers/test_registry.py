"""The registry: names, aliases, objects from specs, own solvers and plugins of installed packages."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from deqlm.testing import check_solver
from deqlm_solvers import SOLVERS, Anderson, FixedPoint, Registry, Solve, Solver, StepSolver, options, register_solver


def test_the_three_solvers_are_there():
    assert {"anderson", "broyden", "fixed_point"} <= set(SOLVERS)
    assert SOLVERS["anderson"] is Anderson
    assert "anderson" in SOLVERS
    assert "newton_fractal" not in SOLVERS
    assert len(SOLVERS) == len(list(SOLVERS))
    assert list(SOLVERS) == sorted(SOLVERS)
    assert all(SOLVERS[name].name == name for name in SOLVERS)


def test_make_from_names_dicts_and_objects():
    assert SOLVERS.make("anderson") == Anderson()
    assert SOLVERS.make({"name": "anderson", "memory": 3}) == Anderson(memory=3)
    mine = FixedPoint(damping=0.5)
    assert SOLVERS.make(mine) is mine


def test_unknown_names_name_the_nearest():
    with pytest.raises(KeyError, match=r"unknown solver 'andersen': did you mean 'anderson'\? known: .*broyden"):
        SOLVERS["andersen"]
    with pytest.raises(KeyError, match="did you mean 'broyden'"):
        SOLVERS.make({"name": "broydn"})
    with pytest.raises(KeyError, match="unknown solver"):
        Solve("andersen")  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [3, None, ["anderson"]], ids=str)
def test_other_specs_are_refused(spec):
    with pytest.raises(TypeError, match="solver must be a name, a dict with 'name', or an object of Solver, got"):
        SOLVERS.make(spec)


def test_a_class_is_refused_and_told_how_to_be_an_object():
    with pytest.raises(TypeError, match=r"solver must be an object, write Anderson\(\), got the class"):
        SOLVERS.make(Anderson)  # type: ignore[arg-type]


def test_a_dict_without_a_name_is_refused():
    with pytest.raises(ValueError, match="a solver given as a dict needs the key 'name'"):
        SOLVERS.make({"memory": 3})


@pytest.mark.parametrize("name", ["Anderson", "my solver", "my-solver", "", "1st"])
def test_malformed_names_are_refused(name):
    with pytest.raises(ValueError, match="solver name must be lower-case words joined by '_', got"):
        register_solver(name)


def test_taken_names_are_refused():
    with pytest.raises(ValueError, match="solver name 'anderson' is taken; pass override=True"):
        register_solver("anderson")
    with pytest.raises(ValueError, match="solver name 'anderson' is taken"):
        register_solver("something_new", "anderson")


@pytest.mark.usefixtures("registries")
def test_a_taken_name_can_be_overridden_on_purpose():
    @register_solver("anderson", override=True)
    @options
    class Mine(Anderson):
        pass

    assert SOLVERS["anderson"] is Mine


def test_other_classes_are_refused():
    with pytest.raises(TypeError, match="solver 'toy' must extend Solver, got"):
        register_solver("toy")(dict)  # type: ignore[type-var]
    assert "toy" not in SOLVERS


@pytest.mark.usefixtures("registries")
def test_an_own_solver_is_used_by_name_alias_and_dict():
    @register_solver("mine", "my_alias")
    @options
    class Mine(StepSolver):
        pull: float = 0.5

        def init(self, z):
            return None

        def step(self, f, at, state):
            return at.z + self.pull * at.r, state

    assert "mine" in SOLVERS
    assert "my_alias" in SOLVERS
    assert "my_alias" not in list(SOLVERS)
    for spec in ("mine", "my_alias", {"name": "mine", "pull": 0.7}, {"name": "my_alias", "pull": 0.7}, Mine()):
        sol = Solve(spec)(lambda z: 0.5 * z + 1, torch.zeros(2, 3))  # type: ignore[arg-type]
        assert sol.converged.all()
    check_solver("mine")


PLUGIN = '''
from deqlm_solvers import StepSolver, options


@options
class Plugged(StepSolver):
    """From another distribution."""

    def init(self, z):
        return None

    def step(self, f, at, state):
        return at.z + 0.5 * at.r, state
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch, registries):
    """An installed distribution with a working and a broken entry point."""
    (tmp_path / "plugged_solver.py").write_text(PLUGIN)
    info = tmp_path / "plugged_solver-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-solver\nVersion: 1.0\n")
    points = ["plugged = plugged_solver:Plugged", "broken = plugged_solver:Missing", "odd = json:loads"]
    (info / "entry_points.txt").write_text("[deqlm.solvers]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("plugged_solver", None)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_is_listed_without_being_imported_and_loaded_when_asked_for():
    assert "plugged" in list(SOLVERS)
    assert "plugged" in SOLVERS
    assert "plugged_solver" not in sys.modules
    sol = Solve({"name": "plugged"})(lambda z: 0.5 * z + 1, torch.zeros(2, 3))  # type: ignore[arg-type]
    assert sol.converged.all()
    assert SOLVERS["plugged"].name == "plugged"
    assert SOLVERS["plugged"]().to_dict() == {"name": "plugged"}


@pytest.mark.usefixtures("plugin")
def test_a_broken_plugin_breaks_only_itself():
    with pytest.raises(ImportError, match=r"solver 'broken' of plugged_solver:Missing cannot be imported.*Missing"):
        SOLVERS["broken"]
    with pytest.raises(TypeError, match="solver 'odd' must extend Solver"):
        SOLVERS["odd"]
    assert SOLVERS["anderson"] is Anderson
    with pytest.raises(KeyError, match="did you mean 'plugged'"):
        SOLVERS["pluged"]


def test_registries_are_independent():
    mine: Registry[Solver] = Registry("toy", Solver, "no.such.group")
    assert list(mine) == []
    with pytest.raises(KeyError, match=r"unknown toy 'anderson': known: \(none\)"):
        mine["anderson"]
