"""What is fixed within a call holds; and a mixer can be normed, copied, saved and cast."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from itertools import product
from typing import Any

import torch
from torch import nn

from deqlm.layers import Block, Context, weight_norm_
from deqlm.testing.check import expect
from deqlm.testing.mixers.inputs import Make, by_chunks, expect_close, inputs

__all__ = [
    "calls_its_layers_in_every_evaluation",
    "can_be_copied_pickled_and_saved",
    "can_be_made_on_the_meta_device",
    "noise_and_weights_hold_within_a_call",
    "precisions_are_kept",
    "weight_norm_changes_no_value",
]


def noise_and_weights_hold_within_a_call(make: Make) -> None:
    """With one Context all evaluations, chunks and rows see the same noise; with another one, other noise."""
    noisy = _with_noise(make)
    mixer = weight_norm_(make() if noisy is None else noisy).double()
    z, u = inputs(mixer)
    context = Context.open(mixer, u)
    y = mixer(z, u, context)
    expect(torch.equal(mixer(z, u, context), y), "two evaluations with one Context differ")
    if noisy is not None:
        again = mixer(z, u, Context.open(mixer, u))
        expect(not torch.equal(again, y), "dropout=0.5 drew the same noise for another Context")
    expect_close(by_chunks(mixer, z, u, (1, 9), context)[0], y, "chunks and the whole, with noise")
    rows = torch.tensor([2, 0])
    expect_close(mixer(z[rows], u[rows], context.rows(rows)), y[rows], "some rows and all, with noise")
    mixer.eval()
    expect(torch.equal(mixer(z, u, Context.open(mixer, u)), mixer(z, u)), "eval() draws noise")


def _with_noise(make: Make) -> nn.Module | None:
    """Return a mixer with half of its output dropped, or None where it has no such option."""
    try:
        return make(dropout=0.5)
    except TypeError:
        return None


def calls_its_layers_in_every_evaluation(make: Make) -> None:
    """Hooks on it and on each layer with parameters fire once per evaluation, with grad and without, in chunks too."""
    block = Block(make()).double()
    z, u = inputs(block)
    counts: dict[str, int] = {}

    def watch(name: str, part: nn.Module) -> None:
        part.register_forward_hook(lambda *_: counts.update({name: counts.get(name, 0) + 1}))

    names = [name for name, part in block.mixer.named_modules() if not name or part._parameters]
    for name in names:
        watch(name, block.mixer.get_submodule(name))
    for grad, cuts in product((True, False), ((), (5,))):
        counts.clear()
        with torch.set_grad_enabled(grad):
            context = Context.open(block, u)
            if cuts:
                by_chunks(block, z, u, cuts, context)
            else:
                block(z, u, context)
        for name in names:
            what = f"the hook of {name!r}" if name else "the hook of the mixer"
            told = "{} fired {} times in {} evaluations with grad {}"
            expect(counts.get(name, 0) == len(cuts) + 1, told, what, counts.get(name, 0), len(cuts) + 1, grad)


def weight_norm_changes_no_value(make: Make) -> None:
    """weight_norm_ keeps the output's bits, with and without a Context, and every parameter has a gradient."""
    mixer = make().double()
    z, u = inputs(mixer)
    want = mixer(z, u)
    weight_norm_(mixer)
    expect(torch.equal(mixer(z, u), want), "weight_norm_ changed the output")
    context = Context.open(mixer, u)
    expect(torch.equal(mixer(z, u, context), want), "the output with a Context is another")
    grads = []
    for given in (context, None):
        mixer.zero_grad()
        mixer(z, u, given).cos().sum().backward()
        grads.append({name: p.grad for name, p in mixer.named_parameters()})
    for name, with_context in grads[0].items():
        without = grads[1][name]
        if with_context is None or without is None:
            raise AssertionError(f"{name} has no gradient")
        near = torch.allclose(with_context, without, rtol=1e-12, atol=1e-14)
        expect(near, "the gradient of {} is another with a Context", name)
        expect((without != 0).any(), "the gradient of {} is 0", name)


def can_be_copied_pickled_and_saved(make: Make) -> None:
    """A copy, a pickle and a state_dict give the same bits."""
    mixer = weight_norm_(make().double())
    z, u = inputs(mixer)
    y = mixer(z, u, Context.open(mixer, u))
    twins = [copy.deepcopy(mixer)]
    if all(_importable(type(part)) for part in mixer.modules()):
        twins.append(pickle.loads(pickle.dumps(mixer)))
    for twin in twins:
        expect(torch.equal(twin(z, u, Context.open(twin, u)), y), "a copy or pickle has another output")
    other = copy.deepcopy(mixer)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    expect(torch.equal(other(z, u), y), "another one with the saved state_dict has another output")


def _importable(cls: type) -> bool:
    """Say whether pickle can find the class by its name, as it cannot where a function made it."""
    found: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def precisions_are_kept(make: Make) -> None:
    """bfloat16 and float32 weights and autocast stay near float64; outputs keep the dtype, a state is in float32."""
    for weights, bound in ((torch.bfloat16, 0.05), (torch.float32, 1e-5)):
        mixer = make().double()
        z, u = inputs(mixer)
        want = mixer(z, u)
        mixer.to(weights)
        z, u = z.to(weights), u.to(weights)
        y, cache = mixer.forward_chunk(z, u, mixer.empty_cache(3))
        expect(y.dtype == weights, "weights in {} give {}", weights, y.dtype)
        error = (y - want).norm() / want.norm()
        expect(error <= bound, "{} is {} from float64, at most {}", weights, error, bound)
        state = getattr(cache, "state", None)
        expect(state is None or state.dtype == torch.float32, "cache.state of {} weights is no float32", weights)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            error = (mixer(z, u) - want).norm() / want.norm()
        expect(error <= 0.05, "autocast of {} weights is {} from float64, at most 0.05", weights, error)


def can_be_made_on_the_meta_device(make: Make) -> None:
    """Made under torch.device("meta"), all parameters and outputs are there."""
    with torch.device("meta"):
        mixer: Any = weight_norm_(make())
    elsewhere = [name for name, p in mixer.named_parameters() if not p.is_meta]
    expect(not elsewhere, "{} is elsewhere", ", ".join(elsewhere))
    z, u = (torch.zeros(2, 5, width, device="meta") for width in (mixer.d_model, mixer.d_inject))
    expect(mixer(z, u).is_meta, "the output is elsewhere")
