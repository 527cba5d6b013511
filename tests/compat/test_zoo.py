"""The ways in which models of torchdeq's zoo call it, each trained for two steps, beside torchdeq itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compat.maps import F64
from deqlm.compat import torchdeq as ours


def arguments(library: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=6)
    library.add_deq_args(parser)
    return parser.parse_args(words)


class Flow(nn.Module):
    """Optical flow: a recurrent cell, several states, a loss over all of them, evaluations drawn per call."""

    words = ("--f_solver", "simple_fixed_point_iter", "--f_max_iter", "6", "--n_states", "2", "--norm_type", "none")

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.library, args = library, arguments(library, *self.words)
        self.cell = nn.GRUCell(4, 6, dtype=F64)
        library.apply_norm(self.cell, args=args)
        self.deq = library.get_deq(args)

    def loss(self, x: Tensor) -> Tensor:
        states, _ = self.deq(lambda h: self.cell(x, h), x.new_zeros(len(x), 6), solver_kwargs={"f_max_iter": 8})
        return self.library.fp_correction(F.mse_loss, (states, torch.ones(len(x), 6, dtype=F64)), gamma=0.8)


class Scales(nn.Module):
    """Images on two scales: a list of states, quasi-Newton, phantom steps, weight norm of all but the head."""

    words = ("--f_solver", "broyden", "--f_max_iter", "40", "--f_tol", "1e-11", "--grad", "5", "--tau", "0.5")

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.library, args = library, arguments(library, *self.words)
        self.fine, self.coarse = nn.Conv2d(2, 2, 3, padding=1, dtype=F64), nn.Conv2d(2, 2, 3, padding=1, dtype=F64)
        self.head = nn.Linear(2, 3, dtype=F64)
        library.apply_norm(self, args=args, filter_out=["head"])
        with torch.no_grad():
            for conv in (self.fine, self.coarse):
                shrink(conv, 0.2)
        self.deq = library.get_deq(args)

    def loss(self, x: Tensor) -> Tensor:
        self.library.reset_deq(self)
        x = x[:, :2, None, None].expand(-1, -1, 4, 4)

        def f(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            up = F.interpolate(b, scale_factor=2.0)
            return torch.tanh(self.fine(a) + 0.2 * up + x), torch.tanh(self.coarse(b) + 0.2 * F.avg_pool2d(a, 2))

        states, info = self.deq(f, [torch.zeros(len(x), 2, n, n, dtype=F64) for n in (4, 2)])
        assert info["rel_lowest"].shape == info["nstep"].shape == (len(x),)
        return self.head(states[-1][1].mean((2, 3))).square().mean()


class Words(nn.Module):
    """A transformer of one layer: implicit gradient, checkpoints, Jacobian penalty."""

    words = ("--f_max_iter", "300", "--f_tol", "1e-12", "--b_max_iter", "300", "--b_tol", "1e-12", "--ift")

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.library, args = library, arguments(library, *self.words, "--core", "indexing")
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, dtype=F64)
        self.deq = library.get_deq(args)

    def f(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.3 * self.layer(z + x)

    def loss(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 3, -1)
        states, info = self.deq(lambda z: self.library.mem_gc(self.layer, (z + x,)) * 0.3, torch.zeros_like(x))
        assert info["abs_lowest"].max() < 1e-11
        if not self.training:
            return states[-1].square().mean()
        z = states[-1].detach().requires_grad_()
        torch.manual_seed(3)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            penalty = self.library.jac_reg(self.f(z, x), z, vecs=1)
        return states[-1].square().mean() + 0.1 * penalty


class Field(nn.Module):
    """An implicit representation: few steps, spectral norm, more evaluations at evaluation, the radius told."""

    words = ("--f_max_iter", "15", "--f_tol", "1e-11", "--grad", "5", "--tau", "0.5", "--norm_type", "spectral_norm")

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.library = library
        args = arguments(library, *self.words, "--eval_factor", "3", "--norm_no_scale", "--norm_target_norm", "0.5")
        self.layer = nn.Linear(4, 4, dtype=F64)
        library.apply_norm(self.layer, args=args)
        self.deq = library.get_deq(args)

    def loss(self, x: Tensor) -> Tensor:
        self.library.reset_norm(self)
        states, _ = self.deq(lambda z: torch.sin(self.layer(z) + x), torch.zeros_like(x))
        if not self.training:
            _, info = self.deq(lambda z: torch.sin(self.layer(z) + x), torch.zeros_like(x), sradius_mode=True)
            assert info["sradius"].shape == (len(x),)
        return states[-1].square().mean()


def shrink(layer: nn.Module, factor: float) -> None:
    """Scale a normalised weight by either library's parameter."""
    if hasattr(layer, "weight_g"):
        layer.weight_g.mul_(factor)
    else:
        layer.parametrizations.weight.original0.mul_(factor)  # type: ignore[union-attr]


def trained(model: Callable[[ModuleType], Any], library: ModuleType, state: dict[str, Tensor] | None) -> tuple:
    torch.manual_seed(0)
    made = model(library)
    if state is not None:
        made.load_state_dict(state)
    first = {key: value.clone() for key, value in made.state_dict().items()}
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    torch.manual_seed(1)
    x = torch.randn(3, 4, dtype=F64)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = made.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    made.eval()
    with torch.no_grad():
        losses.append(made.loss(x).item())
    return losses, first


@pytest.mark.filterwarnings("ignore::deqlm.ConvergenceWarning")
@pytest.mark.parametrize("model", [Flow, Scales, Words, Field], ids=lambda model: model.__name__)
def test_a_model_trains_as_with_torchdeq(model: Callable[[ModuleType], Any]) -> None:
    theirs = pytest.importorskip("torchdeq")
    wanted, state = trained(model, theirs, None)
    got, _ = trained(model, ours, state)
    assert got == pytest.approx(wanted, rel=1e-8)
    assert got[2] < got[0]


def test_a_model_with_variational_dropout_trains() -> None:
    drop = ours.VariationalDropout1d(0.3)
    layer = nn.Linear(4, 4)
    deq = ours.get_deq(f_max_iter=60, f_tol=1e-5, n_states=2, ift=True, b_max_iter=100)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x, losses = torch.randn(8, 3, 4), []
    for _ in range(30):
        ours.reset_deq(nn.ModuleList([layer, drop]))
        states, _ = deq(lambda z: torch.tanh(drop(0.4 * layer(z)) + x), torch.zeros_like(x))
        loss = ours.fp_correction(lambda z: (z - 0.5).square().mean(), (states,))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
