"""``deq(f, z0) -> (states, info)``: the same states and gradients as torchdeq where that is right, and no silence."""

from __future__ import annotations

import argparse
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compat.maps import F64, Cell, start
from compat.recipes import EXACT, SOLVED, crashes, run
from deqlm import ConvergenceWarning
from deqlm.compat import torchdeq as ours


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("recipe", EXACT + SOLVED, ids=str)
def test_states_and_gradients_are_those_of_torchdeq(recipe: dict, several: bool) -> None:
    theirs = pytest.importorskip("torchdeq")
    bound = 1e-13 if recipe in EXACT else 1e-8
    quiet = {} if recipe in SOLVED else {"on_failure": "ignore"}
    for train in (True,) if crashes(recipe, several) else (True, False):
        z, grads, info = run(ours.get_deq, {**recipe, **quiet}, several, train)
        y, wanted, told = run(theirs.get_deq, dict(recipe), several, train)
        assert len(z) == len(y)
        for a, b in zip([*z, *grads], [*y, *wanted], strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)
        if recipe["f_max_iter"]:
            assert info.keys() >= told.keys() - {"sradius"}
            assert info["abs_lowest"].shape == info["nstep"].shape == (4,)


@pytest.mark.parametrize(("tol", "most"), [(1e-3, 3e-4), (1e-6, 1e-7), (1e-9, 3e-10)])
def test_rows_that_end_by_themselves_differ_from_torchdeq_within_the_tolerance(tol: float, most: float) -> None:
    """The guide for its users tells these differences."""
    theirs = pytest.importorskip("torchdeq")
    torch.manual_seed(1)
    cell = Cell()
    with torch.no_grad():
        (z,), info = ours.get_deq(f_max_iter=200, f_tol=tol).eval()(cell, start())
        (y,), told = theirs.get_deq(f_max_iter=200, f_tol=tol).eval()(cell, start())
    assert 0 < (z - y).abs().max() <= most
    assert info["nstep"].min() < told["nstep"].min()


def test_every_state_is_returned_however_early_the_solve_ends() -> None:
    deq = ours.get_deq(f_max_iter=200, f_tol=1e-6, core="indexing", n_states=4, ift=True, b_max_iter=200)
    cell = Cell()
    states, _ = deq(cell, start())
    assert len(states) == 4
    states[-1].sum().backward()
    with torch.no_grad():
        z = states[-1].detach()
    source = z.clone().requires_grad_()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v, x: torch.tanh(cell.a(v) + x)))(source, cell.x).detach()
    cotangent = torch.linalg.solve(torch.eye(6, dtype=F64) - jacobian.mT, torch.ones(4, 6, 1, dtype=F64))[..., 0]
    (wanted,) = torch.autograd.grad(cell(z), cell.a.weight, cotangent)
    torch.testing.assert_close(cell.a.weight.grad, wanted, rtol=1e-4, atol=1e-5)


def test_slices_take_all_evaluations() -> None:
    seen = []

    def f(z: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return 0.5 * z + 1

    deq = ours.get_deq(f_solver="simple_fixed_point_iter", f_max_iter=10, n_states=3)
    states, _ = deq(f, torch.zeros(2, 3))
    assert (len(states), seen.count(False), seen.count(True)) == (3, 10, 0 + 3)


def test_grad_mode_alone_decides_about_the_graph() -> None:
    cell = Cell()
    for train in (True, False):
        deq = ours.get_deq(f_max_iter=60, f_tol=1e-9, grad=3).train(train)
        with torch.no_grad():
            (plain,), _ = deq(cell, start())
        (tied,), _ = deq(cell, start())
        assert tied.requires_grad
        assert not plain.requires_grad
        assert torch.equal(plain, tied)


def test_eval_returns_the_point_of_the_solver() -> None:
    cell = Cell()
    deq = ours.get_deq(f_solver="simple_fixed_point_iter", f_max_iter=4, eval_factor=1.5, grad=3).eval()
    (z,), _ = deq(cell, start())
    want = start()
    for _ in range(6):
        want = cell(want)
    assert torch.equal(z.detach(), want.detach())
    (z,), _ = deq(cell, start(), solver_kwargs={"f_max_iter": 1})
    assert torch.equal(z.detach(), cell(start()).detach())
    (z,), _ = ours.get_deq(f_solver="simple_fixed_point_iter", eval_f_max_iter=1).eval()(cell, start())
    assert torch.equal(z.detach(), cell(start()).detach())


def test_numbers_are_of_the_evaluations_that_were_made() -> None:
    cell = Cell()
    with torch.no_grad():
        _, info = ours.get_deq(f_max_iter=100, f_tol=1e-6).eval()(cell, start())
        z, points = start(), []
        for _ in range(int(info["nstep"].max())):
            points.append((cell(z) - z).norm(dim=1))
            z = cell(z)
    assert info["abs_trace"].shape == (4, len(points))
    assert (info["abs_lowest"] < 1e-6).all()
    torch.testing.assert_close(info["abs_trace"][:, :3], torch.stack(points, 1)[:, :3])
    torch.testing.assert_close(info["rel_lowest"], info["rel_trace"].min(1).values)


def test_options_of_a_call_go_before_those_of_the_module() -> None:
    cell = Cell()
    deq = ours.get_deq(f_max_iter=40, f_tol=1e-3)
    _, coarse = deq(cell, start())
    _, fine = deq(cell, start(), solver_kwargs={"f_max_iter": 200, "tol": 1e-9, "stop_mode": "rel", "tau": 0.9})
    assert (fine["rel_lowest"] < 1e-9).all()
    assert (coarse["abs_lowest"] > 1e-6).all()
    with pytest.raises(TypeError, match=r"taau.*tau"):
        deq(cell, start(), solver_kwargs={"taau": 0.9})
    _, info = deq(cell, start(), solver_kwargs={"f_max_iter": 5, "return_final": True})
    assert info["nstep"].tolist() == [5.0] * 4


def test_one_call_has_one_noise() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6, dtype=F64)

    def f(z: Tensor) -> Tensor:
        return F.dropout(torch.tanh(0.3 * layer(z) + 1), 0.5)

    for core in ("sliced", "indexing"):
        deq = ours.get_deq(f_solver="simple_fixed_point_iter", f_max_iter=30, n_states=3, core=core)
        states, _ = deq(f, start())
        zeros = [state == 0 for state in states]
        assert all(torch.equal(mask, zeros[0]) for mask in zeros)
        again, _ = deq(f, start())
        assert not torch.equal(again[0] == 0, zeros[0])


def test_a_row_that_fails_leaves_its_neighbours_alone() -> None:
    cell = Cell()
    cell.x[1] = torch.nan

    def f(z: Tensor) -> Tensor:
        return cell(z)

    def masked(z: Tensor, keep: Tensor) -> Tensor:
        return cell(z)[keep]

    for recipe in ({"grad": 3}, {"ift": True}, {"n_states": 2, "core": "indexing"}):
        deq = ours.get_deq(f_max_iter=100, f_tol=1e-6, b_max_iter=100, on_failure="ignore", **recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            states, info = deq(f, start())
        assert states[-1][[0, 2, 3]].isfinite().all()
        assert (info["abs_lowest"][[0, 2, 3]] < 1e-6).all()


def test_a_solve_that_does_not_converge_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="MAX_ITER"):
        ours.get_deq(f_max_iter=3, f_tol=1e-9)(Cell(), start())


def test_the_backward_solve_is_reported() -> None:
    told = []
    for solver in ("fixed_point_iter", "anderson", "broyden"):
        deq = ours.get_deq(f_max_iter=100, f_tol=1e-9, ift=True, b_solver=solver, b_tol=1e-8, b_max_iter=200)
        (z,), _ = deq(Cell(), start(), backward_writer=told.append)
        assert len(told) == 0
        z.sum().backward()
        info = told.pop()
        assert (info["abs_lowest"] < 1e-6).all()
        assert info["nstep"].shape == (4,)


def test_the_spectral_radius_sees_complex_pairs() -> None:
    turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]], dtype=F64)
    deq = ours.get_deq(f_max_iter=300).eval()
    (z,), info = deq(lambda z: z @ turn + 1, torch.zeros(3, 2, dtype=F64), sradius_mode=True)
    torch.testing.assert_close(info["sradius"], torch.full((3,), 0.9, dtype=F64))
    assert not z.requires_grad


def test_options_come_from_a_parser_a_dict_or_keywords() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    ours.add_deq_args(parser)
    args = parser.parse_args(["--f_max_iter", "7", "--grad", "2", "--ift"])
    before = vars(args).copy()
    deq = ours.get_deq(args, f_tol=0.5)
    assert vars(args) == before
    assert (deq.settings.f_max_iter, deq.settings.steps, deq.settings.ift, deq.settings.f_tol) == (7, (2,), True, 0.5)
    given = {"core": "indexing", "tau": 0.3, "gamma": 0.5}
    assert isinstance(ours.get_deq(given, tau=0.4), ours.DEQIndexing)
    assert given == {"core": "indexing", "tau": 0.3, "gamma": 0.5}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"f_max_iters": 3}, TypeError, "f_max_iters.*did you mean 'f_max_iter'"),
        ({"ftol": 3}, TypeError, "ftol.*f_tol"),
        ({"gamma": 0.5}, TypeError, "gamma.*fp_correction"),
        ({"m": 5}, TypeError, "solver_kwargs"),
        ({"norm_type": "none"}, TypeError, "apply_norm"),
        ({"grad": 0}, ValueError, "grad must be a whole number >= 1"),
        ({"grad": []}, ValueError, "grad must be"),
        ({"tau": 0.0}, ValueError, r"tau must be in \(0, 1\]"),
        ({"f_stop_mode": "l2"}, ValueError, "f_stop_mode must be 'abs' or 'rel'"),
        ({"core": "slice"}, KeyError, "did you mean 'sliced'"),
        ({"f_solver": "andersen"}, KeyError, "did you mean 'anderson'"),
        ({"b_solver": "gmres"}, KeyError, "unknown solver 'gmres'"),
        ({"on_failure": "shout"}, ValueError, "on_failure must be"),
        ({"f_max_iter": -1}, ValueError, "f_max_iter must be a whole number >= 0"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ours.get_deq(**options)


def test_a_name_on_a_command_line_that_is_nearly_one_is_told() -> None:
    with pytest.warns(UserWarning, match="f_max_iters.*f_max_iter"):
        ours.get_deq(argparse.Namespace(f_max_iters=5, lr=0.1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"grad": [1, 2], "n_states": 3}, "grad must be one number, or one for each of 3 states"),
        ({"indexing": [5, 50]}, "indexing must be below f_max_iter, 40"),
        ({"grad": 2, "sup_gap": 3}, "sup_gap must be at most grad, 2"),
    ],
)
def test_states_that_cannot_be_are_refused(options: dict, text: str) -> None:
    for core in ("sliced", "indexing"):
        with pytest.raises(ValueError, match=text):
            ours.get_deq(core=core, **options)(Cell(), start())


def test_a_core_of_ones_own_is_found() -> None:
    class Mine(ours.DEQSliced):
        pass

    ours.register_deq("mine", Mine)
    assert isinstance(ours.get_deq(core="mine", f_max_iter=3), Mine)
    with pytest.raises(TypeError, match="core must be a class"):
        ours.register_deq("mine", 3)
