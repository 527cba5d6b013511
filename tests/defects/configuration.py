"""Names of options, where they go, and what happens to the caller's own objects."""

from __future__ import annotations

import argparse
import copy
import doctest
import warnings

import pytest
import torch

import deqlm
from deqlm import Anderson, Broyden, FixedPoint, Stop


def layer(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * z + 1


def ours_runs_every_example() -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for made in (deqlm.solve, deqlm.DEQ, FixedPoint, Anderson, Broyden):
        (found,) = finder.find(made, made.__name__, globs={"deqlm": deqlm, "torch": torch})
        assert found.examples, f"{made.__name__} shows no example"
        outcome = runner.run(found, out=lambda text: None)
        assert outcome.failed == 0, made.__name__


def theirs_has_an_example_that_raises() -> None:
    from defects import peer

    example = peer.get_solver("simple_fixed_point_iter").__doc__
    assert "f = lambda z: torch.cos(z)" in example
    with pytest.raises(TypeError, match="tau"):
        peer.run("simple_fixed_point_iter", lambda z: torch.cos(z), torch.tensor(0.0))


def ours_refuses_unknown_options() -> None:
    z0 = torch.zeros(1, 2)
    for wrong, match in (
        (lambda: deqlm.DEQ(layer, stop={"f_max_iters": 3}), "did you mean 'max_iter'"),
        (lambda: deqlm.DEQ(layer, stop={"max_iters": 3}), "did you mean 'max_iter'"),
        (lambda: deqlm.DEQ(layer, solvr="anderson"), "did you mean 'solver'"),
        (lambda: deqlm.DEQ(layer, solver={"name": "anderson", "memry": 3}), "did you mean 'memory'"),
        (lambda: deqlm.DEQ(layer, gradient={"name": "phantom", "step": 3}), "did you mean 'steps'"),
        (lambda: Stop(tol=1e-3), "tol"),
        (lambda: Anderson(lam=1e-4), "lam"),
        (lambda: deqlm.solve(layer, z0, ftol=1.0), "ftol"),
    ):
        with pytest.raises((TypeError, KeyError), match=match):
            wrong()


def theirs_ignores_unknown_options() -> None:
    from defects import peer

    module = peer.torchdeq.get_deq(f_max_iters=3, ftol=1.0)
    assert (module.f_max_iter, module.f_tol) == (40, 1e-3)
    for name in ("fixed_point_iter", "anderson", "broyden"):
        (z, _), (same, _) = (
            peer.run(name, layer, torch.zeros(1, 2), **extra) for extra in ({"toll": 1e-9, "memory": 9}, {})
        )
        assert torch.equal(z, same)


def ours_has_one_place_for_a_tolerance() -> None:
    z0 = torch.zeros(1, 2, dtype=torch.float64)
    for name in ("tol", "rtol", "max_iter"):
        with pytest.raises(TypeError, match=rf"unknown option '{name}': give it as stop=Stop\("):
            deqlm.solve(layer, z0, **{name: 1e-9})
    deq = deqlm.DEQ(layer, solver="fixed_point", stop=Stop(rtol=1e-2))
    loose = deq(z0)
    deq.solve = deq.solve.replace(stop=Stop(rtol=1e-12))
    sharp, sol = deq(z0, with_stats=True)
    assert (sol.relative <= 1e-12).all()
    assert (sharp - 2).abs().max() < (loose - 2).abs().max()


def theirs_raises_on_documented_overrides() -> None:
    from defects import peer

    module = peer.torchdeq.get_deq()
    for override in ({"tol": 1e-9}, {"stop_mode": "rel"}, {"max_iter": 3}):
        with pytest.raises(TypeError, match="multiple values"):
            module(layer, torch.zeros(1, 2), solver_kwargs=override)


def ours_leaves_the_caller_s_objects_alone() -> None:
    given = {
        "solver": {"name": "anderson", "memory": 3},
        "gradient": {"name": "phantom", "steps": 2},
        "stop": {"max_iter": 30, "rtol": 1e-3},
    }
    before = copy.deepcopy(given)
    deq = deqlm.DEQ(layer, **given)
    deq(torch.zeros(1, 2))
    assert given == before
    assert deq.solve.solver.memory == 3
    given["solver"]["memory"] = 9
    assert deq.solve.solver.memory == 3


def theirs_writes_into_the_caller_s_objects() -> None:
    from defects import peer

    options, parsed = {"f_max_iter": 10}, argparse.Namespace(f_max_iter=10)
    peer.torchdeq.get_deq(options, f_tol=1e-9)
    peer.torchdeq.get_deq(parsed, f_tol=1e-9)
    assert options == {"f_max_iter": 10, "f_tol": 1e-9}
    assert parsed.f_tol == 1e-9


def ours_refuses_unknown_options_of_scipy() -> None:
    pytest.importorskip("scipy")
    for name in ("scipy.anderson", "scipy.broyden1", "scipy.krylov", "scipy.hybr"):
        with pytest.raises((TypeError, KeyError), match="typo"):
            deqlm.solve(layer, torch.zeros(1, 2), solver={"name": name, "typo": 1})


def theirs_warns_only() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = optimize.root(lambda x: 0.5 * x - 1, [0.0], method="anderson", options={"typo": 1})
    assert found.success
    assert [w.category for w in caught] == [optimize.OptimizeWarning]
