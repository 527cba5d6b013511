"""Padding is inert, whatever stands there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from deqlm.layers import Context
from deqlm.testing.check import expect
from deqlm.testing.mixers.inputs import Make, by_chunks, expect_close, inputs

__all__ = [
    "generation_goes_on_from_padded_prompts",
    "nan_at_padding_reaches_no_gradient",
    "padding_changes_no_real_token",
]


def left_padded(z: Tensor, u: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return z and u behind ``pads[b]`` tokens that hold ``value``, cut to one length, and the mask."""
    length = z.shape[1]
    place = torch.arange(length + max(pads))[None]
    starts = torch.tensor(pads)[:, None]
    mask = (place >= starts) & (place < starts + length)

    def padded(t: Tensor) -> Tensor:
        out = torch.full((len(t), mask.shape[1], t.shape[-1]), value, dtype=t.dtype)
        out[mask] = t.flatten(0, 1)
        return out

    return padded(z), padded(u), mask


def padding_changes_no_real_token(make: Make) -> None:
    """Tokens at padding, NaN included, move no real token and have the output 0, at once and in chunks."""
    for value, pads, cuts in product((0.0, 1e3, torch.nan), ((0, 1, 7), (40, 3, 0)), ((), (5, 6), range(1, 28))):
        mixer = make().double()
        z, u = inputs(mixer)
        padded_z, padded_u, mask = left_padded(z, u, pads, value)
        context = Context.open(mixer, padded_u, mask=mask)
        y, _ = by_chunks(mixer, padded_z, padded_u, cuts, context)
        what = f"{pads} tokens of {value}, chunks that end at {list(cuts)}"
        expect_close(y[mask], mixer(z, u).flatten(0, 1), what, tolerance=1e-11)
        expect((y[~mask] == 0).all(), "{}: the output at padding is not 0", what)


def generation_goes_on_from_padded_prompts(make: Make) -> None:
    """Tokens after prompts that are padded on the left are those of the prompts alone."""
    mixer = make().double()
    z, u = inputs(mixer)
    pads = torch.tensor([0, 2, 9])
    mask = torch.arange(21)[None] >= pads[:, None]
    prompt = [torch.where(mask[..., None], t, torch.nan) for t in (z, u)]
    _, cache = mixer.forward_chunk(*prompt, mixer.empty_cache(3), Context.open(mixer, u, mask=mask))
    new_z, new_u = inputs(mixer, length=2)
    later = Context.open(mixer, new_u, offset=21, committed=mask.sum(1))
    y, _ = mixer.forward_chunk(new_z, new_u, cache, later)
    expect_close(mixer.forward_chunk(new_z, new_u, cache)[0], y, "a chunk without and with a context")
    for row, pad in enumerate(pads.tolist()):
        alone = [torch.cat([t[row : row + 1, pad:], new[row : row + 1]], dim=1) for t, new in ((z, new_z), (u, new_u))]
        expect_close(y[row], mixer(*alone)[0, -2:], f"a prompt behind {pad} pads and alone", tolerance=1e-11)


def nan_at_padding_reaches_no_gradient(make: Make) -> None:
    """With NaN at padding, gradients of parameters and real tokens are finite, those at padding 0."""
    mixer = make().double()
    z, u, mask = left_padded(*inputs(mixer), (0, 2, 5), torch.nan)
    for t in (z, u):
        t.requires_grad_()
    context = Context.open(mixer, u, mask=mask)
    mixer(z, u, context)[mask].cos().sum().backward()
    for name, t in (("z", z), ("u", u), *mixer.named_parameters()):
        if t.grad is None:
            raise AssertionError(f"{name} has no gradient")
        expect(t.grad.isfinite().all(), "the gradient of {} is not finite", name)
        if t.shape[:2] == mask.shape:
            expect((t.grad[~mask] == 0).all(), "the gradient of {} at padding is not 0", name)
