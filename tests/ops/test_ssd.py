"""The state-space-dual scan: every realisation against the float64 recurrence, output, state and all gradients."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm.ops import ssd

F64 = torch.float64


def problem(
    length: int, *, batch=2, heads=4, width=3, groups=2, size=5, per_feature=False, state=True, dtype=F64, step=1.0
) -> dict[str, Tensor | None]:
    """Return arguments of `ssd.scan`, with steps from tiny to ``step`` and one that is zero."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64)

    dt = step * torch.rand(batch, length, heads, dtype=F64) ** 4
    dt[:, length // 2] = 0
    made = {
        "x": normal(batch, length, heads, width),
        "dt": dt,
        "A": -(1 + 15 * torch.rand(heads, dtype=F64)),
        "B": normal(batch, length, groups, size),
        "C": normal(batch, length, groups, size),
        "D": normal(heads, width) if per_feature else normal(heads),
        "initial_state": normal(batch, heads, width, size) if state else None,
    }
    return {name: None if t is None else t.to(dtype).requires_grad_() for name, t in made.items()}


def by_definition(x, dt, A, B, C, D, initial_state) -> tuple[Tensor, Tensor]:
    """Return y and the final state by sums over sources, written independently of the code under test."""
    batch, length, heads = x.shape[:3]
    share = heads // B.shape[2]
    y, last = torch.zeros_like(x), torch.zeros_like(initial_state)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                state = torch.exp(dt[b, : t + 1, h].sum() * A[h]) * initial_state[b, h]
                for s in range(t + 1):
                    decay = torch.exp(dt[b, s + 1 : t + 1, h].sum() * A[h])
                    state = state + decay * dt[b, s, h] * torch.outer(x[b, s, h], B[b, s, h // share])
                y[b, t, h] = state @ C[b, t, h // share] + D[h] * x[b, t, h]
            last[b, h] = state
    return y, last


def results(arguments, **options) -> list[Tensor]:
    """Return y, the final state, and the gradient of every argument for fixed cotangents."""
    y, state = ssd.scan(**arguments, **options)
    torch.manual_seed(1)
    loss = (y * torch.randn(y.shape, dtype=F64)).sum() + (state * torch.randn(state.shape, dtype=F64)).sum()
    inputs = [t for t in arguments.values() if t is not None]
    return [y, state, *torch.autograd.grad(loss, inputs)]


def assert_same(arguments, *, rtol=1e-10, atol=1e-10, **options) -> None:
    truth = results(arguments, impl="naive")
    for got, want in zip(results(arguments, impl="torch", **options), truth, strict=True):
        torch.testing.assert_close(got.to(F64), want.to(F64), rtol=rtol, atol=atol)


def test_the_recurrence_is_the_definition():
    arguments = {name: t.detach() for name, t in problem(7).items()}
    for got, want in zip(ssd.naive(**arguments), by_definition(**arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 63, 65, 130])
@pytest.mark.parametrize("chunk_size", [1, 5, 16, None])
def test_output_and_all_gradients_equal_the_recurrence(length, chunk_size):
    if chunk_size == 1 and length > 20:
        length = 20
    assert_same(problem(length), chunk_size=chunk_size)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_groups_skips_and_starts(groups, per_feature, state):
    assert_same(problem(11, groups=groups, per_feature=per_feature, state=state), chunk_size=4)


@given(
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
    groups=st.sampled_from([1, 3, 6]),
    width=st.integers(1, 4),
    size=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_any_sizes(length, chunk_size, groups, width, size, batch):
    assert_same(problem(length, heads=6, groups=groups, width=width, size=size, batch=batch), chunk_size=chunk_size)


def test_without_skip():
    arguments = problem(9) | {"D": None}
    assert_same(arguments, chunk_size=4)


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
@pytest.mark.parametrize("step", [0.1, 10.0, 1000.0])
def test_float32_loses_nothing_to_large_steps_or_chunks(chunk_size, step):
    arguments = {name: t.detach() for name, t in problem(300, dtype=torch.float32, step=step).items()}
    truth, last = ssd.naive(**arguments)
    y, state = ssd.scan(**arguments, chunk_size=chunk_size, impl="torch")
    assert y.dtype == state.dtype == torch.float32
    assert (y - truth).norm() <= 3e-7 * truth.norm()
    assert (state - last).norm() <= 3e-7 * last.norm()


def test_huge_steps_forget_and_give_no_nan():
    arguments = problem(70, step=1e4)
    for t in results(arguments, impl="torch", chunk_size=32):
        assert t.isfinite().all()
    assert_same(arguments, chunk_size=32, rtol=1e-8)  # sums of 1e6 hold differences to 1e-10


def test_half_precision_is_computed_in_float32():
    arguments = {name: t.detach() for name, t in problem(33, dtype=torch.float32).items()}
    half = {name: t.bfloat16() for name, t in arguments.items() if name in "xBC"}
    y, state = ssd.scan(**(arguments | half), chunk_size=8)
    want, last = ssd.naive(**(arguments | half))
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, want.bfloat16(), rtol=8e-3, atol=1e-5)
    torch.testing.assert_close(state, last.float(), rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing():
    arguments = {name: t.detach() for name, t in problem(33, dtype=torch.float32).items()}
    want = ssd.scan(**arguments, chunk_size=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ssd.scan(**arguments, chunk_size=8)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cuts", [(1, 2, 30), (16, 17), (5,)])
def test_chunks_on_a_state_equal_the_whole(cuts):
    arguments = {name: t.detach() for name, t in problem(31).items()}
    y, state = ssd.scan(**arguments)
    parts, begun = [], arguments["initial_state"]
    for start, stop in zip((0, *cuts), (*cuts, 31), strict=True):
        cut = {name: arguments[name][:, start:stop] for name in ("x", "dt", "B", "C")}
        part, begun = ssd.scan(**cut, A=arguments["A"], D=arguments["D"], initial_state=begun, chunk_size=7)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(begun, state, rtol=1e-12, atol=1e-12)


def test_one_token_is_a_step():
    arguments = {name: t.detach() for name, t in problem(1).items()}
    before = arguments["initial_state"].clone()
    one = {name: arguments[name][:, 0] for name in ("x", "dt", "B", "C")}
    y, state = ssd.step(before, **one, A=arguments["A"], D=arguments["D"])
    want, last = ssd.naive(**arguments)
    torch.testing.assert_close(y, want[:, 0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=1e-13, atol=1e-13)
    assert torch.equal(before, arguments["initial_state"])


def test_a_step_takes_any_layout():
    before, x = torch.randn(2, 4, 3, 5, dtype=F64), torch.randn(2, 4, 3, dtype=F64)
    dt, A, maps = torch.rand(2, 4, dtype=F64), -torch.rand(4, dtype=F64), torch.randn(2, 2, 5, dtype=F64)
    want = ssd.step(before, x, dt, A, maps, maps)
    before, x = before.mT.contiguous().mT, x.mT.contiguous().mT
    for a, b in zip(ssd.step(before, x, dt, A, maps, maps), want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_zero_step_leaves_the_state_alone():
    arguments = {name: t.detach() for name, t in problem(9).items()} | {"dt": torch.zeros(2, 9, 4, dtype=F64)}
    assert torch.equal(ssd.scan(**arguments, chunk_size=4)[1], arguments["initial_state"])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, of forward mode
@pytest.mark.parametrize("length", [1, 5])
def test_gradcheck(length):
    arguments = problem(length, batch=1, heads=2, groups=1, width=2, size=2)
    names, tensors = list(arguments), tuple(arguments.values())

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return ssd.scan(**dict(zip(names, values, strict=True)), chunk_size=2)

    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_what_is_picked():
    assert ssd.pick("cpu") == "torch"
    assert ssd.pick("cuda", torch.float64) == "torch"
    arguments = {name: t.detach() for name, t in problem(5).items()}
    assert torch.equal(ssd.scan(**arguments)[0], ssd.scan(**arguments, impl="torch")[0])


@pytest.mark.usefixtures("no_kernels_known")
def test_an_explicit_request_never_falls_back(monkeypatch):
    arguments = {name: t.detach() for name, t in problem(5).items()}
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ImportError, match=r"mamba-ssm.*deqlm\[gpu\].*impl=\"torch\""):
        ssd.scan(**arguments, impl="mamba_ssm")


@pytest.fixture
def no_kernels_known(monkeypatch):
    """Forget what an import of mamba-ssm in this process came to, and what failed."""
    kernel = sys.modules["deqlm.ops.ssd.kernel"]
    monkeypatch.setattr(kernel, "_FOUND", [])
    monkeypatch.setattr(kernel, "_GIVEN_UP", [])
    imported = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mamba_ssm"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    sys.modules.update(imported)


def package(folder: Path, monkeypatch, body: str) -> None:
    """Put a package mamba-ssm with the given file of kernels before all others."""
    triton = folder / "mamba_ssm" / "ops" / "triton"
    triton.mkdir(parents=True)
    for part in (folder / "mamba_ssm", folder / "mamba_ssm" / "ops", triton):
        (part / "__init__.py").touch()
    (triton / "ssd_combined.py").write_text(body)
    monkeypatch.syspath_prepend(folder)


BROKEN = {
    "undefined symbol": 'raise OSError("selective_scan_cuda.so: undefined symbol: _ZN3c10")',
    "No module named 'selective_scan_cuda'": "import selective_scan_cuda",
    "cannot import name": "raise ImportError('cannot import name GreedySearch')",
    "needs a driver": 'raise RuntimeError("needs a driver")',
}


@pytest.mark.usefixtures("no_kernels_known")
@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_package_is_left_out_and_said_once(why, tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, BROKEN[why])
    with pytest.warns(RuntimeWarning, match=f'takes "torch": mamba-ssm is installed and cannot be.*{why}') as told:
        assert [ssd.pick("cuda") for _ in range(3)] == ["torch"] * 3
    assert len(told) == 1
    with pytest.raises(ImportError, match=f'impl="mamba_ssm" needs the package mamba-ssm .*{why}'):
        ssd.scan(**detached(problem(5)), impl="mamba_ssm")


@pytest.mark.usefixtures("no_kernels_known")
def test_a_package_that_is_not_there_is_no_news(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert ssd.pick("cuda") == "torch"


@pytest.mark.usefixtures("no_kernels_known")
def test_kernels_without_a_device_to_compile_for_are_left_out(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, "mamba_chunk_scan_combined = print")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(RuntimeWarning, match="triton finds no device to compile for"):
        assert ssd.pick("cuda") == "torch"


@pytest.mark.usefixtures("no_kernels_known")
def test_kernels_that_fail_are_replaced_and_not_tried_again(monkeypatch):
    module, calls = sys.modules["deqlm.ops.ssd.scan"], []

    def fails(*given: Tensor, **options) -> None:
        calls.append(given)
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(module, "mamba_ssm", fails)
    monkeypatch.setattr(sys.modules["deqlm.ops.ssd.kernel"], "_FOUND", [(fails, "")])
    monkeypatch.setattr(module, "pick", lambda device, dtype: "torch" if module.why_not() else "mamba_ssm")
    arguments = detached(problem(5))
    with pytest.warns(RuntimeWarning, match="no kernel image is available") as told:
        outcomes = [ssd.scan(**arguments) for _ in range(3)]
    assert len(told) == len(calls) == 1
    want = ssd.scan(**arguments, impl="torch")
    assert all(torch.equal(got, w) for outcome in outcomes for got, w in zip(outcome, want, strict=True))


def test_memory_that_runs_out_is_no_reason_to_leave_the_kernels(monkeypatch):
    module = sys.modules["deqlm.ops.ssd.scan"]

    def full(*given: Tensor, **options) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "mamba_ssm", full)
    monkeypatch.setattr(module, "pick", lambda device, dtype: "mamba_ssm")
    with pytest.raises(torch.OutOfMemoryError):
        ssd.scan(**detached(problem(5)))


@pytest.mark.parametrize(("run", "length"), [(partial(ssd.scan, chunk_size=2), 400), (ssd.naive, 12)])
def test_backward_writes_nothing_of_full_length_for_every_part(run, length):
    """Numbers written by the backward of twice the tokens are twice as many, and not four times."""

    def written(length: int) -> int:
        arguments = problem(length, batch=1, heads=1, groups=1, width=1, size=2)
        y, last = run(**arguments)
        with Written() as counted:
            (y.sum() + last.sum()).backward()
        return counted.numbers

    assert written(2 * length) < 2.3 * written(length)


class Written(TorchDispatchMode):
    """Counts the numbers of all results that are no views."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.numbers += out.numel()
        return out


def detached(arguments: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if t is None else t.detach() for name, t in arguments.items()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"impl": "triton"}, "impl must be one of auto, torch, mamba_ssm, naive, got 'triton'"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"chunk_size": 4, "impl": "naive"}, 'chunk_size must be None for impl="naive"'),
        ({"x": torch.zeros(2, 5, 12)}, "x must be of shape (B, L, H, P)"),
        ({"dt": torch.zeros(2, 5, 3)}, "dt must be of shape (B, L, H), (2, 5, 4), got (2, 5, 3)"),
        ({"A": torch.zeros(3)}, "A must be of shape (H,), (4,), got (3,)"),
        ({"B": torch.zeros(2, 5, 3, 5), "C": torch.zeros(2, 5, 3, 5)}, "the groups of B must be a divisor of the 4"),
        ({"C": torch.zeros(2, 5, 2, 6)}, "C must be of the shape of B"),
        ({"D": torch.zeros(3)}, "D must be (4,) or (4, 3), got (3,)"),
        ({"initial_state": torch.zeros(1, 4, 3, 5)}, "initial_state must be of shape (2, 4, 3, 5), got (1, 4, 3, 5)"),
    ],
)
def test_bad_input(wrong, message):
    arguments = {name: t.detach() for name, t in problem(5).items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        ssd.scan(**(arguments | wrong))


def test_no_token():
    empty = {name: torch.zeros(2, 0, 4, 3) for name in "xBC"}
    with pytest.raises(ValueError, match="the length of x must be >= 1, got 0"):
        ssd.scan(**empty, dt=torch.zeros(2, 0, 4), A=torch.zeros(4))


@pytest.mark.parametrize("impl", ["torch", "naive", "auto"])
@pytest.mark.parametrize("length", [1, 5, 33])
@pytest.mark.parametrize("state", [False, True])
def test_no_row(impl, length, state):
    arguments = problem(length, batch=0, state=state)
    y, last, *gradients = results(arguments, impl=impl, **({} if impl == "naive" else {"chunk_size": 16}))
    assert (y.shape, last.shape) == ((0, length, 4, 3), (0, 4, 3, 5))
    for got, t in zip(gradients, [t for t in arguments.values() if t is not None], strict=True):
        assert torch.equal(got, torch.zeros_like(t))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 63, 300])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("state", [False, True])
def test_the_kernels_equal_the_recurrence(length, groups, state):
    pytest.importorskip("mamba_ssm")
    made = problem(length, heads=4, width=16, groups=groups, size=16, state=state, dtype=torch.float32)
    arguments = {name: None if t is None else t.detach().cuda().requires_grad_() for name, t in made.items()}
    names = [name for name, t in arguments.items() if t is not None]
    outcomes = []
    for impl in ("mamba_ssm", "naive"):
        y, last = ssd.scan(**arguments, impl=impl)
        loss = y.double().cos().sum() + last.double().cos().sum()
        outcomes.append([y, last, *torch.autograd.grad(loss, [arguments[name] for name in names])])
    for name, got, want in zip(["y", "state", *names], *outcomes, strict=True):
        error = (got.double() - want.double()).norm() / want.double().norm()
        assert error < 5e-3, f"{name}: {error}"  # the kernels multiply in TF32
