"""Kinds of tensors that are not dense: refused as a state by name, taken as an argument whatever rows do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedParameter
from torch.testing._internal.two_tensor import TwoTensor

import deqlm
from deqlm import DEQ, Implicit, Solve, Stop, solve

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of (nested tensors|MaskedTensors) is in prototype"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]

RAGGED = [torch.zeros(2, 4), torch.zeros(3, 4)]
KINDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "coo": (
        lambda: torch.zeros(3, 4).to_sparse(),
        "a dense tensor, got one of layout torch.sparse_coo; use .*dense",
    ),
    "csr": (lambda: torch.zeros(3, 4).to_sparse_csr(), "a dense tensor, got one of layout torch.sparse_csr"),
    "mkldnn": (lambda: torch.zeros(3, 4).to_mkldnn(), "a dense tensor, got one of layout torch._mkldnn"),
    "strided nested": (lambda: torch.nested.nested_tensor(RAGGED), "a dense tensor, got a nested one"),
    "jagged": (lambda: torch.nested.nested_tensor(RAGGED, layout=torch.jagged), "a dense tensor, got a nested one"),
    "masked": (lambda: masked(torch.zeros(3, 4)), "a dense tensor, got a masked one; use .*token_mask"),
    "meta": (lambda: torch.zeros(3, 4, device="meta"), "a tensor that holds numbers, got one on the device meta"),
    "fake": (lambda: FakeTensorMode().from_tensor(torch.zeros(3, 4)), "a tensor that holds numbers, got a FakeTensor"),
    "uninitialized": (UninitializedParameter, "a tensor that holds numbers, got an uninitialized parameter"),
    "float8": (
        lambda: torch.zeros(3, 4).to(torch.float8_e4m3fn),
        "of a dtype that torch can add .*float8_e4m3fn",
    ),
    "int": (lambda: torch.zeros(3, 4, dtype=torch.int8), r"floating point or complex; use .*\.float\(\)"),
}
every_kind = pytest.mark.parametrize(("make", "message"), KINDS.values(), ids=KINDS)


def masked(t: Tensor) -> Tensor:
    return torch.masked.masked_tensor(t, torch.ones_like(t, dtype=torch.bool))


@every_kind
def test_a_start_of_another_kind_is_refused(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^z0 must be {message}"):
        solve(lambda z: 0.5 * z, make())
    with pytest.raises(ValueError, match=f"^z0 must be {message}"):
        solve(lambda z: z, {"a": torch.zeros(3, 4), "b": make()} if make is not KINDS["meta"][0] else make())


@every_kind
def test_an_input_of_another_kind_is_refused(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^x must be {message}"):
        DEQ(nn.Tanh())(make())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("uninitialized", "int")])
def test_a_start_of_a_call_of_another_kind_is_refused(kind: str) -> None:
    make, message = KINDS[kind]
    with pytest.raises(ValueError, match=f"^start must be {message}"):
        DEQ(nn.Tanh())(torch.zeros(3, 4), start=make())


def test_a_start_of_the_module_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^start must be a dense tensor, got one of layout torch.sparse_coo"):
        DEQ(nn.Tanh(), start=lambda u: u.to_sparse())(torch.zeros(3, 4))


def test_integers_that_a_module_makes_of_x_are_named() -> None:
    with pytest.raises(ValueError, match=r"^inject\(x\) must be floating point"):
        DEQ(nn.Tanh(), inject=Rounded())(torch.ones(3, 4))


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long()


def test_a_solver_refuses_them_too() -> None:
    with pytest.raises(ValueError, match=r"^z0 must be a dense tensor"):
        Solve("anderson")(lambda z: z, torch.eye(3).to_sparse())


@pytest.mark.parametrize("kind", ["coo", "csr", "strided nested", "jagged", "masked", "float8"])
@pytest.mark.parametrize("tree", [False, True])
def test_a_map_that_returns_another_kind_is_explained(kind: str, tree: bool) -> None:
    make, message = KINDS[kind]
    made, start = ({"a": make()}, {"a": torch.ones(3, 4)}) if tree else (make(), torch.ones(3, 4))
    with pytest.raises(ValueError, match=rf"^f\(z\) must be {message}"):
        solve(lambda z: made, start)


class Marked(Tensor):
    """A subclass without a rule of its own."""


@pytest.mark.parametrize("wrap", [nn.Parameter, lambda t: t.as_subclass(Marked), lambda t: TwoTensor(t, t.clone())])
def test_subclasses_that_behave_like_tensors_are_states(wrap: Callable[[Tensor], Tensor]) -> None:
    sol = solve(lambda z: 0.5 * z + 1, wrap(torch.zeros(3, 4)), stop=Stop(rtol=1e-6))
    assert sol.converged.all()
    z = sol.z.a if isinstance(sol.z, TwoTensor) else sol.z
    torch.testing.assert_close(z.as_subclass(Tensor), torch.full((3, 4), 2.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[True, True]], TypeError, r"token_mask must be a bool tensor, .*got \[\[True, True\]\]"),
        ("x", TypeError, "token_mask must be a bool tensor, .*got 'x'"),
        (1, TypeError, "token_mask must be a bool tensor, .*got 1"),
        (torch.ones(1, 2), ValueError, r"token_mask must be bool, .*token_mask.bool\(\).*, got torch.float32"),
        (torch.ones(1, 2, dtype=torch.int64), ValueError, "token_mask must be bool, .*got torch.int64"),
        (torch.ones(2, dtype=torch.bool), ValueError, r"token_mask must be the batch shape \(1,\) and the tokens"),
        (torch.ones(1, 3, dtype=torch.bool), ValueError, r"token_mask must be of shape"),
        (torch.ones(1, 2, dtype=torch.bool, device="meta"), ValueError, "token_mask must be a tensor that holds"),
        (torch.ones(1, 2).bool().to_sparse(), ValueError, "token_mask must be a dense tensor"),
    ],
)
def test_masks_that_are_none(mask: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(lambda z: 0.5 * z.cos(), torch.zeros(1, 2, 3), stop=Stop(per="token"), token_mask=mask)
    with pytest.raises(error, match=message):
        DEQ(nn.Tanh(), stop=Stop(per="token"))(torch.zeros(1, 2, 3), token_mask=mask)


LAYOUTS = ["dense", "coo", "csr", "csc"]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
SHARP = Stop(rtol=1e-10, max_iter=300)


def laid_out(t: Tensor, layout: str) -> Tensor:
    return t if layout == "dense" else t.to_sparse(layout=getattr(torch, f"sparse_{layout}"))


def graph(nodes: int = 12, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    adjacency = (torch.rand(nodes, nodes) < 0.3).double()
    return adjacency / adjacency.sum(1, keepdim=True).clamp_min(1), torch.randn(width, width).double() * 0.15, width


@every_layout
@pytest.mark.parametrize("compact", [True, "at_once"])
@pytest.mark.parametrize("where", ["args", "captured", "deq"])
def test_a_sparse_adjacency_whose_nodes_are_rows(layout: str, compact: bool | str, where: str) -> None:
    A, W, width = graph()
    x = torch.randn(12, width).double() * torch.linspace(1e-6, 1, 12).double()[:, None]
    z = torch.zeros_like(x)
    for _ in range(200):
        z = torch.tanh(A @ z @ W + x)
    M = laid_out(A, layout)
    known = {"solver": "fixed_point", "stop": SHARP.replace(compact=compact)}
    if where == "args":
        got = solve(lambda z, M, x: torch.tanh(M @ z @ W + x), torch.zeros_like(x), args=(M, x), **known).z
    elif where == "captured":
        got = solve(lambda z, x: torch.tanh(M @ z @ W + x), torch.zeros_like(x), args=(x,), **known).z
    else:
        got = DEQ(lambda z, x, M: torch.tanh(M @ z @ W + x), inject="argument", **known)(x, M)
    torch.testing.assert_close(got, z, rtol=1e-8, atol=1e-9)


@every_layout
def test_a_sparse_input_of_a_row_leaves_with_it(layout: str) -> None:
    gain = torch.tensor([[0.1], [0.1], [0.95], [0.1]]).double().expand(4, 3) * torch.eye(4, 3).ne(0).logical_not()
    b = torch.ones(4, 3).double()

    def f(z: Tensor, gain: Tensor, b: Tensor) -> Tensor:
        return (gain if layout == "dense" else gain.to_dense()) * z + b

    stop = Stop(rtol=1e-8, max_iter=500, compact="at_once")
    sol = solve(f, torch.zeros_like(b), args=(laid_out(gain, layout), b), solver="fixed_point", stop=stop)
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, b / (1 - gain), rtol=1e-6, atol=0)
    if layout != "csc":
        assert sol.cost.row_evaluations < 4 * sol.cost.evaluations


@every_layout
@pytest.mark.parametrize("bad", [(1,), (0, 2)])
def test_a_bad_row_of_a_sparse_input_adds_nothing_to_gradients(layout: str, bad: tuple[int, ...]) -> None:
    entries = (torch.rand(4, 3).double() + 0.1) * (torch.rand(4, 3) < 0.8)
    x = torch.randn(4, 3).double()
    gradient = Implicit(solve=Solve(stop=SHARP))

    def grad(rows: list[int], *, spoil: bool) -> tuple[Tensor, Tensor]:
        W = (0.3 * torch.eye(3)).double().requires_grad_()
        own = x[rows].clone().requires_grad_()
        given = entries[rows].clone()
        if spoil:
            given[list(bad)] *= torch.nan
        M = laid_out(given, layout)

        def f(z: Tensor, M: Tensor, x: Tensor) -> Tensor:
            return torch.tanh((M if layout == "dense" else M.to_dense()) * (z @ W) + x)

        sol = solve(f, torch.zeros_like(own), args=(M, own), gradient=gradient, stop=SHARP, on_failure="ignore")
        sol.z[[i for i, row in enumerate(rows) if row not in bad]].sum().backward()
        assert W.grad is not None
        assert own.grad is not None
        return W.grad, own.grad

    healthy = [row for row in range(4) if row not in bad]
    want, ours = grad(healthy, spoil=False), grad([0, 1, 2, 3], spoil=True)
    torch.testing.assert_close(ours[0], want[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours[1][healthy], want[1], rtol=1e-8, atol=1e-10)
    assert not ours[1][list(bad)].any()


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_gradients_reach_the_entries_of_a_sparse_input_beside_a_bad_row(layout: str) -> None:
    at = torch.tensor([[0, 0, 1, 2, 2], [0, 2, 1, 0, 1]])
    values = torch.tensor([0.3, 0.2, torch.nan, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    b = torch.ones(3, 3, dtype=torch.float64)

    def f(z: Tensor, M: Tensor) -> Tensor:
        return M.to_dense() * z + b

    M = torch.sparse_coo_tensor(at, values, (3, 3), check_invariants=True)
    M = M if layout == "coo" else M.to_sparse_csr()
    sol = solve(f, torch.zeros_like(b), args=(M,), stop=SHARP, on_failure="ignore")
    sol.z[[0, 2]].sum().backward()
    healthy = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]).double()
    torch.testing.assert_close(values.grad, healthy / (1 - values.detach().nan_to_num()) ** 2, rtol=1e-5, atol=0)


OTHER: dict[str, Callable[[Tensor], object]] = {
    "int64": lambda t: (t * 10).long(),
    "int8": lambda t: (t * 10).to(torch.int8),
    "uint16": lambda t: (t * 10).to(torch.uint16),
    "bool": lambda t: t > 0.5,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "bfloat16": lambda t: t.bfloat16(),
    "complex": lambda t: t.to(torch.complex128),
    "conj": lambda t: (t + 0j).conj(),
    "negative": lambda t: torch.complex(t, -t).conj().imag,
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "transposed": lambda t: t.T.contiguous().T,
    "numpy": lambda t: t.numpy(),
    "list": lambda t: list(t),
    "subclass": lambda t: t.as_subclass(Marked),
    "parameter": nn.Parameter,
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.01, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "meta": lambda t: t.to("meta"),
}


def dense(t: object) -> Tensor:
    """Return what a layer makes of an argument, float64."""
    if not isinstance(t, Tensor):
        return torch.stack(t) if isinstance(t, list) else torch.from_numpy(t)
    if t.is_meta:
        return torch.full(t.shape, 0.5, dtype=torch.float64)
    t = t.to_padded_tensor(0.0) if t.is_nested else t.dequantize() if t.is_quantized else t
    return (t.real if t.is_complex() else t).double().as_subclass(Tensor)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("kind", OTHER)
def test_arguments_of_every_kind(kind: str, bad: bool) -> None:
    given = OTHER[kind](torch.rand(5, 3, dtype=torch.float64))
    gain = 0.1 + 0.05 * dense(given)
    b = torch.tensor([1.0, 1, 1, 1, 1]).double()[:, None] * torch.rand(5, 3).double()
    slow = torch.tensor([0.0, 0, 0, 0.6, 0]).double()[:, None]
    x = b.clone()
    if bad:
        x[1] = torch.nan
    W = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def f(z: Tensor, given: object, x: Tensor, slow: Tensor) -> Tensor:
        return (0.1 + 0.05 * dense(given) + slow) / 10 * W * z + x

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="f is not finite in failed rows")
        sol = solve(f, torch.zeros_like(b), args=(given, x, slow), stop=SHARP, on_failure="ignore")
    healthy = [0, 2, 3, 4] if bad else [0, 1, 2, 3, 4]
    want = b / (1 - (gain + slow) / 10)
    torch.testing.assert_close(sol.z.detach()[healthy], want.detach()[healthy], rtol=1e-8, atol=1e-10)
    sol.z[healthy].sum().backward()
    assert W.grad is not None
    assert W.grad.isfinite().all()


def test_a_map_that_refuses_changed_inputs_keeps_them() -> None:
    x = torch.rand(4, 3)
    x[2] = torch.nan
    W = torch.eye(3).mul(0.3).requires_grad_()
    ids = torch.arange(4)

    def f(z: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        assert len(set(ids.tolist())) == len(z), "rows must be different"
        return torch.tanh(z @ W + x)

    sol = solve(f, torch.zeros(4, 3), args=(ids, x), on_failure="ignore")
    sol.z[[0, 1, 3]].sum().backward()
    assert W.grad is not None
    assert W.grad.isfinite().all()


def test_a_map_that_refuses_nan_is_tried_with_a_healthy_row() -> None:
    scale = torch.tensor([[1.0], [1.0], [3.0], [1.0]])
    W = torch.eye(3).mul(0.9).requires_grad_()

    def f(z: Tensor, scale: Tensor) -> Tensor:
        if not scale.isfinite().all():
            raise KeyError("scale")
        return scale * (z @ W) + 1

    with pytest.warns(deqlm.ConvergenceWarning):
        sol = solve(f, torch.zeros(4, 3), args=(scale,), stop=Stop(max_iter=400, divergence=1e3), solver="fixed_point")
    assert sol.status.tolist()[2] == int(deqlm.Status.DIVERGED)
    sol.z.sum().backward()
    assert W.grad is not None
    assert W.grad.isfinite().all()
