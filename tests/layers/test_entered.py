"""Every part of a backbone is entered by its call: what is planted on one is seen, and no twin stands in for it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from deqlm.layers import Attention, Block, GatedMLP, LlamaMLP, Mamba2
from deqlm.models import Backbone

F64 = torch.float64
MIXERS = {
    "mamba2": lambda: Block(Mamba2(12, d_state=3, headdim=4), mlp=LlamaMLP(12, 8)),
    "attention": lambda: Block(Attention(12, n_head=3), mlp=GatedMLP(12, 8, multiple_of=8)),
}
NORMED = (True, False)
WAYS = list(product((False, True), ("whole", "chunk")))


def parts(family):
    return [name for name, _ in Backbone([MIXERS[family]()]).named_modules() if name not in ("layers", "")]


CASES = [(family, part) for family in MIXERS for part in parts(family)]


def made(family, weight_norm=True):
    torch.manual_seed(0)
    backbone = Backbone([MIXERS[family]()], weight_norm=weight_norm).double()
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return backbone


E, Z = torch.randn(2, 2, 5, 12, dtype=F64, generator=torch.Generator().manual_seed(3))


def evaluate(backbone, *, grad, how, held=True):
    """Return f(z), with the injected input made in the same call, in a context or, as the truth, in none."""
    with torch.set_grad_enabled(grad):
        context = backbone.open(E) if held else None
        u = backbone.project(E, context)
        if how == "whole":
            return backbone(Z, u, context).detach()
        cache = backbone.empty_cache(2)
        y, cache = backbone.forward_chunk(Z[:, :2], u[:, :2], cache, None if context is None else context.tokens(0, 2))
        rest, _ = backbone.forward_chunk(Z[:, 2:], u[:, 2:], cache, None if context is None else context.tokens(2, 5))
        return torch.cat([y, rest], dim=1).detach()


def agree_in_every_way(backbone):
    want = evaluate(backbone, grad=True, how="whole", held=False)
    for grad, how in WAYS:
        torch.testing.assert_close(evaluate(backbone, grad=grad, how=how), want, rtol=1e-10, atol=1e-10)
    return want


@pytest.mark.parametrize("weight_norm", NORMED)
@pytest.mark.parametrize(("family", "part"), CASES)
def test_hooks_fire_once_per_evaluation_with_grad_and_without(family, part, weight_norm):
    backbone = made(family, weight_norm)
    fired = {"pre": 0, "forward": 0}
    layer = backbone.get_submodule(part)
    layer.register_forward_pre_hook(lambda *_: fired.update(pre=fired["pre"] + 1))
    layer.register_forward_hook(lambda *_: fired.update(forward=fired["forward"] + 1))
    for grad, how in WAYS:
        fired.update(pre=0, forward=0)
        evaluate(backbone, grad=grad, how=how)
        once = part.startswith("injection")
        assert set(fired.values()) == {1 if once or how == "whole" else 2}
    agree_in_every_way(backbone)


def change_the_output(backbone, part):
    backbone.get_submodule(part).register_forward_hook(lambda _, args, out: changed(out))


def change_the_input(backbone, part):
    backbone.get_submodule(part).register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))


def changed(out):
    if isinstance(out, tuple):
        return (changed(out[0]), *out[1:])
    return out + 0.5 * out.cos()


def patch_the_instance(backbone, part):
    layer = backbone.get_submodule(part)
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: changed(plain(*args, **kwargs))


def make_a_subclass(backbone, part):
    layer = backbone.get_submodule(part)
    kind = type(layer)

    def forward(self, *args, **kwargs):
        return changed(kind.forward(self, *args, **kwargs))

    layer.__class__ = type("Mine", (kind,), {"forward": forward})


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight


def parametrise(backbone, part):
    layer = backbone.get_submodule(part)
    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        parametrize.register_parametrization(layer, name, Twice())


class Scaled(Tensor):
    """A parameter of another kind: whoever reads it, by an operation, reads it three times as large."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(func, "__name__", "") in ("__get__", "__set__", "detach", "requires_grad_", "view_as"):
                return func(*args, **(kwargs or {}))
            return func(*tree_map(scaled, args), **tree_map(scaled, kwargs or {}))


def scaled(t):
    return 3 * t.as_subclass(Tensor) if isinstance(t, Scaled) else t


def change_the_kind_of_parameters(backbone, part):
    layer = backbone.get_submodule(part)
    for name, p in layer.named_parameters(recurse=False):
        if p.dim() and name != "weight_v":  # a scaled v is the same direction
            layer._parameters[name] = p.detach().as_subclass(Scaled)


PLANTS = [change_the_output, change_the_input, patch_the_instance, make_a_subclass]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(("family", "part"), CASES)
def test_what_is_planted_on_a_part_has_its_effect_in_every_way(family, part, plant):
    backbone = made(family)
    before = agree_in_every_way(backbone)
    plant(backbone, part)
    after = agree_in_every_way(backbone)
    assert not torch.allclose(before, after, rtol=1e-3)


@pytest.mark.parametrize("weight_norm", NORMED)
@pytest.mark.parametrize("plant", [parametrise, change_the_kind_of_parameters])
@pytest.mark.parametrize(("family", "part"), CASES)
def test_parameters_of_another_kind_are_read_as_they_are(family, part, plant, weight_norm):
    backbone = made(family, weight_norm)
    before = agree_in_every_way(backbone)
    plant(backbone, part)
    after = agree_in_every_way(backbone)
    own = [name for name, _ in backbone.get_submodule(part).named_parameters(recurse=False)]
    assert not own or not torch.allclose(before, after, rtol=1e-3)


@pytest.mark.parametrize("family", MIXERS)
def test_a_full_backward_hook_sees_every_evaluation_with_grad(family):
    backbone = made(family)
    names = [name for name in parts(family) if backbone.get_submodule(name)._parameters]
    fired = dict.fromkeys(names, 0)
    for name in names:
        backbone.get_submodule(name).register_full_backward_hook(
            lambda *_, name=name: fired.update({name: fired[name] + 1})
        )
    context, e, z = backbone.open(E), E.clone().requires_grad_(), Z.clone().requires_grad_()
    y = backbone(backbone(z, backbone.project(e, context), context), backbone.project(e, context), context)
    y.square().sum().backward()
    assert set(fired.values()) == {2}
    with torch.no_grad():
        assert not backbone.open(E).linears.keys() & {backbone.get_submodule(name) for name in names}


@pytest.mark.parametrize("family", MIXERS)
def test_a_hook_on_all_modules_sees_every_part(family):
    backbone, seen = made(family), []
    handle = global_hooks.register_module_forward_hook(lambda layer, *_: seen.append(layer))
    try:
        for grad in (False, True):
            seen.clear()
            evaluate(backbone, grad=grad, how="whole")
            assert {backbone.get_submodule(name) for name in parts(family)} <= set(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", [nn.Linear, nn.RMSNorm, nn.Conv1d, Mamba2])
def test_a_forward_that_is_replaced_in_its_class_is_called(monkeypatch, kind):
    backbone, called, plain = made("mamba2", weight_norm=False), [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kw: called.append(1) or plain(self, *args, **kw))
    counts = []
    for grad, _ in WAYS[::2]:
        called.clear()
        evaluate(backbone, grad=grad, how="whole")
        counts.append(len(called))
    assert counts[0] == counts[1] > 0


def test_a_hook_before_a_block_may_change_what_its_parts_hold():
    backbone = made("mamba2")
    before = agree_in_every_way(backbone)

    def fill(block, _):
        for p in block.parameters():
            p.data.copy_(values[p])

    block = backbone.layers[0]
    values = {p: 0.5 * p.detach() for p in block.parameters()}
    block.register_forward_pre_hook(fill)
    after = agree_in_every_way(backbone)
    assert not torch.allclose(before, after, rtol=1e-3)


def test_stock_parts_keep_their_twins_beside_one_that_is_hooked():
    backbone = made("mamba2")
    with torch.no_grad():
        whole = backbone.open(E)
        backbone.layers[0].mixer.in_proj.register_forward_hook(lambda *_: None)
        hooked = backbone.open(E)
    mixer = backbone.layers[0].mixer
    assert whole.linears.keys() - hooked.linears.keys() == {mixer.in_proj}
    assert whole.twins.keys() == hooked.twins.keys()
