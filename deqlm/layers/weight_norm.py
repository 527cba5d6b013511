"""Weight normalisation W = g v / ||v|| per output row, as layers whose only state is g, v and the bias.

Nothing is stored but parameters: the effective weight is computed when it is asked for, or once per call by a
`deqlm.layers.Context`. So models can be copied, pickled, saved and sharded as a whole.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.ops.precision import wide

__all__ = ["Normed", "NormedConv1d", "NormedLinear", "fold_weight_norm_", "weight_norm_"]

M = TypeVar("M", bound=nn.Module)


class Normed(nn.Module):
    """A layer with weight W = g v / ||v||, the norm taken over all dimensions but the first.

    A row of v that is zero has the weight zero. The norm is computed in float32 or wider.

    Args:
        layer: where weight and bias come from; g starts as ||v||, so the weight does not change by a bit.

    Reference:
        Salimans and Kingma (2016), Weight normalization, equation 2.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        v = layer.weight.detach().clone()
        self.bias = layer.bias
        self.weight_g = nn.Parameter(_row_norms(v).to(v.dtype), requires_grad=layer.weight.requires_grad)
        self.weight_v = nn.Parameter(v, requires_grad=layer.weight.requires_grad)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The effective weight, computed anew."""
        norms = _row_norms(self.weight_v)
        scale = self.weight_g.to(norms.dtype) / norms.masked_fill(norms == 0, 1)
        return self.weight_v * scale.to(self.weight_v.dtype)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply the weight by ``factor``, as if that had been done before normalisation."""
        self.weight_g.mul_(factor)
        self.weight_v.mul_(factor)

    def fold(self) -> nn.Module:
        """Return the plain layer with the effective weight as its parameter."""
        raise NotImplementedError


class NormedLinear(Normed):
    """``nn.Linear`` with a normalised weight.

    Examples:
        >>> plain = nn.Linear(3, 2)
        >>> layer = NormedLinear(plain)
        >>> torch.equal(layer.weight, plain.weight), sorted(layer.state_dict())
        (True, ['bias', 'weight_g', 'weight_v'])
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return W x + bias, with ``weight`` for W if it is computed already."""
        return F.linear(x, self.weight if weight is None else weight, self.bias)

    def fold(self) -> nn.Linear:
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return _filled(plain, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class NormedConv1d(Normed):
    """``nn.Conv1d`` with a normalised weight.

    Examples:
        >>> plain = nn.Conv1d(4, 4, 3, groups=4)
        >>> layer = NormedConv1d(plain)
        >>> layer.weight_g.shape, torch.equal(layer(torch.ones(1, 4, 5)), plain(torch.ones(1, 4, 5)))
        (torch.Size([4, 1, 1]), True)
    """

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__(layer)
        self.options = {
            **{"in_channels": layer.in_channels, "out_channels": layer.out_channels, "groups": layer.groups},
            **{"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding},
            **{"dilation": layer.dilation, "padding_mode": layer.padding_mode},
        }

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the convolution, with ``weight`` for W if it is computed already."""
        shape = nn.Conv1d(**self.options, bias=False, device="meta")
        return shape._conv_forward(x, self.weight if weight is None else weight, self.bias)

    def fold(self) -> nn.Conv1d:
        return _filled(nn.Conv1d(**self.options, bias=self.bias is not None, device="meta"), self)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


NORMED: dict[type, type[Normed]] = {nn.Linear: NormedLinear, nn.Conv1d: NormedConv1d}
"""Exact types that are normalised, and by what."""


def weight_norm_(module: M) -> M | Normed:
    """Replace every ``nn.Linear`` and ``nn.Conv1d`` in ``module`` (exact types) by a normalised one, and return it.

    The module itself is changed; only where it is such a layer itself, a new one is returned.

    Examples:
        >>> model = weight_norm_(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)))
        >>> type(model[0]).__name__, type(fold_weight_norm_(model)[0]).__name__
        ('NormedLinear', 'Linear')
    """
    return _replace_(module, lambda layer: NORMED[type(layer)](layer) if type(layer) in NORMED else layer)


def fold_weight_norm_(module: nn.Module) -> nn.Module:
    """Undo `weight_norm_`: the effective weights become parameters of plain layers."""
    return _replace_(module, lambda layer: layer.fold() if isinstance(layer, Normed) else layer)


def _replace_(module: nn.Module, change: Any) -> Any:
    made: dict[nn.Module, nn.Module] = {}  # a layer that stands in two places stays one layer

    def changed(layer: nn.Module) -> nn.Module:
        if layer not in made:
            made[layer] = change(layer)
        return made[layer]

    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = changed(child)
    return changed(module)


def _filled(plain: Any, normed: Normed) -> Any:
    plain.weight = nn.Parameter(normed.weight.detach().clone(), requires_grad=normed.weight_v.requires_grad)
    plain.bias = normed.bias
    return plain.train(normed.training)


def _row_norms(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True, dtype=wide(v.dtype))
