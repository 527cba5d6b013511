"""The strict interpreter is right, and sees what it is there to see: each planted mistake is a fault."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from gpu.interpreter import FaultError, checked


@triton.jit
def add_all(a, b, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + at, mask=at < n)
    y = tl.load(b + at, mask=at < n)
    tl.store(out + at, x * y + x, mask=at < n)


@triton.jit
def beyond(a, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(a + at, mask=at < n), mask=at <= n)


@triton.jit
def neighbours(a, n):
    i = tl.program_id(0)
    tl.store(a + i, tl.load(a + (i + 1) % n))


@triton.jit
def everybody(a):
    tl.store(a, tl.program_id(0).to(tl.float32))


@triton.jit
def reads_back(a, BARRIER: tl.constexpr):
    tl.store(a, 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(a + 1, tl.load(a))


@triton.jit
def turns(a, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    at = tl.arange(0, BLOCK)
    square = tl.load(a + at[:, None] * BLOCK + at[None, :])
    if BARRIER:
        tl.debug_barrier()
    tl.store(a + at, tl.sum(square, axis=0))


@triton.jit
def accumulates(a, b, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    place = at[:, None] * BLOCK + at[None, :]
    product = tl.dot(tl.load(a + place), tl.load(b + place))
    tl.store(out + at, tl.sum(product, axis=1))


def test_an_access_outside_of_the_tensors_is_a_fault():
    a, out = torch.ones(2, 5)
    with checked(), pytest.raises(FaultError, match="beyond stores outside"):
        beyond[(2,)](a, out[:5], 5, BLOCK=4)


def test_a_view_ends_where_it_ends():
    whole = torch.ones(10)
    with checked(), pytest.raises(FaultError, match="outside"):
        add_all[(2,)](whole[:5], whole[:5], torch.ones(5), 6, BLOCK=4)


def test_programs_that_read_what_others_write_are_a_fault_in_any_order():
    for order in ("forward", "reverse", 3):
        with checked(order), pytest.raises(FaultError, match="another program"):
            neighbours[(4,)](torch.arange(4.0), 4)


def test_programs_that_write_the_same_are_a_fault():
    with checked(), pytest.raises(FaultError, match="another program"):
        everybody[(2,)](torch.ones(1))


def test_what_threads_write_is_read_back_behind_a_barrier_only():
    with checked(), pytest.raises(FaultError, match="no barrier"):
        reads_back[(1,)](torch.zeros(2), BARRIER=False)
    with checked(), pytest.raises(FaultError, match="no barrier"):
        turns[(1,)](torch.ones(16), BLOCK=4, BARRIER=False)
    with checked():
        reads_back[(1,)](torch.zeros(2), BARRIER=True)
        turns[(1,)](torch.ones(16), BLOCK=4, BARRIER=True)


def test_an_order_of_programs_that_matters_shows():
    seen = set()
    for order in ("forward", "reverse"):
        a = torch.zeros(1)
        with checked(order, watch=False):
            everybody[(3,)](a)
        seen.add(a.item())
    assert seen == {0.0, 2.0}


def test_launches_and_bytes_are_counted():
    a, b, out = torch.ones(3, 6)
    with checked() as launches:
        add_all[(2,)](a, b, out, 6, BLOCK=4)
    (launch,) = launches
    assert (launch.name, launch.grid) == ("add_all", (2, 1, 1))
    assert (launch.loaded, launch.stored) == ({"a": 24, "b": 24}, {"out": 24})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_arithmetic_rounds_as_torch_does(dtype: torch.dtype):
    a, b = torch.randn(2, 300).to(dtype)
    b[:3] = torch.tensor([torch.nan, torch.inf, 0.0])
    out = torch.empty_like(a)
    add_all[(3,)](a, b, out, 300, BLOCK=128)
    assert torch.equal(out.isnan(), (a * b + a).isnan())
    assert torch.equal(out.nan_to_num(), (a * b + a).nan_to_num())


def test_products_of_bfloat16_are_summed_in_float32():
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty(16)
    accumulates[(1,)](a, b, out, BLOCK=16)
    torch.testing.assert_close(out, (a.float() @ b.float()).sum(1), rtol=1e-5, atol=1e-5)


def test_the_interpreter_as_it_comes_gets_bfloat16_wrong():
    """The day that it does not, half of what interpreter.py does can go."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    one = TensorHandle(torch.ones(1).bfloat16().view(torch.int16).numpy().view("uint16"), tl.bfloat16)
    sum_ = InterpreterBuilder.binary_op(InterpreterBuilder(), one, one, lambda x, y: x + y)
    assert sum_.data.item() != torch.tensor([2.0]).bfloat16().view(torch.int16).item()
