"""deqlm.wrap.rows and deqlm.solve on states of every kind: trees, complex numbers, batch dimensions, dtypes."""

from __future__ import annotations

import pytest
import torch

import deqlm
from deqlm.wrap.cuts import healthy_source
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.trees import tree_add, zeros_like_tree


def tree(B: int = 3):
    return {"a": torch.randn(B, 4), "b": [torch.randn(B, 2, 3), torch.randn(B)]}


def equal(x, y) -> bool:
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
    if isinstance(x, list | tuple):
        return type(x) is type(y) and len(x) == len(y) and all(map(equal, x, y))
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)


@pytest.mark.parametrize(
    ("make", "batch_dims", "rows"),
    [
        (lambda: torch.randn(3, 4), None, (3, 4)),
        (lambda: torch.randn(3, 4, 5), None, (3, 20)),
        (lambda: torch.randn(3, 4, 5), 0, (1, 60)),
        (lambda: torch.randn(3, 4, 5), 1, (3, 20)),
        (lambda: torch.randn(3, 4, 5), 2, (12, 5)),
        (lambda: torch.randn(3, 4, 5), 3, (60, 1)),
        (lambda: torch.randn(()), None, (1, 1)),
        (lambda: torch.randn(5), 0, (1, 5)),
        (lambda: torch.randn(5), 1, (5, 1)),
        (lambda: torch.randn(0, 4), None, (0, 4)),
        (lambda: torch.randn(3, 0), None, (3, 0)),
        (lambda: torch.randn(3, 4, dtype=torch.complex128), None, (3, 8)),
        (lambda: torch.randn((), dtype=torch.complex64), None, (1, 2)),
        (tree, None, (3, 11)),
        (lambda: (torch.randn(2, 3, 4), torch.randn(2, 3)), 2, (6, 5)),
        (lambda: [torch.randn(2, 3), torch.randn(2, 1, dtype=torch.complex64)], None, (2, 5)),
        (lambda: [torch.randn(1, 3), torch.randn(1, 1, dtype=torch.complex64)], None, (1, 5)),
        (lambda: [torch.randn(2, 2), torch.randn(2, 1, dtype=torch.complex64)], None, (2, 4)),
    ],
)
def test_pack_and_unpack_are_inverse(make, batch_dims, rows):
    state = make()
    packing = Rows(state, batch_dims)
    assert tuple(packing.z0.shape) == rows
    assert equal(packing.unpack(packing.z0), state)
    assert torch.equal(packing.pack(state), packing.z0)
    assert packing.unpack(packing.z0 + 0).__class__ is state.__class__


def test_one_real_tensor_is_a_view():
    state = torch.randn(3, 4, 5)
    packing = Rows(state)
    assert packing.z0.data_ptr() == state.data_ptr()
    assert packing.unpack(packing.z0).data_ptr() == state.data_ptr()


@pytest.mark.parametrize(
    "state",
    [
        torch.randn(4, 3).T,
        torch.randn(3, 8)[:, ::2],
        torch.randn(2, 3, 4).permute(1, 2, 0),
        torch.randn(1, 4).expand(3, 4),
    ],
    ids=["transposed", "strided", "permuted", "expanded"],
)
def test_states_that_are_not_contiguous(state):
    packing = Rows(state)
    assert torch.equal(packing.unpack(packing.z0), state)
    sol = deqlm.solve(lambda z: 0.5 * z + state, torch.zeros_like(state), stop=deqlm.Stop(rtol=1e-6))
    assert sol.z.shape == state.shape
    assert torch.allclose(sol.z, 2 * state, rtol=1e-4, atol=1e-5)


def test_leaves_of_several_dtypes_are_solved_in_their_common_one_and_returned_in_their_own():
    state = {"x": torch.zeros(2, 3, dtype=torch.float64), "y": torch.zeros(2, 4), "h": torch.zeros(2, 1).bfloat16()}
    packing = Rows(state)
    assert packing.z0.dtype == torch.float64

    def f(z):
        assert [z[k].dtype for k in "xyh"] == [torch.float64, torch.float32, torch.bfloat16]
        return {k: 0.5 * v + 1 for k, v in z.items()}

    sol = deqlm.solve(f, state, stop=deqlm.Stop(rtol=0.02))
    assert [sol.z[k].dtype for k in "xyh"] == [torch.float64, torch.float32, torch.bfloat16]
    assert sol.converged.all()
    assert torch.allclose(sol.z["x"], torch.tensor(2.0, dtype=torch.float64), rtol=0.05)


def test_half_leaves_of_two_kinds_meet_in_float32():
    state = [torch.zeros(2, 3).bfloat16(), torch.zeros(2, 3).half()]
    assert Rows(state).z0.dtype == torch.float32


def test_complex_and_double_leaves_lose_nothing():
    state = (torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3, dtype=torch.float64))
    packing = Rows(state)
    assert packing.z0.dtype == torch.float64
    assert equal(packing.unpack(packing.z0), state)


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "broyden"])
def test_a_complex_state_is_solved_as_pairs_of_reals(solver):
    gain = torch.tensor([0.5 + 0.4j, -0.3 - 0.6j, 0.7j], dtype=torch.complex128)
    b = torch.randn(2, 3, dtype=torch.complex128)
    sol = deqlm.solve(
        lambda z: gain * z + b, torch.zeros_like(b), solver=solver, stop=deqlm.Stop(max_iter=300, rtol=1e-10)
    )
    assert sol.converged.all()
    assert sol.z.dtype == torch.complex128
    assert torch.allclose(sol.z, b / (1 - gain), rtol=1e-8)
    residual = torch.linalg.vector_norm(gain * sol.z + b - sol.z, dim=1)
    assert torch.allclose(sol.residual, residual, rtol=1e-6, atol=1e-14)


def test_a_conjugated_start_is_read_right():
    b = torch.randn(2, 3, dtype=torch.complex64)
    assert torch.equal(Rows(b.conj()).unpack(Rows(b.conj()).z0), b.conj())


@pytest.mark.parametrize(("batch_dims", "shape"), [(0, ()), (1, (3,)), (2, (3, 4))])
def test_one_entry_per_row_in_the_batch_shape(batch_dims, shape):
    b = torch.randn(3, 4, 5, dtype=torch.float64)
    stop = deqlm.Stop(max_iter=60, trace=True)
    sol = deqlm.solve(lambda z: 0.5 * z + b, torch.zeros_like(b), batch_dims=batch_dims, stop=stop)
    assert sol.z.shape == b.shape
    for field in (sol.residual, sol.relative, sol.steps, sol.status, sol.converged):
        assert field.shape == shape
    assert sol.trace.shape == (sol.steps.max(), *shape)
    fz = 0.5 * sol.z + b
    dims = tuple(range(batch_dims, 3))
    assert torch.allclose(sol.residual, torch.linalg.vector_norm(fz - sol.z, dim=dims), rtol=1e-6)


def test_batch_dims_say_what_is_one_problem():
    """A slow element holds up its own problem only."""
    gain = torch.full((2, 3), 0.1, dtype=torch.float64)
    gain[0, 0] = 0.9
    f = lambda z: gain * z + 1  # noqa: E731
    z0 = torch.zeros_like(gain)

    def steps(dims):
        return deqlm.solve(f, z0, batch_dims=dims, solver="fixed_point", on_failure="ignore").steps

    assert steps(0).numel() == 1
    rows, scalars = steps(1), steps(2)
    assert rows[0] > rows[1]
    assert (scalars[1] == rows[1]).all()
    assert scalars[0, 0] > scalars[0, 1] == scalars[1, 1]


def test_a_0d_state_is_one_problem():
    sol = deqlm.solve(torch.cos, torch.zeros((), dtype=torch.float64), stop=deqlm.Stop(rtol=1e-10))
    assert sol.z.shape == sol.status.shape == sol.residual.shape == ()
    assert sol.z.item() == pytest.approx(0.7390851332151607, rel=1e-9)
    assert sol.converged


def test_a_1d_state_must_say_what_it_is():
    with pytest.raises(ValueError, match=r"batch_dims must be given for a 1-d z0: 0 for one problem .* 1 for N scalar"):
        deqlm.solve(torch.cos, torch.zeros(4))
    with pytest.raises(ValueError, match="batch_dims must be given for a 1-d z0"):
        Rows([torch.zeros(4), torch.zeros(4)])
    assert deqlm.solve(torch.cos, torch.zeros(4), batch_dims=0).status.shape == ()
    assert deqlm.solve(torch.cos, torch.zeros(4), batch_dims=1).status.shape == (4,)


def test_a_1d_leaf_beside_others_is_one_number_per_row():
    assert Rows({"a": torch.zeros(3, 2), "b": torch.zeros(3)}).z0.shape == (3, 3)


@pytest.mark.parametrize(
    ("state", "batch_dims", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), None, ValueError, r"z0 must be floating point or complex; use z0.float"),
        (torch.zeros(2, 3, dtype=torch.bool), None, ValueError, "z0 must be floating point or complex"),
        ([], None, ValueError, "z0 must be a tensor or a tree with at least one tensor"),
        (
            [torch.zeros(2, 3), 1.0],
            None,
            TypeError,
            "the state must be a tensor or a tree of tensors, got a leaf float",
        ),
        (3.0, None, TypeError, "the state must be a tensor or a tree of tensors, got a leaf float"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], None, ValueError, r"a leaf whose first dimensions are \(2,\)"),
        ([torch.zeros(2, 3), torch.zeros(2, 3, device="meta")], None, ValueError, "on one device, cpu"),
        (torch.zeros(2, 3), 3, ValueError, "batch_dims must be at most the dimensions of z0, 2, got 3"),
        (torch.zeros(2, 3), -1, ValueError, "batch_dims must be a whole number >= 0, got -1"),
        (torch.zeros(2, 3), True, ValueError, "batch_dims must be a whole number >= 0, got True"),
    ],
)
def test_states_that_are_refused(state, batch_dims, error, message):
    with pytest.raises(error, match=message):
        Rows(state, batch_dims)


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda z: (z["a"], z["b"]), TypeError, "f must return the structure of z"),
        (lambda z: {"a": z["a"]}, TypeError, "f must return the structure of z"),
        (lambda z: {"a": z["a"], "b": 1.0}, TypeError, "f must return tensors, got float"),
        (lambda z: {"a": z["a"][:, :1], "b": z["b"]}, ValueError, r"the shape of f\(z\) must be that of z, \(2, 3\)"),
        (lambda z: {"a": z["a"].double(), "b": z["b"]}, ValueError, r"the dtype of f\(z\) must be that of z"),
        (lambda z: {"a": z["a"], "b": z["b"].to("meta")}, ValueError, r"the device of f\(z\) must be that of z, cpu"),
    ],
    ids=["structure", "missing", "number", "shape", "dtype", "device"],
)
def test_maps_that_change_the_state_are_refused(f, error, message):
    with pytest.raises(error, match=message):
        deqlm.solve(f, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)})


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("kind", ["tensor", "tree", "complex"])
def test_work_in_place_is_found_through_the_packing(kind, batch_dims):
    """A map that writes into its argument makes torchdeq return a wrong answer with residual 0 (its defect 38)."""
    state = {"tensor": torch.ones(2, 3), "tree": [torch.ones(2, 3), torch.ones(2, 1)]}.get(
        kind, torch.ones(2, 3, dtype=torch.complex64)
    )

    def f(z):
        for leaf in z if isinstance(z, list) else [z]:
            leaf.mul_(0.5)
        return z

    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(ValueError, match="in place"):
            deqlm.solve(f, state, batch_dims=batch_dims)


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "broyden"])
def test_a_tree_gives_what_its_tensor_gives(solver):
    A = 0.4 * torch.randn(5, 5, dtype=torch.float64)
    A = A / torch.linalg.matrix_norm(A, 2)
    b = torch.randn(3, 5, dtype=torch.float64)
    stop = deqlm.Stop(max_iter=300, rtol=1e-8)

    def on_tree(z):
        fz = 0.8 * torch.cat([z["x"], z["y"]], dim=1) @ A.T + b
        return {"x": fz[:, :2], "y": fz[:, 2:]}

    start = {"x": torch.zeros(3, 2, dtype=torch.float64), "y": torch.zeros(3, 3, dtype=torch.float64)}
    by_tree = deqlm.solve(on_tree, start, solver=solver, stop=stop)
    by_tensor = deqlm.solve(lambda z: 0.8 * z @ A.T + b, torch.zeros(3, 5).double(), solver=solver, stop=stop)
    assert torch.equal(torch.cat([by_tree.z["x"], by_tree.z["y"]], dim=1), by_tensor.z)
    assert torch.equal(by_tree.steps, by_tensor.steps)


def test_leaves_and_tokens_reach_the_measure():
    gain = {"x": 0.5, "y": 0.99}
    size = {"x": 1e6, "y": 1e-3}
    start = {"x": torch.zeros(1, 2, dtype=torch.float64), "y": torch.zeros(1, 2, dtype=torch.float64)}
    f = lambda z: {k: gain[k] * z[k] + size[k] for k in z}  # noqa: E731
    stop = deqlm.Stop(max_iter=3000, per="leaf")
    sol = deqlm.solve(f, start, solver="fixed_point", stop=stop)
    assert torch.allclose(sol.z["y"], torch.tensor(0.1, dtype=torch.float64), rtol=0.02)
    tokens = deqlm.solve(
        lambda z: 0.5 * z + 1, torch.zeros(2, 3, 4, 5), batch_dims=2, stop=deqlm.Stop(per="token", token_dim=2)
    )
    assert tokens.token_steps.shape == (2, 3, 4)


def test_a_sequence_of_numbers_has_tokens():
    """(B, L) with one number per token."""
    sol = deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros(2, 6), stop=deqlm.Stop(per="token"))
    assert sol.converged.all()
    assert sol.token_steps.shape == (2, 6)


def test_scale_and_mask_in_the_batch_shape():
    stop = deqlm.Stop(rtol=1e-3, per="token", token_dim=2)
    z0 = torch.ones(2, 3, 4, 1, dtype=torch.float64)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    f = lambda z: 0.5 * z  # noqa: E731
    for scale in (1.0, torch.ones(2, 3), torch.tensor(1.0)):
        sol = deqlm.solve(f, z0, batch_dims=2, stop=stop, scale=scale, token_mask=mask, solver="fixed_point")
        assert sol.converged.all()
        assert sol.status.shape == (2, 3)
    with pytest.raises(ValueError, match=r"scale must be a number or one value per row, \(2, 3\), got \(6,\)"):
        deqlm.solve(f, z0, batch_dims=2, stop=stop, scale=torch.ones(6))
    with pytest.raises(ValueError, match=r"token_mask must be the batch shape \(2, 3\) and the tokens behind it"):
        deqlm.solve(f, z0, batch_dims=2, stop=stop, token_mask=mask[0])


def test_the_start_is_never_written_to():
    for state in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3).bfloat16()):
        keep = state.clone()
        sol = deqlm.solve(lambda z: 0.5 * z + 1, state, stop=deqlm.Stop(rtol=0.05))
        with torch.no_grad():
            sol.z.add_(1)
        assert torch.equal(state, keep)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode_gives_the_same_value(mode):
    b = torch.randn(2, 3, dtype=torch.float64)
    stop = deqlm.Stop(rtol=1e-10)
    with mode():
        sol = deqlm.solve(lambda z: 0.5 * torch.tanh(z) + b, torch.zeros_like(b), stop=stop)
    with torch.no_grad():
        plain = deqlm.solve(lambda z: 0.5 * torch.tanh(z) + b, torch.zeros_like(b), stop=stop)
    assert torch.allclose(sol.z, plain.z, rtol=1e-9)
    assert torch.equal(sol.status, plain.status)


def test_no_rows_and_no_unknowns():
    for shape in ((0, 3), (3, 0), (0, 0)):
        sol = deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros(shape))
        assert sol.z.shape == shape
        assert not sol.failed.any()


def test_arguments_reach_f_and_per_row_ones_are_told_apart():
    packing = Rows(torch.zeros(3, 2))
    assert packing.is_per_row(torch.zeros(3))
    assert packing.is_per_row(torch.zeros(3, 7, 7))
    assert not packing.is_per_row(torch.zeros(2, 3))
    assert not packing.is_per_row(torch.zeros(()))
    assert not packing.is_per_row("mask")
    assert not Rows(torch.zeros(3, 2), 0).is_per_row(torch.zeros(3))
    sol = deqlm.solve(lambda z, u, k: z * k + u, torch.zeros(3, 2), args=(torch.ones(3, 2), 0.5))
    assert torch.allclose(sol.z, torch.tensor(2.0), rtol=1e-3)


def test_without_gives_bad_rows_the_inputs_of_a_healthy_one():
    packing = Rows(torch.zeros(3, 3))
    per_row = torch.tensor([[torch.nan], [2.0], [3.0]])
    shared, table = torch.tensor([7.0, 8.0]), torch.randn(3, 3)
    seen = []

    def f(z, per_row, shared, table, extra):
        seen.append((per_row, shared, table, extra))
        return z @ table + per_row + extra["deep"] + shared.sum()

    bad = torch.tensor([True, False, False])
    plain = RowMap(packing, f, (per_row, shared, table, {"deep": per_row}))
    at = torch.ones(3, 3)
    healthy = plain.without(bad, at)
    out = healthy(at)
    given, same, kept, extra = seen[-1]
    assert given[:, 0].tolist() == [2.0, 2.0, 3.0]
    assert extra["deep"][:, 0].tolist() == [2.0, 2.0, 3.0]
    assert same is shared
    assert torch.equal(kept, table), "a table of the batch's size may stand for something else"
    assert torch.equal(out[1:], plain(at)[1:])
    assert out.isfinite().all()
    assert per_row[0].isnan(), "the caller's tensor was written to"


def test_healthy_source():
    assert healthy_source(torch.tensor([True, False, True])).tolist() == [1, 1, 1]
    assert healthy_source(torch.tensor([False, True, False])).tolist() == [0, 0, 2]
    assert healthy_source(torch.tensor([True, True])).tolist() == [0, 0]


def test_tree_add_and_zeros():
    state = tree()
    assert equal(tree_add(state, zeros_like_tree(state)), state)
    with pytest.raises(TypeError, match="inject='add' needs x with the structure of z"):
        tree_add(state, torch.zeros(3, 4))
