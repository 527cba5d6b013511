"""Tensors whose numbers are not what lies in their memory, or too many: compiled twins leave them alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deqlm.layers import Context
from deqlm.testing.mixers.inputs import inputs
from layers.mixers import F64, MIXERS
from layers.test_twins import LAYERS, functions, random_cache, random_mixer

pytestmark = pytest.mark.skipif(LAYERS.library is None, reason=LAYERS.why)


def lazily(t, how):
    """Return a view whose numbers are not what lies in its memory: of ``t``, or zeros of its shape."""
    return torch._efficientzerotensor(t.shape, dtype=t.dtype) if how == "zero" else torch._neg_view(-t)


@pytest.mark.parametrize("how", ["zero", "negative"])
@pytest.mark.parametrize("which", ["u", "window", "state"])
@pytest.mark.parametrize("grad", [False, True])
def test_inputs_without_memory(how, which, grad):
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    cache = random_cache(mixer)
    if which == "u":
        u = lazily(u, how)
    else:
        cache = cache._replace(**{which: lazily(getattr(cache, which), how)})
    found = []
    with torch.set_grad_enabled(grad):
        for build in (functions, None):
            y, after = mixer.forward_chunk(z, u, cache, Context.open(mixer, z, build=build))
            found.append((y, *after))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("how", ["zero", "negative"])
def test_a_norm_of_what_has_no_memory(how):
    norm = nn.RMSNorm(19, dtype=F64)
    x = lazily(torch.randn(3, 19, dtype=F64), how)
    with torch.no_grad():
        context = Context.open(norm, x, build=functions)
        torch.testing.assert_close(context.normalise(norm, x), norm(x))
        norm.weight = nn.Parameter(torch._neg_view(norm.weight.detach()))
        assert not Context.open(norm, x, build=functions).twins


def test_a_norm_over_nothing():
    norm = nn.RMSNorm(0)
    x = torch.zeros(3, 0)
    with torch.no_grad():
        assert Context.open(norm, x, build=functions).normalise(norm, x).shape == (3, 0)


@pytest.mark.parametrize("more", [-4, 4])
def test_a_projection_of_another_width_is_refused_as_by_torch(more):
    mixer = random_mixer(MIXERS["mamba2"])
    z, _ = inputs(mixer)
    mixer.in_proj = nn.Linear(mixer.in_proj.in_features, mixer.in_proj.out_features + more, dtype=F64)
    with torch.no_grad(), pytest.raises(RuntimeError, match="split_with_sizes"):
        mixer(z, None, Context.open(mixer, z, build=functions))


@pytest.mark.parametrize("how", ["float32", "strided", "negative"])
def test_what_hooks_give_back_instead_of_what_was_saved(how):
    def back(t):
        if how == "strided" or not t.is_floating_point():
            return t.mT.contiguous().mT if t.dim() > 1 else t
        return t.float() if how == "float32" else lazily(t, how)

    mixer = random_mixer(MIXERS["mamba2"])
    projected = inputs(mixer)[1].requires_grad_()
    twin = Context.open(mixer, projected, build=functions).twins[mixer]
    given = (projected, torch.rand(3, 21) > 0.3, None, None, mixer._parameters_of(lambda layer: layer.weight))
    (want,) = torch.autograd.grad(twin.attached(*given)[0].sum(), projected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
        y = twin.attached(*given)[0]
    (got,) = torch.autograd.grad(y.sum(), projected)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


class Stands(torch.autograd.Function):
    """The identity, whose cotangent is a tensor without its numbers in memory."""

    @staticmethod
    def forward(ctx, x, how):
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx, to_y):
        zero = torch._efficientzerotensor(to_y.shape, dtype=to_y.dtype)
        return zero if ctx.how == "zero" else torch._neg_view(to_y.contiguous()), None


@pytest.mark.parametrize("how", ["zero", "negative"])
def test_cotangents_without_memory(how):
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    projected = u.requires_grad_()
    twin = Context.open(mixer, z, build=functions).twins[mixer]
    y, *_ = twin.attached(projected, None, None, None, mixer._parameters_of(lambda layer: layer.weight))
    (plain,) = torch.autograd.grad(y.sum(), projected, retain_graph=True)
    (got,) = torch.autograd.grad(Stands.apply(y, how).sum(), projected)
    torch.testing.assert_close(got, 0 * plain if how == "zero" else -plain)
