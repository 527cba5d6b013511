"""The causal convolution over a window: torch's own as the oracle, chunks equal the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deqlm.ops.conv import causal_conv

F64 = torch.float64


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torch_with_all_gradients(length, taps, bias):
    x = torch.randn(2, length, 5, dtype=F64, requires_grad=True)
    weight = torch.randn(5, 1, taps, dtype=F64, requires_grad=True)
    shift = torch.randn(5, dtype=F64, requires_grad=True)
    window = torch.randn(2, taps - 1, 5, dtype=F64, requires_grad=True)
    y, new = causal_conv(x, weight, shift if bias else None, window)
    seen = torch.cat([window, x], dim=1).transpose(1, 2)
    want = F.conv1d(seen, weight, shift if bias else None, groups=5).transpose(1, 2)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-13)
    assert torch.equal(new, torch.cat([window, x], dim=1)[:, length:])
    inputs = [x, weight] + [window] * (taps > 1) + [shift] * bias
    g = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_window_is_a_window_of_zeros():
    x, weight = torch.randn(2, 6, 3), torch.randn(3, 1, 4)
    for a, b in zip(causal_conv(x, weight, None), causal_conv(x, weight, None, torch.zeros(2, 3, 3)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (4,), (2, 9)])
def test_pieces_equal_the_whole_to_the_bit(cuts):
    x, weight, bias = torch.randn(2, 11, 3), torch.randn(3, 1, 4), torch.randn(3)
    y, last = causal_conv(x, weight, bias)
    parts, window = [], None
    for start, stop in zip((0, *cuts), (*cuts, 11), strict=True):
        part, window = causal_conv(x[:, start:stop], weight, bias, window)
        parts.append(part)
    assert torch.equal(torch.cat(parts, dim=1), y)
    assert torch.equal(window, last)


def test_half_precision_is_summed_in_float32():
    x, weight = torch.randn(2, 50, 3).bfloat16(), torch.randn(3, 1, 4).bfloat16()
    y, window = causal_conv(x, weight, None)
    assert y.dtype == window.dtype == torch.bfloat16
    assert torch.equal(y, causal_conv(x.double(), weight.double(), None)[0].float().bfloat16())


def test_bad_input():
    with pytest.raises(ValueError, match=r"weight must be of shape \(3, 1, W\), got \(4, 1, 4\)"):
        causal_conv(torch.zeros(1, 2, 3), torch.zeros(4, 1, 4), None)
    with pytest.raises(ValueError, match=r"window must be of shape \(1, 3, 3\), got \(2, 3, 3\)"):
        causal_conv(torch.zeros(1, 2, 3), torch.zeros(3, 1, 4), None, torch.zeros(2, 3, 3))
