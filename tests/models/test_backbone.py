"""The backbone: z -> norm_f(blocks(z, u)), u once per call, causal, the explicit twin, any mixer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import deqlm
from deqlm.layers import Attention, Block, LlamaMLP, Mamba2, NormedLinear
from deqlm.models import Backbone
from deqlm.wrap.inject import Inject
from models.families import BLOCKS, WIDTH


@pytest.fixture(params=BLOCKS)
def backbone(request):
    return Backbone([BLOCKS[request.param]() for _ in range(3)]).double()


def embeddings(batch=2, length=6):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def test_it_is_the_norm_of_the_blocks_with_u_in_each(backbone):
    e, z = embeddings(), embeddings()
    u = backbone.project(e)
    want = z
    for block in backbone.layers:
        want = block(want, u)
    assert torch.equal(backbone(z, u), backbone.norm_f(want))


def test_u_is_a_projection_of_the_normed_embeddings(backbone):
    e = embeddings()
    nn.init.normal_(backbone.injection.bias)
    nn.init.normal_(backbone.injection_norm.weight)
    scaled = e / (e.square().mean(-1, keepdim=True) + 1e-5).sqrt() * backbone.injection_norm.weight
    want = scaled @ backbone.injection.weight.T + backbone.injection.bias
    torch.testing.assert_close(backbone.project(e), want, rtol=1e-12, atol=1e-12)


def test_the_explicit_twin_has_the_same_blocks_and_no_injection(backbone):
    twin = Backbone(list(copy.deepcopy(backbone.layers)), implicit=False, weight_norm=True, depth_scale=False).double()
    twin.norm_f.load_state_dict(backbone.norm_f.state_dict())
    e = embeddings()
    # the bare projection of nothing: u = 0 injects nothing
    u = torch.zeros(*e.shape[:2], backbone.d_inject, dtype=e.dtype)
    torch.testing.assert_close(twin(e), backbone(e, u), rtol=1e-12, atol=1e-12)
    assert not [name for name in twin.state_dict() if "injection" in name]
    with pytest.raises(TypeError, match="no injection"):
        twin.project(e)


def test_weights_are_normalised_in_implicit_models_only():
    kinds = {
        implicit: type(Backbone([BLOCKS["llama"]()], implicit=implicit).layers[0].mixer.wq)
        for implicit in (True, False)
    }
    assert kinds == {True: NormedLinear, False: nn.Linear}
    assert type(Backbone([BLOCKS["llama"]()], weight_norm=False).layers[0].mixer.wq) is nn.Linear


@pytest.mark.parametrize("weight_norm", [True, False])
def test_output_projections_are_scaled_by_depth(weight_norm):
    torch.manual_seed(0)
    plain = [BLOCKS["llama"]() for _ in range(2)]
    want = [block.mixer.out_proj.weight.clone() / 2 for block in plain]
    scaled = Backbone(plain, weight_norm=weight_norm)
    for block, weight in zip(scaled.layers, want, strict=True):
        torch.testing.assert_close(block.mixer.out_proj.weight, weight)
    assert not scaled.injection.bias.any()


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5), (4,), ()])
def test_chunks_equal_the_whole(backbone, cuts):
    e, z = embeddings(), embeddings()
    u, cache, parts = backbone.project(e), backbone.empty_cache(2), []
    for first, end in zip((0, *cuts), (*cuts, 6), strict=True):
        y, cache = backbone.forward_chunk(z[:, first:end], u[:, first:end], cache)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), backbone(z, u), rtol=1e-12, atol=1e-12)


def test_later_tokens_are_not_seen(backbone):
    z, u = embeddings(), backbone.project(embeddings())
    before = backbone(z, u)
    z[:, 4:] += 1
    u[:, 4:] += 1
    after = backbone(z, u)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_families_can_be_mixed_where_the_injection_fits():
    mixer = Mamba2(WIDTH, d_state=4, headdim=8)
    attention = Attention(WIDTH, n_head=2)
    assert mixer.d_inject != attention.d_inject
    with pytest.raises(ValueError, match="d_inject of the blocks must be one width"):
        Backbone([Block(mixer), Block(attention)])
    explicit = Block(attention, mlp=LlamaMLP(WIDTH, 8))
    Backbone([explicit, Block(Attention(WIDTH, n_head=4))])


class Mean(nn.Module):
    """A mixer from elsewhere: the mean of all tokens so far."""

    d_model = d_inject = WIDTH

    def forward(self, z, u=None, context=None):
        return self.forward_chunk(z, u, self.empty_cache(len(z)), context)[0]

    def forward_chunk(self, z, u, cache, context=None):
        total, count = cache
        x = (z if u is None else z + u).cumsum(1) + total[:, None]
        counts = count + torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
        return x / counts[None, :, None], (x[:, -1], counts[-1])

    def empty_cache(self, batch):
        return torch.zeros(batch, WIDTH, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def test_any_mixer_fits():
    backbone = Backbone([Block(Mean())]).double()
    e, z = embeddings(), embeddings()
    u = backbone.project(e)
    first, cache = backbone.forward_chunk(z[:, :2], u[:, :2], backbone.empty_cache(2))
    rest, _ = backbone.forward_chunk(z[:, 2:], u[:, 2:], cache)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), backbone(z, u), rtol=1e-12, atol=1e-12)


class Projection(Inject):
    """Injects what a backbone makes of the embeddings."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = [backbone]

    def forward(self, x):
        return self.backbone[0].project(x)

    def join(self, layer, z, u, args, kwargs):
        return layer(z, u, *args, **kwargs)


def test_it_is_a_layer_for_a_deq(backbone):
    def start(u):
        return u.new_zeros(*u.shape[:2], WIDTH)

    deq = deqlm.DEQ(backbone, inject=Projection(backbone), start=start, on_failure="ignore")
    assert deq(embeddings()).shape == (2, 6, WIDTH)


def test_it_can_be_copied_pickled_and_saved(backbone):
    e, z = embeddings(), embeddings()
    want = backbone(z, backbone.project(e))
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other(z, other.project(e)), want)
    assert "layers.0.norm.weight" in backbone.state_dict()
    assert {"injection.bias", "injection.weight_g", "injection.weight_v"} < set(backbone.state_dict())


def test_no_block_is_no_backbone():
    with pytest.raises(ValueError, match="at least one Block"):
        Backbone([])
