"""A stack of layers that contracts, whatever its weights are."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from deqlm.layers.lipschitz import ACTIVATIONS, WEIGHTED, lipschitz_bound, weight_bound
from deqlm.ops.checks import require

__all__ = ["Contractive"]


class Contractive(nn.Module):
    """A layer whose weights are scaled down, where they need it, until it is Lipschitz with a constant of ``bound``.

    Then z = layer(z + x) has exactly one solution, plain iteration finds it from everywhere, and so does every row.
    Each weight W becomes W min(1, t / s(W)), with s the bound of `lipschitz_bound` and t the same for all, such that
    the product with the slopes of the activations is ``bound``. It is a parametrisation of the given layers, computed
    once per call of a `deqlm.DEQ`; singular values cost O(n^3) for a weight of n rows.

    Args:
        layer: ``nn.Linear``, ``nn.Conv1d`` to ``nn.Conv3d`` with zero padding, activations, and ``nn.Sequential`` of
            them; it is changed.
        bound: the constant, in (0, 1).

    Raises:
        TypeError: a layer whose bound is not known.
        ValueError: a bound outside its range, or no weight.

    Reference:
        H. Gouk et al. (2021), Regularisation of neural networks by enforcing Lipschitz continuity, section 3 (scaling
        down what is larger).

    Examples:
        >>> import deqlm, torch
        >>> layer = Contractive(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), bound=0.5)
        >>> layer.lipschitz_bound() <= 0.5
        True
        >>> bool(deqlm.DEQ(layer)(torch.randn(2, 4), with_stats=True)[1].converged.all())
        True
    """

    def __init__(self, layer: nn.Module, bound: float = 0.9) -> None:
        super().__init__()
        ok = isinstance(bound, int | float) and not isinstance(bound, bool) and 0 < bound < 1
        require(ok, "bound", bound, "in (0, 1)")
        lipschitz_bound(layer)
        parts = list(layer.modules())
        weighted = [part for part in parts if isinstance(part, WEIGHTED)]
        require(bool(weighted), "layer", type(layer).__name__, "one with a weight")
        learnt = [part for part in parts if isinstance(part, nn.PReLU)]
        require(not learnt, "layer", "PReLU", "of activations whose slope is not learnt")
        self.layer = layer
        self.bound = float(bound)
        # float32 rounds the scaled weight by a few parts in ten million
        share = (1 - 1e-6) * (self.bound / math.prod(map(_largest_slope, parts))) ** (1 / len(weighted))
        for part in weighted:
            parametrize.register_parametrization(part, "weight", _Bounded(part, share))

    def forward(self, z: Any) -> Any:
        """Return the layer's value."""
        return self.layer(z)

    def lipschitz_bound(self) -> float:
        """Return a Lipschitz constant, at most ``bound`` in float32 and float64."""
        return lipschitz_bound(self.layer)

    def extra_repr(self) -> str:
        return f"bound={self.bound}"


class _Bounded(nn.Module):
    """A weight of ``layer`` scaled down until its bound is at most ``share``."""

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple, lest it be a part of its own weight
        self.share = share

    def forward(self, weight: Tensor) -> Tensor:
        """Return the scaled weight."""
        size = weight_bound(self.layer[0], weight)
        return weight * (self.share / size.clamp(min=self.share))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the weight that is scaled; torch asks for it when one is assigned."""
        return weight


def _largest_slope(part: nn.Module) -> float:
    """Return the slope of an activation in train() or eval(), whichever is larger; 1 for anything else."""
    if isinstance(part, nn.Dropout):
        return 1 / (1 - part.p)
    return ACTIVATIONS[type(part)](part) if type(part) in ACTIVATIONS else 1.0
