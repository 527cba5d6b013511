"""Compiled twins against the torch operations that they stand for, and where they must not stand for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm.layers import Attention, Block, Context, LlamaMLP, Mamba2, weight_norm_
from deqlm.models import Backbone
from deqlm.ops.native.library import SOURCE
from deqlm.testing.mixers.inputs import inputs
from deqlm_solvers.native.build import build
from layers.mixers import F64, MIXERS, WIDTH

LAYERS = build(SOURCE)
pytestmark = pytest.mark.skipif(LAYERS.library is None, reason=LAYERS.why)


def functions(source):
    return build(source).library.functions


def random_mixer(make, dtype=F64, **options):
    mixer = make(**options).to(dtype)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        mixer.dt_bias.uniform_(-3, 3)
    return mixer


def random_cache(mixer, batch=3):
    return type(mixer.empty_cache(batch))(*(torch.randn_like(t) for t in mixer.empty_cache(batch)))


def both(mixer, z, u, cache, mask=None):
    """Return what torch operations and what the twin make: output, window, state."""
    with torch.no_grad():
        contexts = [Context.open(mixer, z, mask=mask), Context.open(mixer, z, mask=mask, build=functions)]
        assert mixer in contexts[1].twins
        found = [mixer.forward_chunk(z, u, cache, context) for context in contexts]
    return [(y, *after) for y, after in found]


MAMBAS = [name for name in MIXERS if name.startswith("mamba2")]
WIDE = {"wide": lambda **more: Mamba2(WIDTH, d_state=19, headdim=24, **more)}


@pytest.mark.parametrize("name", [*MAMBAS, "wide"])
@pytest.mark.parametrize("options", [{}, {"conv_bias": False, "dt_limit": (0.05, 0.5)}])
@pytest.mark.parametrize("length", [1, 21, 130])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [False, True])
def test_mamba2_equals_torch(name, options, length, dtype, tolerance, masked):
    mixer = random_mixer((MIXERS | WIDE)[name], dtype, **options)
    if options:
        weight_norm_(mixer)
    z, u = inputs(mixer, length=length, dtype=dtype)
    mask = torch.rand(3, length) > 0.3 if masked else None
    for got, want in zip(*both(mixer, z, u, random_cache(mixer), mask), strict=True):
        size = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * max(1.0, size))


def test_large_numbers_and_nan_stay_in_their_row():
    mixer = random_mixer(MIXERS["mamba2"], torch.float32)
    z, u = inputs(mixer, batch=7, length=9, dtype=torch.float32)
    for row, value in enumerate((1e2, -1e2, 1e4, -1e4, 1e-30, torch.nan)):
        u[row, 4, ::7] = value
    want, got = both(mixer, z, u, random_cache(mixer, 7))
    rows = [0, 1, 2, 3, 4, 6]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a[rows], b[rows], rtol=1e-4, atol=1e-4)
    assert got[0][5, 4:].isnan().all()
    assert got[0][5, :4].isfinite().all()


@pytest.mark.parametrize("length", [1, 16, 70])
def test_a_row_is_the_same_to_the_bit_in_any_batch(length):
    mixer = random_mixer(WIDE["wide"], torch.float32)
    z, u = inputs(mixer, batch=40, length=length, dtype=torch.float32)
    with torch.no_grad():
        twin = Context.open(mixer, z, build=functions).twins[mixer]
        projected = mixer.in_proj(z)
        together = twin(projected, u, None, None, None)
        for row in (0, 17, 39):
            alone = twin(projected[row : row + 1], u[row : row + 1], None, None, None)
            assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(alone, together, strict=True))


def test_threads_change_nothing():
    mixer = random_mixer(WIDE["wide"], torch.float32)
    z, u = inputs(mixer, batch=5, length=140, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = both(mixer, z, u, None)[1]
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one[1:], both(mixer, z, u, None)[1][1:], strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_norm_equals_torch(dtype, tolerance, eps):
    norm = nn.RMSNorm(19, eps=eps, dtype=dtype)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 7, 19, dtype=dtype).transpose(0, 1)
    x[1, 1] = torch.nan
    with torch.no_grad():
        context = Context.open(norm, x, build=functions)
        assert norm in context.twins
        torch.testing.assert_close(context.normalise(norm, x), norm(x), rtol=tolerance, atol=tolerance, equal_nan=True)


def gradients(mixer, z, u, cache, mask, how):
    """Return the gradients of all parameters and inputs, for fixed cotangents of output, window and state."""
    context = Context.open(mixer, z, mask=mask, build=how)
    y, after = mixer.forward_chunk(z, u, cache, context)
    assert ("_Attached" in str(find(y.grad_fn))) is (how is not None)
    torch.manual_seed(1)
    loss = sum((t * torch.randn(t.shape, dtype=F64).to(t)).sum() for t in (y, *after))
    return torch.autograd.grad(loss, [*mixer.parameters(), z, u, *cache])


def find(node):
    """Return the names of all nodes of a graph."""
    seen, left = set(), [node]
    while left:
        if (node := left.pop()) is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("name", [*MAMBAS, "wide"])
@pytest.mark.parametrize("options", [{}, {"conv_bias": False, "dt_limit": (0.05, 0.5)}])
@pytest.mark.parametrize("length", [3, 130])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_mamba2_equal_those_of_torch(name, options, length, masked):
    mixer = random_mixer((MIXERS | WIDE)[name], **options)
    if options:
        weight_norm_(mixer)
    z, u = (t.requires_grad_() for t in inputs(mixer, length=length))
    cache = type(mixer.empty_cache(3))(*(t.requires_grad_() for t in random_cache(mixer)))
    mask = torch.rand(3, length) > 0.3 if masked else None
    got, want = (gradients(mixer, z, u, cache, mask, how) for how in (functions, None))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, b.abs().max().item() if b.numel() else 0))


def test_gradients_in_single_precision():
    mixer = random_mixer(WIDE["wide"], torch.float32)
    z, u = (t.requires_grad_() for t in inputs(mixer, length=70, dtype=torch.float32))
    cache = type(mixer.empty_cache(3))(*(t.requires_grad_() for t in random_cache(mixer)))
    got = gradients(mixer, z, u, cache, None, functions)
    exact = [t.detach().double().requires_grad_() for t in (z, u, *cache)]
    want = gradients(mixer.double(), *exact[:2], type(cache)(*exact[2:]), None, None)
    for a, truth in zip(got, want, strict=True):
        assert (a - truth).norm() <= 1e-4 * truth.norm()  # torch's own are as far: some tokens are ill-conditioned


def test_second_derivatives_and_vectorized_ones():
    mixer = random_mixer(lambda: Mamba2(4, d_state=2, headdim=4, expand=1))
    z, u = inputs(mixer, batch=2, length=3)
    z.requires_grad_()
    context = Context.open(mixer, z, build=functions)
    inputs_of = (z, mixer.A_log, mixer.conv1d.weight, mixer.norm.weight)

    def f(z, *_):
        return mixer(z, u, context)

    torch.autograd.gradcheck(f, inputs_of[:1])
    y, plain = f(z), mixer(z, u)
    cotangents = torch.randn(5, *y.shape, dtype=F64)
    got = torch.autograd.grad(y, inputs_of, cotangents, is_grads_batched=True, retain_graph=True)
    want = torch.autograd.grad(plain, inputs_of, cotangents, is_grads_batched=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    second = []
    for y in (f(z), mixer(z, u)):
        first = torch.autograd.grad(y.square().sum(), inputs_of, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs_of))
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_an_input_that_depends_on_another_is_counted_once():
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    found = []
    for how in (functions, None):
        context = Context.open(mixer, z, build=how)
        y = mixer(mixer(z, u, context), u, context)
        (first,) = torch.autograd.grad(y.square().sum(), [mixer.A_log], create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), [mixer.A_log, mixer.dt_bias])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Watched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def test_who_counts_operations_sees_them():
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    with torch.no_grad(), Watched() as watched:
        mixer(z, u, Context.open(mixer, z, build=functions))
    assert "aten.silu" in watched.seen


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_derivatives_are_those_of_torch():
    block = Block(random_mixer(MIXERS["mamba2"])).double()
    z, u = inputs(block)
    context, plain = Context.open(block, z, build=functions), Context.open(block, z)
    tangent = torch.randn_like(z)
    with torch.no_grad():
        for push in (torch.func.jvp, torch.autograd.functional.jvp):
            got, want = (push(lambda z, c=c: block(z, u, c), (z,), (tangent,))[1] for c in (context, plain))
            torch.testing.assert_close(got, want)
    for got, want in zip(
        *(torch.autograd.grad(block(z, u, c).square().sum(), list(block.parameters())) for c in (context, plain)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "change", ["hook", "pre-hook", "backward hook", "forward", "groups", "subclass", "impl", "bfloat16"]
)
def test_layers_without_a_twin(change):
    mixer = Mamba2(WIDTH, d_state=5, headdim=4, impl="torch" if change == "impl" else "auto")
    if change == "hook":
        mixer.norm.register_forward_hook(lambda *_: None)
    elif change == "pre-hook":
        mixer.norm.register_forward_pre_hook(lambda *_: None)
    elif change == "backward hook":
        mixer.norm.register_full_backward_hook(lambda *_: None)
    elif change == "forward":
        mixer.norm.forward = lambda y, gate: y
    elif change == "groups":
        mixer.norm.groups = 2
    elif change == "subclass":
        mixer.__class__ = type("Mine", (Mamba2,), {})
    elif change == "bfloat16":
        mixer.bfloat16()
    assert not Context.open(mixer, torch.zeros(1, 2, WIDTH), build=functions).twins


def test_no_token_is_refused_as_by_torch():
    mixer = Mamba2(WIDTH, headdim=4)
    z = torch.zeros(1, 0, WIDTH)
    with torch.no_grad(), pytest.raises(ValueError, match="the length of x must be >= 1, got 0"):
        mixer(z, None, Context.open(mixer, z, build=functions))


def test_without_a_compiler_there_are_no_twins():
    assert not Context.open(Block(Mamba2(WIDTH, headdim=4)), torch.zeros(1, 2, WIDTH), build=lambda _: None).twins


@pytest.mark.parametrize("mixer", [lambda: Mamba2(16, d_state=4, headdim=8), lambda: Attention(16, n_head=2)])
def test_a_backbone_has_twins_and_hooks_are_called(mixer):
    backbone = Backbone([Block(mixer(), mlp=LlamaMLP(16, 20))])
    e = torch.randn(2, 5, 16)
    with torch.no_grad():
        context = backbone.open(e)
        assert {type(layer) for layer in context.twins} >= {nn.RMSNorm}
        want = backbone(e, backbone.project(e), Context.open(backbone, e))
        torch.testing.assert_close(backbone(e, backbone.project(e), context), want, rtol=1e-5, atol=1e-5)
        called = []
        for part in backbone.modules():
            if isinstance(part, nn.RMSNorm):
                part.register_forward_hook(lambda *_: called.append(1))
        backbone(e, backbone.project(e), backbone.open(e))
        assert len(called) == 4  # norm, norm2, norm_f, and that of the injection


def test_weights_that_change_between_calls_are_seen():
    backbone = Backbone([Block(Mamba2(16, d_state=4, headdim=8))])
    e = torch.randn(2, 5, 16)
    with torch.no_grad():
        first = backbone(e, None, backbone.open(e))
        backbone.layers[0].mixer.A_log.data += 1.0
        second = backbone(e, None, backbone.open(e))
        assert not torch.equal(first, second)
        torch.testing.assert_close(second, backbone(e, None, Context.open(backbone, e)), rtol=1e-5, atol=1e-5)


class Whole(nn.Module):
    """Opens a context in each call, as models do."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone([Block(Mamba2(16, d_state=4, headdim=8))])

    def forward(self, e):
        context = self.backbone.open(e)
        return self.backbone(e, self.backbone.project(e, context), context)


def test_functions_of_parameters_are_transformed():
    model, e = Whole().double(), torch.randn(2, 3, 16, dtype=F64)
    parameters = dict(model.named_parameters())
    call = torch.func.functional_call
    got = torch.func.grad(lambda p: call(model, p, (e,)).square().sum())(parameters)
    want = torch.autograd.grad(model(e).square().sum(), list(parameters.values()))
    for a, b in zip(got.values(), want, strict=True):
        torch.testing.assert_close(a, b)
    stacked = {name: torch.stack([p, 2 * p]).detach() for name, p in parameters.items()}
    found = torch.func.vmap(lambda p: call(model, p, (e,)))(stacked)
    torch.testing.assert_close(found[0], model(e))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_has_the_operations():
    model, e = Whole(), torch.randn(2, 2, 3, 16)
    with torch.no_grad():
        traced = torch.jit.trace(model, (e[0],), check_trace=False)
        torch.testing.assert_close(traced(e[1]), model(e[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [(3, 1), (1, 21), (1, 1)])
def test_a_mask_of_one_row_or_token_is_for_all(mask):
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    mask = torch.rand(mask) > 0.3
    with torch.no_grad():
        opened = Context.open(mixer, z, build=functions)
        got, want = (mixer(z, u, replace(c, mask=mask)) for c in (opened, Context()))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("grad", [False, True])
def test_what_lies_elsewhere_is_refused_as_by_torch(grad):
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    cache = random_cache(mixer)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="meta"):
        mixer.forward_chunk(z, u, cache._replace(state=cache.state.to("meta")), Context.open(mixer, z, build=functions))


def test_parameters_and_mask_may_not_change_before_the_derivative():
    mixer = random_mixer(MIXERS["mamba2"])
    z, u = inputs(mixer)
    mask = torch.rand(3, 21) > 0.3
    for changed in (mixer.A_log, mixer.dt_bias, mask):
        context = Context.open(mixer, z, mask=mask, build=functions)
        window = mixer.forward_chunk(z, u, random_cache(mixer), context)[1].window
        with torch.no_grad():
            changed.copy_(torch.zeros_like(changed))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            window.sum().backward()


def test_a_parameter_of_another_shape_is_refused_as_by_torch():
    mixer = Mamba2(WIDTH, headdim=4)
    mixer.A_log = nn.Parameter(torch.zeros(1))
    z = torch.zeros(1, 2, WIDTH)
    context = Context.open(mixer, z, build=functions)
    with pytest.raises(ValueError, match="A must be of shape"):
        mixer(z, None, context)
