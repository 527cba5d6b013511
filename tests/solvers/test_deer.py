"""Newton along a sequence: scans, blocks, structures, steps on linear maps, counts, rows, the probe and the cap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import SOLVERS, Deer, FixedPoint, Layout, Solve, Status, Stop
from deqlm_solvers.loop.derivative import NoDerivativeError
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.deer import scan
from deqlm_solvers.methods.deer.blocks import blocks_from_products, signs_of
from deqlm_solvers.methods.deer.grid import Blocks, Grid
from deqlm_solvers.methods.deer.scan import affine_scan, bidiagonal_product, damped_step, newton_step
from solvers.differentiated import SineForward, SineOnce

TIGHT = Stop(max_iter=100_000, rtol=1e-11, per="token")
SIZES = {"B": st.integers(1, 3), "L": st.integers(1, 17), "D": st.integers(1, 3), "seed": st.integers(0, 99)}
few = settings(max_examples=8)


def layout(L: int, D: int, mask: Tensor | None = None) -> Layout:
    return Layout(leaves=((L, D),), token_mask=mask)


def shifted(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)


def on_rows(f: Callable[[Tensor], Tensor], L: int, D: int) -> Callable[[Tensor], Tensor]:
    return lambda z: f(z.reshape(-1, L, D)).reshape(z.shape)


def rnn(B: int, L: int, D: int, seed: int = 0, own: float = 0.3) -> Callable[[Tensor], Tensor]:
    """Return a map in which a token sees itself and the one before."""
    W, V, u = normal(seed, D, D) / D**0.5, normal(seed + 1, D, D) / D**0.5, normal(seed + 2, B, L, D)
    return on_rows(lambda z: torch.tanh(shifted(z) @ W.to(z) + own * z @ V.to(z) + u.to(z)), L, D)


def running(B: int, L: int, D: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a map in which a token sees all before."""
    W, u = normal(seed, D, D) / D**0.5, normal(seed + 1, B, L, D)
    return on_rows(lambda z: torch.tanh(z.cumsum(1) @ (0.3 * W).to(z) + u.to(z)), L, D)


def dense(blocks: Blocks) -> Tensor:
    """Return I - A as matrices (B, L G S, L G S)."""
    B, L, G, S = next(block for block in blocks if block is not None).shape[:4]
    system = torch.eye(L * G * S, dtype=torch.float64).expand(B, -1, -1).reshape(B, L, G, S, L, G, S).clone()
    for lag, block in enumerate(blocks):
        for t in range(lag, L if block is not None else 0):
            for g in range(G):
                system[:, t, g, :, t - lag, g] -= block[:, t, g]
    return system.reshape(B, L * G * S, L * G * S)


def random_blocks(B: int, L: int, G: int, S: int, seed: int, lags: tuple[int, ...] = (0, 1)) -> Blocks:
    blocks = [0.3 * normal(seed + lag, B, L, G, S, S) / S**0.5 if lag in lags else None for lag in (0, 1)]
    if blocks[1] is not None:
        blocks[1][:, 0] = 0.0
    return Blocks(*blocks)


WIDTHS = {"G": st.sampled_from([1, 3]), "S": st.sampled_from([1, 2, 3, 9])}


@pytest.mark.parametrize("wide", [2, 99])
@few
@given(**SIZES, **WIDTHS)
def test_the_scan_is_the_loop(wide, B, L, D, seed, G, S):
    gain, offset = normal(seed, B, L, G, S, S) / S, normal(seed + 1, B, L, G, S)
    x, want = torch.zeros(B, G, S, dtype=torch.float64), []
    for t in range(L):
        x = (gain[:, t] @ x[..., None])[..., 0] + offset[:, t]
        want.append(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "WIDE", wide)
        torch.testing.assert_close(affine_scan(gain, offset), torch.stack(want, 1), rtol=1e-9, atol=1e-9)


@few
@given(**SIZES, **WIDTHS, lags=st.sampled_from([(0,), (1,), (0, 1)]))
def test_steps_are_those_of_dense_algebra(B, L, D, seed, G, S, lags):
    blocks, r = random_blocks(B, L, G, S, seed, lags), normal(seed + 2, B, L, G, S)
    P, rhs = dense(blocks), r.reshape(B, -1)
    damping = 0.1 + normal(seed + 3, B).abs()
    x = newton_step(blocks, r)
    torch.testing.assert_close((P @ x.reshape(B, -1, 1))[..., 0], rhs, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bidiagonal_product(blocks, r).reshape(B, -1), (P @ rhs[..., None])[..., 0])
    normal_equations = P.mT @ P + damping[:, None, None] * torch.eye(P.shape[1], dtype=torch.float64)
    want = torch.linalg.solve(normal_equations, P.mT @ rhs[..., None])[..., 0]
    torch.testing.assert_close(damped_step(blocks, r, damping).reshape(B, -1), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("S", [1, 5, 8, 9, 24, 33])
def test_a_row_has_the_bits_of_a_batch_in_every_width(S):
    """BLAS has other kernels for one matrix alone, and rounds by the place of a matrix in memory."""
    B, L = 3, 5
    for lags in ((1,), (0, 1)):
        blocks, r = random_blocks(B, L, 1, S, 1, lags), normal(3, B, L, 1, S)
        for step in (
            newton_step,
            lambda b, r: damped_step(b, r, torch.full_like(r[:, 0, 0, 0], 0.1)),
            bidiagonal_product,
        ):
            together = step(blocks, r)
            for i in range(B):
                own, before = (None if t is None else t[i : i + 1].clone() for t in blocks)
                assert torch.equal(step(Blocks(own, before), r[i : i + 1].clone()), together[i : i + 1])


@few
@given(**SIZES, lags=st.integers(0, 1), colours=st.integers(2, 20))
def test_blocks_are_sums_over_a_colour_and_exact_with_all_colours(B, L, D, seed, lags, colours):
    f, z = running(B, L, D, seed), normal(seed, B, L * D)
    colours, grid = min(colours, L), Grid(L, 1, D)
    jacobian = torch.stack([torch.func.jacrev(lambda v, i=i: f(v.expand(B, -1))[i])(z[i]) for i in range(B)])
    jacobian = jacobian.reshape(B, L, D, L, D)
    evaluator = Evaluator(f, z)
    for C in (colours, L):
        got = blocks_from_products(lambda v: evaluator.products(z, v), z, grid, range(lags + 1), C, signs_of(grid))
        for lag in range(lags + 1):
            for t in range(lag, L):
                want = sum(jacobian[:, t, :, s] for s in range(t - lag, -1, -C))
                torch.testing.assert_close(got[lag][:, t, 0], want, rtol=1e-10, atol=1e-12)


def test_tangents_go_in_as_many_calls_as_memory_asks(monkeypatch):
    B, L, D = 2, 7, 3
    f, z = rnn(B, L, D), normal(5, B, L * D)
    want = Solve(Deer(colours=2), TIGHT)(f, z, layout(L, D))
    monkeypatch.setattr("deqlm_solvers.methods.deer.blocks.PUSHED", 2 * B * L * D)
    sol = Solve(Deer(colours=2), TIGHT)(f, z, layout(L, D))
    assert torch.equal(sol.z, want.z)
    assert sol.cost.evaluations == want.cost.evaluations + 2 * (int(sol.steps.max()) - 1), "3 calls of 6 tangents"


@pytest.mark.parametrize("structure", ["dense", "block", "diagonal"])
def test_a_linear_recurrence_takes_one_step_in_its_structure(structure):
    B, L, G, S = 2, 9, 4, 3
    groups, width = {"dense": (1, G * S), "block": (G, S), "diagonal": (G * S, 1)}[structure]
    for lags in ((1,), (0,), (0, 1)):
        blocks, u = random_blocks(B, L, groups, width, 5, lags), normal(6, B, L, groups, width)
        step = lambda z: z - bidiagonal_product(blocks, z) + u  # noqa: B023, E731
        f = Counted(lambda z: step(z.reshape(u.shape)).reshape(z.shape))  # noqa: B023
        solve = Solve(Deer(structure=structure), TIGHT)
        sol = solve(f, torch.zeros(B, L * G * S, dtype=torch.float64), Layout(leaves=((L, G, S),)))
        assert sol.converged.all()
        assert (sol.steps == 2).all()
        assert sol.cost.jvps == len(lags) * width
        probe = 3 if structure == "dense" else 4
        assert sol.cost.evaluations == f.calls == 2 + probe + 1, "two points, the probe, one call with all tangents"
        truth = torch.linalg.solve(dense(blocks), u.reshape(B, -1))
        assert (sol.z - truth).norm() <= 1e-9 * truth.norm()


@pytest.mark.parametrize(
    ("f", "products"),
    [
        (lambda z: torch.sin(shifted(z)), 2),
        (lambda z: torch.sin(shifted(z)) + 0.1 * z, 4),
        (lambda z: torch.sin(0.3 * z), 2),
        (lambda z: torch.sin(0.1 * z.cumsum(1)), 2 * 20),
        (lambda z: torch.sin(0.1 * shifted(shifted(z))), 2 * 20),
        (lambda z: torch.ones_like(z), 0),
    ],
    ids=["before", "both", "own", "all", "second last", "nothing"],
)
def test_the_probe_finds_how_many_products_are_enough(f, products):
    L, D = 20, 2
    u = normal(1, 2, L, D)
    z0 = torch.zeros(2, L * D, dtype=torch.float64)
    solve = Solve(Deer(), TIGHT.replace(max_iter=2000))
    sol = solve(on_rows(lambda z: f(z) + u, L, D), z0, layout(L, D))
    assert sol.converged.all()
    assert sol.cost.jvps % max(products, 1) == 0
    assert sol.cost.jvps // max(products, 1) in (sol.steps.max() - 1, sol.steps.max(), 0)
    assert (sol.cost.jvps > 0) == (products > 0)


def test_a_structure_that_does_not_fit_is_quasi_newton_with_the_same_answer():
    B, L, D = 2, 60, 6
    f, z0 = rnn(B, L, D), torch.zeros(B, L * D, dtype=torch.float64)
    exact, rough = (Solve(Deer(structure=s), TIGHT)(f, z0, layout(L, D)) for s in ("dense", "diagonal"))
    assert exact.converged.all()
    assert rough.converged.all()
    assert (rough.z - exact.z).abs().max() <= 1e-8
    assert exact.steps.max() < rough.steps.min()
    with pytest.raises(ValueError, match=r"structure must be 'dense' or 'diagonal' for rows \(60, 6\)"):
        Solve(Deer(structure="block"), TIGHT)(f, z0, layout(L, D))


@pytest.mark.parametrize("lags", [0, 1])
def test_a_linear_causal_map_takes_at_most_a_step_per_token_and_lag(lags):
    L, D = 11, 2
    A = torch.tril(normal(7, L, L)).kron(torch.ones(D, D, dtype=torch.float64)) * 0.2
    u = normal(8, 3, L * D)
    z0 = torch.zeros(3, L * D, dtype=torch.float64)
    sol = Solve(Deer(lags=lags, damping=0.0), TIGHT.replace(rtol=1e-8))(lambda z: z @ A.to(z).T + u, z0, layout(L, D))
    assert sol.converged.all()
    assert (sol.steps <= 1 + -(-L // (lags + 1))).all()
    truth = torch.linalg.solve(torch.eye(L * D, dtype=torch.float64) - A, u.T).T
    assert (sol.z - truth).norm() <= 1e-6 * truth.norm()


@few
@given(**SIZES, wide=st.booleans())
def test_it_equals_the_step_by_step_answer(B, L, D, seed, wide):
    f = running(B, L, D, seed) if wide else rnn(B, L, D, seed)
    z0 = torch.zeros(B, L * D, dtype=torch.float64)
    by_steps = Solve(FixedPoint(damping=0.5), TIGHT)(f, z0, layout(L, D))
    sol = Solve(Deer(colours=None if wide else 2), TIGHT)(f, z0, layout(L, D))
    if by_steps.converged.all():
        assert sol.converged.all(), sol.summary()
        assert (sol.z - by_steps.z).abs().max() <= 1e-8


def test_steps_grow_more_slowly_than_tokens():
    for L in (16, 64):
        f, z0 = rnn(2, L, 3, seed=1, own=0.0), torch.zeros(2, L * 3, dtype=torch.float64)
        sol = Solve(Deer(colours=2), TIGHT)(f, z0, layout(L, 3))
        plain = Solve(FixedPoint(), TIGHT)(f, z0, layout(L, 3))
        assert sol.converged.all()
        assert plain.steps.max() >= 0.35 * L
        assert sol.steps.max() <= 6


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_broken_or_singular_row_leaves_the_others_bit_equal(damping):
    B, L, D = 4, 6, 2
    u = normal(4, B, L, D)

    def make(u: Tensor, own: float = 0.5) -> Callable[[Tensor], Tensor]:
        gain = torch.full((B, 1, 1), 0.5, dtype=torch.float64).index_fill(0, torch.tensor([1]), own)
        return on_rows(lambda z: gain * z + 0.3 * torch.sin(shifted(z)) + u, L, D)

    def solve(f: Callable[[Tensor], Tensor]):
        z0 = torch.zeros(B, L * D, dtype=torch.float64)
        return Solve(Deer(colours=2, damping=damping), TIGHT.replace(max_iter=12 * 5))(f, z0, layout(L, D))

    plain = solve(make(u))
    assert plain.converged.all()
    others = torch.tensor([0, 2, 3])
    spoiled = u.index_fill(0, torch.tensor([1]), torch.nan)
    for f in (make(spoiled), make(u, own=1.0), make(u * torch.tensor([1, 1e200, 1, 1])[:, None, None])):
        assert_same_rows(plain, others, solve(f), others)
    assert solve(make(spoiled)).status[1] == Status.NONFINITE
    assert not solve(make(u, own=1.0)).converged[1], "z + u has no fixed point"


def test_what_stands_at_padding_does_not_matter():
    L, D = 7, 2
    mask = torch.ones(2, L, dtype=torch.bool)
    mask[0, :3] = False
    mask[1, 5:] = False
    u = normal(2, 2, L, D)
    hidden = u.masked_fill(~mask[..., None], torch.nan)

    def make(u: Tensor) -> Callable[[Tensor], Tensor]:
        def f(z: Tensor) -> Tensor:
            seen = torch.where(mask[..., None], z, 0.0)
            return torch.tanh(0.5 * z + shifted(seen) + u)

        return on_rows(f, L, D)

    z0 = torch.zeros(2, L * D, dtype=torch.float64)
    want, sol = (
        Solve(Deer(), TIGHT)(make(v), z0, layout(L, D, mask)) for v in (u.masked_fill(~mask[..., None], 0), hidden)
    )
    assert sol.converged.all()
    assert torch.equal(sol.z.reshape(2, L, D)[mask], want.z.reshape(2, L, D)[mask])
    assert (sol.z.reshape(2, L, D)[~mask] == 0).all()


@pytest.mark.parametrize("max_iter", [29, 60, 130])
@pytest.mark.parametrize("rtol", [1e-11, 0.0])
def test_products_are_paid_for(max_iter, rtol):
    f = Counted(running(1, 8, 3))
    sol = Solve(Deer(damping=0.0), Stop(max_iter=max_iter, rtol=rtol))(f, torch.zeros(1, 24).double(), layout(8, 3))
    assert sol.cost.evaluations == f.calls
    points = int(sol.steps.max())
    assert sol.cost.jvps in (24 * points, 24 * (points - 1))
    assert points + 3 + sol.cost.jvps <= max_iter


def test_too_few_evaluations_for_a_step_are_refused():
    with pytest.raises(ValueError, match=r"max_iter must be >= 29, 5 evaluations and 24 .* of width 3"):
        Solve(Deer(), Stop(max_iter=28))(running(1, 8, 3), torch.zeros(1, 24), layout(8, 3))


def test_a_map_that_sees_later_tokens_is_refused_and_named():
    L, D = 6, 2
    smooth = on_rows(lambda z: 0.3 * z + 0.2 * z.roll(-2, dims=1), L, D)
    z0 = torch.ones(2, L * D)
    with pytest.raises(ValueError, match=r"causal map.* token 3 of row 0 changes with token 5"):
        Solve(Deer(), TIGHT.replace(rtol=1e-4))(smooth, z0, layout(L, D))
    sol = Solve(Deer(probe=False), TIGHT.replace(rtol=1e-4))(smooth, z0, layout(L, D))
    assert sol.converged.all(), "whatever the blocks are, the residual that is tested is the true one"
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    with pytest.raises(ValueError, match="token 2 of row 0 changes with token 4"):
        Solve(Deer(), TIGHT.replace(rtol=1e-4))(smooth, z0, layout(L, D, mask))


def test_blocks_of_the_user_replace_products():
    B, L, D = 2, 12, 3
    parts = random_blocks(B, L, 1, D, 3)
    given, u = torch.stack([*parts])[:, :, :, 0], normal(4, B, L, 1, D)
    f = lambda z: (z.reshape(u.shape) - bidiagonal_product(parts, z.reshape(u.shape)) + u).reshape(z.shape)  # noqa: E731
    z0 = torch.zeros(B, L * D, dtype=torch.float64)
    sol = Solve(Deer(blocks=lambda z: given, damping=0.0), Stop(rtol=1e-11))(f, z0, layout(L, D))
    assert (sol.steps == 2).all()
    assert (sol.cost.evaluations, sol.cost.jvps) == (2 + 3, 1)
    with pytest.raises(ValueError, match=r"blocks\(z\) must be \(lags \+ 1, B, L, D, D\) = \(2, 2, 12, 3, 3\), got"):
        Solve(Deer(blocks=lambda z: given[0]))(f, z0, layout(L, D))
    with pytest.raises(TypeError, match="no plain form"):
        Deer(blocks=lambda z: given).to_dict()


def test_where_derivatives_come_from():
    z0, stop = torch.zeros(2, 8, dtype=torch.float64), TIGHT
    u = normal(1, 2, 8)
    sine = lambda g: lambda z: g(0.7 * shifted(z) + u)  # noqa: E731
    want = Solve(Deer(), stop)(sine(torch.sin), z0)

    fused = lambda z: (torch.sin if torch.is_grad_enabled() else SineOnce.apply)(0.7 * shifted(z) + u)  # noqa: E731
    for f, calls in ((sine(SineForward.apply), 8), (fused, 2)):
        counted = Counted(f)
        got = Solve(Deer(), stop)(counted, z0)
        assert (got.z - want.z).abs().max() <= 1e-10
        assert got.cost.evaluations == counted.calls >= calls
    with pytest.raises(NoDerivativeError, match="cannot give"):
        Solve(Deer(), stop)(sine(SineOnce.apply), z0)


def test_options():
    assert SOLVERS.make(Deer(lags=0, damping=0.5).to_dict()) == Deer(lags=0, damping=0.5)
    for bad, message in (
        ({"structure": "full"}, "structure must be 'dense', 'block' or 'diagonal', got 'full'"),
        ({"lags": 2}, "lags must be 0 or 1, got 2"),
        ({"colours": 1}, "colours must be a whole number >= 2, got 1"),
        ({"damping": -1.0}, "damping must be finite and >= 0, got -1.0"),
        ({"probe": 1}, "probe must be True or False, got 1"),
        ({"memory_cap": "much"}, "memory_cap must be"),
        ({"blocks": abs, "colours": 2}, "colours must be None with blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            Deer(**bad)
    with pytest.raises(ValueError, match="one tensor for 'deer'"):
        Solve(Deer())(lambda z: z, torch.zeros(1, 4), Layout(leaves=((2,), (2,))))
    with pytest.raises(ValueError, match="token_dim must be 1 for 'deer'"):
        Solve(Deer(), Stop(per="token", token_dim=2))(lambda z: z, torch.zeros(1, 4), layout(2, 2))


def test_nothing_to_solve():
    for B, L, D in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        sol = Solve(Deer(), Stop())(lambda z: 0.5 * z, torch.zeros(B, L * D), layout(L, D))
        assert sol.z.shape == (B, L * D)
