"""The formula of the tolerance: norms, tokens, leaves, weights, scale and mask."""

from __future__ import annotations

import math

import pytest
import torch

from deqlm.testing.solvers.problems import normal
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Status, Stop
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.criterion import Criterion

B, L, D = 3, 5, 2
TOKENS = Layout(leaves=((L, D),))


def reading(stop: Stop, layout: Layout, fz: torch.Tensor, z: torch.Tensor):
    return Criterion(stop, layout, z)(Evaluation(z, fz))


def states(N: int = L * D) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(0, B, N), normal(1, B, N)


def test_l2_of_rows():
    fz, z = states()
    out = reading(Stop(rtol=1e-2, atol=0.5), Layout(), fz, z)
    residual, size = (fz - z).norm(dim=1), fz.norm(dim=1)
    assert torch.allclose(out.residual, residual, rtol=1e-14)
    assert torch.allclose(out.relative, residual / size, rtol=1e-14)
    assert torch.allclose(out.ratio, residual / (0.5 + 1e-2 * size), rtol=1e-14)
    assert out.groups is None


def test_rms_is_l2_over_the_root_of_the_unknowns():
    fz, z = states()
    out = reading(Stop(norm="rms"), Layout(), fz, z)
    assert torch.allclose(out.residual, (fz - z).norm(dim=1) / (L * D) ** 0.5, rtol=1e-14)
    assert torch.allclose(out.relative, (fz - z).norm(dim=1) / fz.norm(dim=1), rtol=1e-14)


def test_rms_and_l2_differ_in_the_absolute_tolerance_only():
    f = lambda z: 0.5 * z + 1  # noqa: E731
    z0 = torch.zeros(1, 100, dtype=torch.float64)
    steps = [Solve(FixedPoint(), Stop(norm=norm, rtol=1e-4))(f, z0).steps.item() for norm in ("l2", "rms")]
    assert steps[0] == steps[1]
    absolute = [Solve(FixedPoint(), Stop(norm=n, rtol=0, atol=1e-4))(f, z0).steps.item() for n in ("l2", "rms")]
    assert absolute[0] > absolute[1]


def test_norms_neither_overflow_nor_vanish_in_float32():
    for size in (1e30, 1e-30):
        fz = torch.full((1, 8), 2 * size)
        out = reading(Stop(), Layout(), fz, torch.full((1, 8), size))
        assert out.residual.item() == pytest.approx(size * 8**0.5, rel=1e-5)
        assert out.relative.item() == pytest.approx(0.5, rel=1e-5)


def test_zero_over_zero_passes():
    zero = torch.zeros(2, 3)
    out = reading(Stop(), Layout(), zero, zero)
    assert (out.residual == 0).all()
    assert (out.relative == 0).all()
    assert (out.ratio == 0).all()


def test_nan_never_passes():
    for bad in (torch.nan, torch.inf):
        fz = torch.full((2, 3), bad)
        out = reading(Stop(rtol=1e3, atol=1e3), Layout(), fz, torch.zeros(2, 3))
        assert not (out.ratio <= 1).any()


def test_tokens_by_hand():
    fz, z = states()
    out = reading(Stop(per="token", rtol=1e-2), TOKENS, fz, z)
    residual = (fz - z).view(B, L, D).norm(dim=2)
    size = fz.view(B, L, D).norm(dim=2)
    assert torch.allclose(out.groups, residual / (1e-2 * size), rtol=1e-14)
    assert torch.allclose(out.ratio, (residual / (1e-2 * size)).amax(1), rtol=1e-14)
    assert torch.allclose(out.residual, residual.amax(1), rtol=1e-14)


def test_tokens_of_another_dimension_and_of_several_leaves():
    z = torch.zeros(B, L * D + L)
    layout = Layout(leaves=((D, L), (1, L)))
    fz = normal(2, B, L * D + L)
    out = reading(Stop(per="token", token_dim=2, rtol=0, atol=1.0), layout, fz, z.double())
    by_token = torch.cat([fz[:, : L * D].view(B, D, L), fz[:, L * D :].view(B, 1, L)], dim=1).norm(dim=1)
    assert torch.allclose(out.groups, by_token, rtol=1e-14)


def test_a_token_of_one_number():
    fz, z = states(L)
    out = reading(Stop(per="token", rtol=0, atol=1.0), Layout(leaves=((L,),)), fz, z)
    assert torch.allclose(out.groups, (fz - z).abs(), rtol=1e-14)


def test_tokens_count_batch_dims_in_token_dim():
    fz, z = states()
    two = reading(Stop(per="token", token_dim=2), Layout(leaves=((L, D),), batch_dims=2), fz, z)
    one = reading(Stop(per="token", token_dim=1), TOKENS, fz, z)
    none = reading(Stop(per="token", token_dim=0), Layout(leaves=((L, D),), batch_dims=0), fz, z)
    assert torch.equal(two.groups, one.groups)
    assert torch.equal(none.groups, one.groups)


def test_a_norm_over_the_sequence_hides_a_late_token_and_per_token_does_not():
    """One of 1000 tokens has not moved yet (measured on state tracking from L of about 800 on)."""
    long = 1000

    def f(z):
        fz = torch.ones_like(z)
        fz[:, -1] = torch.where(z[:, -2] > 0, 2.0, z[:, -1])
        fz[:, -2] = torch.where(z[:, -3] > 0, 1.0, 0.0)
        return fz

    z0 = torch.ones(1, long)
    z0[:, -1] = 0
    layout = Layout(leaves=((long, 1),))
    by_row = Solve(FixedPoint(), Stop(rtol=0.1))(f, z0, Layout())
    by_token = Solve(FixedPoint(), Stop(rtol=0.1, per="token"))(f, z0, layout)
    assert by_row.z[0, -1] == 0
    assert by_row.converged.all()
    assert by_token.z[0, -1] == 2
    assert by_token.converged.all()


def test_masked_tokens_do_not_count():
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[1, 3:] = False
    fz, z = states()
    fz = fz.clone()
    fz.view(B, L, D)[1, 3:] = torch.nan
    out = reading(Stop(per="token"), Layout(leaves=((L, D),), token_mask=mask), fz, z)
    clean = reading(Stop(per="token"), TOKENS, fz, z)
    assert out.residual.isfinite().all()
    assert torch.equal(out.ratio[[0, 2]], clean.ratio[[0, 2]])
    assert out.ratio[1] == clean.groups[1, :3].amax()


def test_a_row_without_tokens_passes():
    mask = torch.zeros(B, L, dtype=torch.bool)
    fz, z = states()
    out = reading(Stop(per="token"), Layout(leaves=((L, D),), token_mask=mask), fz, z)
    assert (out.ratio == 0).all()
    empty = reading(Stop(per="token"), Layout(leaves=((0, D),)), fz[:, :0], z[:, :0])
    assert (empty.ratio == 0).all()
    assert empty.residual.shape == (B,)


def test_token_steps_say_since_when_each_token_holds():
    """A chain in which token t is right from evaluation t + 1 on."""

    def f(z):
        return torch.cat([torch.ones_like(z[:, :1]), 2 * z[:, :-1].clamp(max=8)], dim=1)

    sol = Solve(FixedPoint(), Stop(per="token"))(f, torch.zeros(1, L), Layout(leaves=((L, 1),)))
    assert sol.converged.all()
    assert sol.token_steps.tolist() == [[2, 3, 4, 5, 6]]
    assert sol.steps.item() == 6
    plain = Solve(FixedPoint())(f, torch.zeros(1, L))
    assert plain.token_steps is None


def test_token_steps_of_tokens_that_do_not_hold_or_are_masked_are_zero():
    mask = torch.ones(1, L, dtype=torch.bool)
    mask[0, -1] = False

    def f(z):
        fz = torch.ones_like(z)
        fz[:, 2] = -z[:, 2] + 1
        return fz

    layout = Layout(leaves=((L, 1),), token_mask=mask)
    sol = Solve(FixedPoint(), Stop(max_iter=9, per="token"))(f, torch.zeros(1, L), layout)
    assert sol.token_steps.tolist() == [[2, 2, 0, 2, 0]]
    assert sol.status.item() == Status.MAX_ITER


def test_a_token_that_leaves_tolerance_starts_again():
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        fz = torch.cat([torch.ones_like(z[:, :1]), 0.5 * z[:, 1:] + 1], dim=1)
        if calls == 5:
            fz[:, 0] = 3
        return fz

    sol = Solve(FixedPoint(), Stop(per="token"))(f, torch.zeros(1, 2), Layout(leaves=((2, 1),)))
    assert sol.token_steps[0, 0] == 7, "it was out at evaluations 5 (its residual) and 6 (its value)"


def test_best_by_token_is_the_longest_prefix_and_one_snapshot():
    """A later point with a smaller worst token but a shorter prefix does not replace the row."""
    points = iter(
        torch.tensor(rows, dtype=torch.float64)[None]
        for rows in ([1.0, 1.0, 9.0], [1.0, 1.0, -9.0], [1.2, 1.2, -9.5], [1.4, 1.4, -9.2])
    )
    z0 = torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64)
    layout = Layout(leaves=((3, 1),))
    sol = Solve(FixedPoint(), Stop(max_iter=4, rtol=0.01, per="token"))(lambda z: next(points), z0, layout)
    assert sol.z.tolist() == [[1.0, 1.0, 0.5]]
    assert sol.residual.item() == 8.5


def test_leaves_keep_a_big_tensor_from_hiding_a_small_one():
    gain = torch.tensor([0.5, 0.99], dtype=torch.float64)
    b = torch.tensor([1e6, 1e-3], dtype=torch.float64)
    f = lambda z: gain * z + b  # noqa: E731
    z0 = torch.zeros(1, 2, dtype=torch.float64)
    by_row = Solve(FixedPoint(), Stop(max_iter=2000))(f, z0)
    by_leaf = Solve(FixedPoint(), Stop(max_iter=2000, per="leaf"))(f, z0, Layout(leaves=((1,), (1,))))
    truth = b / (1 - gain)
    assert by_row.converged.all()
    assert by_leaf.converged.all()
    assert (by_row.z - truth)[0, 1].abs() > 0.1 * truth[1]
    assert (by_leaf.z - truth)[0, 1].abs() < 0.011 * truth[1]


def test_leaves_by_hand():
    fz, z = states(7)
    layout = Layout(leaves=((2, 2), (3,)))
    for norm in ("l2", "rms"):
        out = reading(Stop(per="leaf", norm=norm, rtol=1e-2), layout, fz, z)
        parts = [(slice(0, 4), 4), (slice(4, 7), 3)]
        scale = [n**0.5 if norm == "rms" else 1 for _, n in parts]
        residual = torch.stack([(fz - z)[:, s].norm(dim=1) / c for (s, _), c in zip(parts, scale, strict=True)], 1)
        size = torch.stack([fz[:, s].norm(dim=1) / c for (s, _), c in zip(parts, scale, strict=True)], 1)
        assert torch.allclose(out.groups, residual / (1e-2 * size), rtol=1e-13)
        assert torch.allclose(out.residual, residual.amax(1), rtol=1e-13)


def test_weights_per_unknown_and_per_leaf():
    fz, z = states(5)
    layout = Layout(leaves=((2,), (3,)))
    weights = torch.tensor([2.0, 2.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    want = (weights * (fz - z)).norm(dim=1)
    for norm in ((2.0, 0.5), tuple(weights.tolist())):
        assert torch.allclose(reading(Stop(norm=norm), layout, fz, z).residual, want, rtol=1e-13)


def test_a_weight_of_zero_leaves_an_unknown_out():
    f = lambda z: torch.stack([0.5 * z[:, 0] + 1, -z[:, 1] + 1], dim=1)  # noqa: E731
    sol = Solve(FixedPoint(), Stop(norm=(1.0, 0.0)))(f, torch.zeros(1, 2))
    assert sol.converged.all()


@pytest.mark.parametrize(
    ("stop", "layout", "message"),
    [
        (Stop(norm=(1.0, 2.0, 3.0)), Layout(), "norm must be one weight per leaf .* got '3 weights'"),
        (Stop(per="token", token_dim=3), TOKENS, "token_dim must be a dimension of the state behind the batch"),
        (Stop(per="token", token_dim=0), TOKENS, "token_dim must be a dimension of the state behind the batch"),
        (Stop(per="token"), Layout(leaves=((2, 3), (4, 1))), "token_dim must be equally long in all leaves"),
        (Stop(), Layout(scale=torch.ones(2)), r"scale must be one value per row, \(3,\), got \(2,\)"),
        (Stop(), Layout(token_mask=torch.ones(3, 5) > 0), "token_mask is not used unless"),
        (Stop(per="token"), Layout(leaves=((5, 2),), token_mask=torch.ones(3, 5)), "token_mask must be bool"),
        (Stop(per="token"), Layout(leaves=((5, 2),), token_mask=torch.ones(3, 4) > 0), "token_mask must be of shape"),
    ],
)
def test_what_does_not_fit_the_state_is_refused(stop, layout, message):
    with pytest.raises(ValueError, match=message):
        Criterion(stop, layout, torch.zeros(B, L * D))


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("solver", [FixedPoint, Anderson, Broyden])
def test_a_leaf_of_one_number_per_row(solver, impl):
    layout = Layout(leaves=((2, 2), ()))
    sol = Solve(solver(impl=impl), Stop(per="leaf", rtol=1e-6))(lambda z: 0.5 * torch.cos(z), torch.zeros(3, 5), layout)
    assert sol.converged.all()


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize(
    "stop", [Stop(per="token"), Stop(per="token", norm="rms", compact="at_once"), Stop(per="leaf")]
)
def test_no_rows_at_all(impl, stop):
    mask = torch.ones(0, 4, dtype=torch.bool) if stop.per == "token" else None
    sol = Solve(Anderson(impl=impl), stop)(torch.cos, torch.zeros(0, 12), Layout(leaves=((4, 3),), token_mask=mask))
    assert sol.z.shape == (0, 12)
    assert sol.status.shape == (0,)


@pytest.mark.parametrize("size", [1e-240, 1e-200, 1e-160, 1e160, 1e200, 1e280])
@pytest.mark.parametrize("stop", [Stop(), Stop(per="token"), Stop(norm=[1.0, 2.0, 0.5, 1.0, 1.0, 3.0])])
@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_norms_are_right_at_every_magnitude_of_float64(size, stop, impl):
    """z = z / 2 + b, solved at size 1 and at the size given, in the same steps."""
    b = normal(0, 3, 6)
    layout = Layout(leaves=((3, 2),))
    z0 = torch.zeros(3, 6, dtype=torch.float64)
    one = Solve(FixedPoint(impl=impl), stop)(lambda z: 0.5 * z + b, z0, layout)
    other = Solve(FixedPoint(impl=impl), stop)(lambda z: 0.5 * z + size * b, z0, layout)
    assert other.converged.all()
    assert torch.equal(one.steps, other.steps)
    assert torch.allclose(other.residual / size, one.residual, rtol=1e-9)
    assert torch.allclose(other.z / size, one.z, rtol=1e-12)


def test_a_row_norm_is_that_of_a_loop():
    for size in (1e-250, 1.0, 1e250):
        t = size * normal(3, 4, 9)
        want = torch.tensor([math.hypot(*row) for row in t.tolist()], dtype=torch.float64)
        assert torch.allclose(row_norms(t), want, rtol=1e-14)
    strange = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [0.0, 0.0], [1e308, 1e308]], dtype=torch.float64)
    assert row_norms(strange)[:3].nan_to_num(7.0, posinf=8.0).tolist() == [8.0, 7.0, 0.0]
    assert row_norms(torch.zeros(2, 0, dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_a_scale_takes_no_part_in_a_graph():
    fz, z = states()
    scale = torch.ones(B, dtype=torch.float64, requires_grad=True)
    assert not reading(Stop(), Layout(scale=scale), fz, z).ratio.requires_grad
