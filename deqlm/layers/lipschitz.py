"""Upper bounds of Lipschitz constants in the Euclidean norm, for stacks of known layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

__all__ = ["ACTIVATIONS", "WEIGHTED", "lipschitz_bound", "weight_bound"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose bound is that of their weight."""

ACTIVATIONS: dict[type[nn.Module], Callable[[Any], float]] = {
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.Tanh, nn.Softplus, nn.Softsign, nn.CELU, nn.Hardtanh), lambda a: 1.0),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), lambda a: 1.0),
    nn.Sigmoid: lambda a: 0.25,
    nn.SiLU: lambda a: 1.0999,  # the largest slope, near 2.3994, rounded up
    nn.GELU: lambda a: 1.1290,  # at the root of two, rounded up
    nn.ELU: lambda a: max(1.0, a.alpha),
    nn.LeakyReLU: lambda a: max(1.0, abs(a.negative_slope)),
    nn.PReLU: lambda a: max(1.0, float(a.weight.detach().abs().max())),
    nn.Dropout: lambda a: 1 / (1 - a.p) if a.training else 1.0,
}
"""Layers without a matrix, and the largest slope of each."""


def lipschitz_bound(module: nn.Module) -> float:
    """Return a number L with ||f(a) - f(b)|| <= L ||a - b|| for all a and b, for a stack of known layers.

    Linear layers have the largest singular value of their weight; convolutions with zero padding a bound by their
    kernel, which no input size exceeds; activations their largest slope; a ``nn.Sequential`` the product of its parts;
    a module with a method ``lipschitz_bound()`` what that returns. Weights are looked at in float64, as they are now.

    Raises:
        TypeError: a layer whose bound is not known, or that has none, such as a norm or attention.

    Reference:
        Y. Tsuzuku, I. Sato, M. Sugiyama (2018), Lipschitz-margin training, NeurIPS, section 4 (convolutions).

    Examples:
        >>> import torch
        >>> layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        >>> round(lipschitz_bound(layer) / torch.linalg.matrix_norm(layer[0].weight, 2).item(), 4)
        1.0
    """
    own: Any = getattr(module, "lipschitz_bound", None)
    if own is not None:
        return float(own())
    kind = type_before_parametrizations(module)
    if kind is nn.Sequential:
        return math.prod(lipschitz_bound(part) for part in module.children())
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind](module)
    if kind in WEIGHTED:
        return float(weight_bound(module, module.weight.detach().double()))  # type: ignore[union-attr]
    known = ", ".join(sorted(k.__name__ for k in (*WEIGHTED, *ACTIVATIONS, nn.Sequential)))
    raise TypeError(
        f"no Lipschitz bound is known of {kind.__name__}: known are {known}, and lipschitz_bound() of its own"
    )


def weight_bound(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return the bound of a layer of `WEIGHTED` with another weight, differentiable.

    Raises:
        TypeError: a convolution that does not pad by zeros.
    """
    if isinstance(layer, nn.Linear):
        return torch.linalg.matrix_norm(weight, 2)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if layer.padding_mode != "zeros":
        raise TypeError(f"no Lipschitz bound is known of {layer.padding_mode!r} padding, which repeats its input")
    groups = weight.unflatten(0, (layer.groups, -1))
    # an entry of the input stands in at most so many windows
    windows = math.prod(
        math.ceil(size / step) if gap == 1 else size
        for size, step, gap in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )
    by_windows = math.sqrt(windows) * torch.linalg.matrix_norm(groups.flatten(2), 2).amax()
    places = tuple(range(3, groups.dim()))
    size = groups.abs().sum(places)
    by_sums = (size.sum(1).amax() * size.sum(2).amax()).sqrt()
    return torch.minimum(by_windows, by_sums)
