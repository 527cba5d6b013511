"""Normalised weights by torchdeq's names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compat.maps import F64
from deqlm.compat import torchdeq as ours

OPTIONS = [
    {},
    {"norm_no_scale": True},
    {"norm_clip": True, "norm_clip_value": 0.3},
    {"norm_no_scale": True, "norm_target_norm": 0.5, "sn_n_power_iters": 3},
]


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.Conv2d(2, 3, 3), nn.ConvTranspose1d(2, 3, 2), nn.LayerNorm(3)).to(F64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_weights_are_those_of_torchdeq_and_its_state_dicts_are_read(kind: str, options: dict) -> None:
    theirs = pytest.importorskip("torchdeq")
    mine = layers()
    peer = copy.deepcopy(mine)
    ours.apply_norm(mine, kind, args=options)
    theirs.apply_norm(peer, kind, args=dict(options))
    mine.load_state_dict(peer.state_dict())
    theirs.reset_norm(peer)
    for a, b in zip(mine[:3], peer[:3], strict=True):
        torch.testing.assert_close(a.weight, b.weight)
    assert type(mine[3]) is nn.LayerNorm


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_weights_never_go_stale(kind: str) -> None:
    model = layers()
    ours.apply_norm(model, kind)
    model.eval()
    twin = copy.deepcopy(model)
    x = torch.ones(1, 5, dtype=F64)
    assert torch.equal(model[0](x), twin[0](x))
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    assert not torch.equal(model[0](x), twin[0](x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model[0](x), twin[0](x))


class Counted(nn.Module):
    """A parametrisation that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * weight


@pytest.mark.parametrize("recipe", [{"grad": 3}, {"ift": True}, {"n_states": 2, "core": "indexing"}])
def test_weights_are_computed_once_per_call_with_their_gradient(recipe: dict) -> None:
    layer = nn.Linear(6, 6, dtype=F64)
    plain = copy.deepcopy(layer)
    counted = Counted()
    nn.utils.parametrize.register_parametrization(layer, "weight", counted)
    counted.calls = 0
    ours.apply_norm(nn.Sequential(layer), "none")
    from deqlm.wrap.once import once_per_call_

    once_per_call_(layer)
    x = torch.randn(3, 6, dtype=F64)
    deq = ours.get_deq(f_max_iter=50, f_tol=1e-9, b_max_iter=100, **recipe)

    def solved(of: nn.Module, scale: float) -> Tensor:
        states, _ = deq(lambda z: torch.tanh(scale * nn.functional.linear(z, of.weight) + x), torch.zeros_like(x))
        return states[-1]

    solved(layer, 1.0).sum().backward()
    assert counted.calls == 1
    solved(plain, 0.5).sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, plain.weight.grad)
    layer.weight.sum()
    assert counted.calls == 2, "outside of a call each access computes"
    with torch.no_grad():
        before = solved(layer, 1.0)
        layer.parametrizations.weight.original.mul_(0.5)
        assert not torch.equal(before, solved(layer, 1.0))


def test_spectral_norm_moves_once_per_call() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6))
    ours.apply_norm(layer, "spectral_norm", norm_no_scale=True)
    twin = copy.deepcopy(layer)
    norm, other = (each[0].parametrizations.weight[0] for each in (layer, twin))
    _ = twin[0].weight
    ours.get_deq(f_max_iter=20, f_tol=1e-4)(lambda z: torch.tanh(0.5 * layer(z) + 1), torch.zeros(2, 6))
    assert torch.equal(norm.u, other.u)
    assert torch.equal(norm.v, other.v)


def test_layers_are_chosen_by_name_and_type() -> None:
    model = nn.ModuleDict({"embedding": nn.Linear(3, 3), "out": nn.Linear(3, 3), "body": nn.Linear(3, 3)})
    ours.apply_norm(model, filter_out="embed", prefix_filter_out=["out"])
    assert [name for name, part in model.items() if nn.utils.parametrize.is_parametrized(part)] == ["body"]
    ours.remove_norm(model)
    assert not any(nn.utils.parametrize.is_parametrized(part) for part in model.values())

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))

    ours.register_norm_module(Mine, "weight_norm", ["up", "down"], [0, 1])
    mine = Mine()
    ours.apply_norm(mine, norm_no_scale=True)
    torch.testing.assert_close(mine.up.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(mine.down.norm(dim=0), torch.ones(2))


def test_a_weight_of_zero_stays() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(layer)
    ours.apply_norm(model)
    assert model[0].weight.eq(0).all()
    model[0].weight.sum().backward()
    assert model[0].parametrizations.weight.original1.grad.isfinite().all()


class Halved:
    """A norm of one's own, with torchdeq's methods."""

    _target_modules = {nn.Linear: ("weight", 0)}

    @classmethod
    def apply(cls, module: nn.Module, deq_args, share: float = 0.5) -> Halved:
        made = cls()
        made.share = deq_args.get("share", share)
        made(module)
        return made

    def __call__(self, module: nn.Module) -> None:
        module.weight.data.mul_(self.share)

    def remove(self, module: nn.Module) -> None:
        module.weight.data.div_(self.share)


def test_a_norm_of_ones_own_is_applied_reset_and_removed() -> None:
    ours.register_norm("halved", Halved)
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    ours.apply_norm(model, "halved")
    ours.reset_deq(model)
    assert torch.equal(model[0].weight, before / 4)
    ours.remove_norm(model)
    assert torch.equal(model[0].weight, before / 2)


@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        ("weightnorm", {}, KeyError, "did you mean 'weight_norm'"),
        ("weight_norm", {"clip_vale": 1.0}, TypeError, "did you mean 'clip_value'"),
        ("weight_norm", {"norm_clip_value": 0.0}, ValueError, "clip_value must be > 0"),
        ("spectral_norm", {"n_power_iterations": 0}, ValueError, "n_power_iterations must be"),
    ],
)
def test_bad_options_of_a_norm_are_refused(kind: str, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ours.apply_norm(layers(), kind, **options)
