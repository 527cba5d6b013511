"""Any causal layer has modes: with chunks of its own, or evaluated on the committed prefix and the chunk."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ
from deqlm.sequence.causal import CausalCall
from deqlm.sequence.chunked_solve import _joined
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from deqlm.wrap.inject import Add
from deqlm_solvers import FixedPoint, Solution, Stop

WIDTH, LENGTH = 6, 11
MODES = [Simultaneous(), Sequential(), Chunked(3), Chunked(LENGTH)]
EXACT = Stop(max_iter=300, rtol=1e-12)


class Smooth(nn.Module):
    """tanh of a linear map of the tokens' running mean; no chunks of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()
        self.linear.weight.data.mul_(0.8)

    def forward(self, z, gain=None):
        counts = torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
        y = torch.tanh(self.linear(z.cumsum(1) / counts[:, None]) + 0.5 * z)
        return y if gain is None else y * gain


class SmoothInChunks(Smooth):
    """The same, going on from sums."""

    chunks = 0

    def forward_chunk(self, z, u, cache, gain=None):
        self.chunks += 1
        total, count = cache
        z = z if u is None else z + u
        sums = z.cumsum(1) + total[:, None]
        counts = count + torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
        y = torch.tanh(self.linear(sums / counts[:, None]) + 0.5 * z)
        return y if gain is None else y * gain, (sums[:, -1], counts[-1])

    def empty_cache(self, batch):
        return torch.zeros(batch, WIDTH, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


class WrongChunks(SmoothInChunks):
    def forward_chunk(self, z, u, cache, gain=None):
        y, _ = super().forward_chunk(z, u, cache, gain)
        return y, cache


@pytest.fixture(params=[Smooth, SmoothInChunks])
def layer(request):
    return request.param()


def wrap(layer, mode, **options):
    return deqlm.DEQ(layer, causal=True, mode=mode, **{"solver": FixedPoint(), "stop": EXACT, **options})


def inputs(batch=3):
    return torch.randn(batch, LENGTH, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_modes_find_the_same_point_and_gradient(layer, mode):
    x = inputs().requires_grad_()
    want = wrap(layer, "simultaneous")(x)
    wanted = torch.autograd.grad(want.square().sum(), [x, *layer.parameters()])
    y, sol = wrap(layer, mode)(x, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    for got, right in zip(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("rtol", [0.1, 1e-3])
def test_the_joined_point_has_the_reported_residual(layer, mode, rtol):
    x = inputs()
    with torch.no_grad():
        z, sol = wrap(layer, mode, stop=Stop(rtol=rtol))(x, with_stats=True)
        y = layer(z + x)
    residual = (y - z).norm(dim=2)
    torch.testing.assert_close(sol.residual, residual.amax(1), rtol=1e-9, atol=1e-12)
    assert (residual <= rtol * y.norm(dim=2) * (1 + 1e-9)).all()
    assert sol.token_steps.shape == (3, LENGTH)


def test_a_layer_with_chunks_goes_on_from_its_cache():
    layer = SmoothInChunks()
    with torch.no_grad():
        _, sol = wrap(layer, Sequential())(inputs(1), with_stats=True)
    # the probe takes two, and each but the last commit is an evaluation that was made already
    assert layer.chunks == sol.cost.evaluations + 2


@pytest.mark.parametrize("inject", ["add", "argument"])
@pytest.mark.parametrize("kind", [Smooth, SmoothInChunks])
def test_arguments_of_the_layer_are_cut_like_the_input(inject, kind):
    class Layer(kind):
        def forward(self, z, *rest):
            *u, gain = rest
            return super().forward(z + u[0] if u else z, gain)

    layer, x, gain = Layer(), inputs(), torch.rand(3, LENGTH, 1, dtype=torch.float64)
    with torch.no_grad():
        want = wrap(layer, Simultaneous(), inject=inject)(x, gain)
        got = wrap(layer, Chunked(4), inject=inject)(x, gain)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_masked_tokens_do_not_count(layer, mode):
    x = inputs()
    mask = torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 7, 4])[:, None]
    with torch.no_grad():
        want = wrap(layer, "simultaneous")(x)
        got, sol = wrap(layer, mode)(x, token_mask=mask, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(got[mask], want[mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("gradient", [deqlm.Phantom(2), deqlm.OneStep()], ids=str)
def test_truncated_gradients_see_the_whole_sequence(layer, mode, gradient):
    x = inputs()
    grads = []
    for how in (Simultaneous(), mode):
        layer.zero_grad()
        wrap(layer, how, gradient=gradient)(x).square().sum().backward()
        grads.append(layer.linear.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_every_token_must_pass_with_causal():
    def chain(z):
        """Token t is half of token t - 1: the last tokens move late."""
        return torch.cat([torch.ones_like(z[:, :1]), 0.5 * z[:, :-1]], dim=1)

    with torch.no_grad():
        x = torch.zeros(1, 30, 1, dtype=torch.float64)
        late = deqlm.DEQ(chain, causal=True, solver=FixedPoint(), stop=Stop(rtol=1e-3))(x)
        early = deqlm.DEQ(chain, solver=FixedPoint(), stop=Stop(rtol=1e-3))(x)
    assert late.bool().all()
    assert not early.bool().all()


def test_layers_that_see_later_tokens_are_refused():
    bidirectional = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, dropout=0.0).double()
    for mode in (Simultaneous(), Chunked(3)):
        with pytest.raises(ValueError, match="token 0 of this layer sees token 1"):
            wrap(bidirectional, mode)(inputs())


def test_chunks_that_differ_from_the_layer_are_refused():
    layer = WrongChunks()
    wrap(layer, Simultaneous())(inputs())
    with pytest.raises(ValueError, match="forward_chunk does not return what the layer does"):
        wrap(layer, Chunked(3))(inputs())


def test_layers_that_depend_on_the_length_are_refused_where_tokens_are_cut():
    def layer(z):
        return torch.tanh(z / z.shape[1])

    wrap(layer, Simultaneous())(inputs())
    with pytest.raises(ValueError, match="the layer on a prefix"):
        wrap(layer, Sequential())(inputs())


def test_dropout_is_one_mask_in_simultaneous_mode_and_refused_in_others():
    layer = nn.Sequential(Smooth(), nn.Dropout(0.4))
    torch.manual_seed(3)
    want = deqlm.DEQ(layer, solver=FixedPoint(), stop=EXACT.replace(per="token"))(inputs())
    torch.manual_seed(3)
    torch.testing.assert_close(wrap(layer, Simultaneous())(inputs()), want)
    with pytest.raises(ValueError, match="mode must be Simultaneous"):
        wrap(layer, Sequential())(inputs())
    wrap(layer.eval(), Sequential())(inputs())


@pytest.mark.parametrize("length", [1, 2])
def test_short_sequences_are_fine(layer, length):
    assert wrap(layer, Sequential())(inputs()[:, :length]).shape == (3, length, WIDTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sequential"}, "mode must be 'simultaneous' without causal=True"),
        ({"causal": "yes"}, "causal must be True or False"),
        ({"causal": True, "mode": {"name": "chunked", "size": 0}}, "size must be a whole number >= 1"),
        ({"causal": True, "mode": "chunky"}, "did you mean 'chunked'"),
        ({"causal": True, "batch_dims": 0}, "batch_dims must be 1 with causal=True"),
        ({"causal": True, "stop": Stop(per="leaf")}, "per must be 'token' for a causal map"),
        ({"causal": True, "stop": Stop(per="token", token_dim=2)}, "token_dim must be 1 for a causal map"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        deqlm.DEQ(nn.Identity(), **options)


def test_states_that_are_no_sequence_are_refused():
    with pytest.raises(ValueError, match="the state must be one real tensor for causal=True"):
        wrap(lambda z: z, Simultaneous())({"a": inputs()})
    with pytest.raises(ValueError, match=r"the state must be of shape \(B, L, ...\)"):
        wrap(lambda z: z, Simultaneous())(inputs()[:, :0])


def test_unrolling_is_refused_where_tokens_are_cut(layer):
    budget = {"stop": Stop(max_iter=3, rtol=0), "gradient": "unrolled"}
    assert wrap(layer, Simultaneous(), **budget)(inputs()).requires_grad
    with pytest.raises(ValueError, match="mode=Simultaneous"):
        wrap(layer, Chunked(2), **budget)(inputs())


class Strict(nn.Module):
    """Causal, and particular about what it is given."""

    def __init__(self, complaint: type[Exception], tokens: int | None = None, *, noisy: bool = False) -> None:
        super().__init__()
        self.complaint, self.tokens, self.noisy = complaint, tokens, noisy

    def forward(self, z: Tensor) -> Tensor:
        if self.tokens is not None and z.shape[1] != self.tokens:
            raise self.complaint(f"{z.shape[1]} tokens")
        return 0.5 * z.cos()


@pytest.mark.parametrize("complaint", [AssertionError, KeyError, TypeError, RuntimeError, ZeroDivisionError])
def test_a_layer_that_refuses_the_probe_is_solved_all_the_same(complaint: type[Exception]) -> None:
    layer = Strict(complaint, tokens=20)
    _, sol = DEQ(layer, causal=True)(torch.randn(2, 20, 3), with_stats=True)
    assert sol.converged.all()
    with pytest.raises(ValueError, match=rf"mode must be 'simultaneous': .* \({complaint.__name__}: .*tokens"):
        DEQ(layer, causal=True, mode=Chunked(5))(torch.randn(2, 20, 3))
    with pytest.raises(complaint):
        DEQ(Strict(complaint, tokens=5), causal=True)(torch.randn(2, 20, 3))


def test_buffers_of_a_layer_with_chunks_move_once_per_call() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            self.calls.data.add_(1)
            return 0.5 * z.cos()

        def forward_chunk(self, z: Tensor, u: Tensor, cache: object) -> tuple[Tensor, object]:
            return self(z if u is None else z + u), cache

    for mode in (Chunked(4), "sequential", "simultaneous"):
        layer = Counting()
        with torch.no_grad():
            DEQ(layer, causal=True, mode=mode, inject="add")(torch.zeros(2, 12, 3))
        assert layer.calls == 1


def test_sparse_arguments_are_cut_along_the_tokens() -> None:
    shift = torch.randn(2, 12, 3)

    class Shifted(nn.Module):
        def forward(self, z: Tensor, shift: Tensor) -> Tensor:
            return 0.5 * torch.tanh(z + shift.to_dense()) if shift.is_sparse else 0.5 * torch.tanh(z + shift)

    x, stop = torch.randn(2, 12, 3), Stop(rtol=1e-6)
    with torch.no_grad():
        want = DEQ(Shifted(), causal=True, stop=stop)(x, shift)
        got = DEQ(Shifted(), causal=True, stop=stop, mode=Chunked(5))(x, shift.to_sparse())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_probe_is_made_where_the_state_is() -> None:
    x = torch.randn(2, 20, 3)
    call = CausalCall(Strict(ValueError), Add(), (x, (), {}), x.shape, x.device)
    with torch.device("meta"):
        call.probe(torch.zeros_like(x), chunks=True)


def test_a_statistic_that_chunks_cannot_join_is_unknown_of_the_whole():
    @dataclass(frozen=True, eq=False)
    class Later(Solution):
        drift: Tensor | None = None

    one, count = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    parts = [Later(one, one, one, count, count.to(torch.int8), drift=one) for _ in range(2)]
    joined = _joined(parts, one)
    assert joined.steps.tolist() == [2, 2]
    assert getattr(joined, "drift", None) is None
