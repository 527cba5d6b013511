"""Weight normalisation W = g v / ||v|| per output row, as layers whose only state is g, v and the bias.

Nothing is stored but parameters: the effective weight is computed when it is asked for, or once per call by a
`deqlm.layers.Context`. So models can be copied, pickled, saved and sharded as a whole. The layers are of the kinds that
other libraries look for, ``nn.Linear`` and ``nn.Conv1d``; what these do to a weight reaches g and v, or is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.layers.computed_weight import ComputedWeight
from deqlm.ops.checks import require
from deqlm.ops.native.library import PLAIN
from deqlm.ops.precision import wide

__all__ = ["Normed", "NormedConv1d", "NormedLinear", "fold_weight_norm_", "weight_norm_"]

M = TypeVar("M", bound=nn.Module)


class Normed(nn.Module):
    """A layer with weight W = g v / ||v||, the norm taken over all dimensions but the first.

    A row of v that is zero has the weight zero. The norm is computed in float32 or wider.

    Args:
        layer: where weight, bias and options come from; g starts as ||v||, so the weight does not change by a bit.

    Reference:
        Salimans and Kingma (2016), Weight normalization, equation 2.
    """

    plain: ClassVar[type[nn.Module]]
    """What the layer is with a folded weight."""
    bias: nn.Parameter | None

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        options = {name: value for name, value in vars(layer).items() if name not in self.__dict__}
        self.__dict__.update(options)
        v = layer.weight.detach().clone()
        self.register_parameter("bias", layer.bias)
        self.weight_g = nn.Parameter(_row_norms(v).to(v.dtype), requires_grad=layer.weight.requires_grad)
        self.weight_v = nn.Parameter(v, requires_grad=layer.weight.requires_grad)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The effective weight, computed anew; a change of it in place, ``.data`` included, changes g and v."""
        if type(self.weight_v) not in PLAIN:
            return self.effective_weight()
        if not torch.is_inference_mode_enabled():
            return ComputedWeight.of(self.effective_weight(), self)
        # tensors of inference mode do not tell of changes
        with torch.inference_mode(False), torch.no_grad():
            return ComputedWeight.of(self.effective_weight(), self)

    def made_of(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return what the weight is computed from, g and v."""
        return self.weight_g, self.weight_v

    def effective_weight(self) -> Tensor:
        """Return the weight, computed anew, as a plain tensor."""
        norms = _row_norms(self.weight_v)
        scale = self.weight_g.to(norms.dtype) / norms.masked_fill(norms == 0, 1)
        return self.weight_v * scale.to(self.weight_v.dtype)

    @torch.no_grad()
    def assign_(self, weight: Tensor) -> None:
        """Make ``weight`` the effective one: v becomes it, and g the norms of its rows.

        Raises:
            TypeError: no plain tensor of floating-point numbers, such as a quantised one.
            ValueError: another shape.
        """
        if type(weight) not in (*PLAIN, ComputedWeight) or not weight.is_floating_point():
            self._refuse(f"{type(weight).__name__} {getattr(weight, 'dtype', '')}".strip())
        shape, name = self.weight_v.shape, f"the weight of {type(self).__name__}"
        require(weight.shape == shape, name, tuple(weight.shape), f"of shape {tuple(shape)}")
        self.weight_v.copy_(weight)
        self.weight_g.copy_(_row_norms(self.weight_v))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.assign_(value)
        elif name == "qconfig":
            # torch.ao.quantization marks all layers, and passes over those of a subclass without a word
            self._refuse("a quantised tensor")
        else:
            super().__setattr__(name, value)

    def _refuse(self, what: str) -> None:
        raise TypeError(
            f"the weight of {type(self).__name__} is computed from weight_g and weight_v and cannot be {what}: fold "
            "it first, by model.fold_weight_norm() or deqlm.layers.fold_weight_norm_(module)"
        )

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply the weight by ``factor``, as if that had been done before normalisation."""
        self.weight_g.mul_(factor)
        self.weight_v.mul_(factor)

    def fold(self) -> Any:
        """Return the plain layer with the effective weight as its parameter, and with the hooks of this one.

        Raises:
            RuntimeError: parameters that are elsewhere now, sharded or offloaded.
        """
        if "forward" in self.__dict__ or type(self.weight_v) not in PLAIN:
            raise RuntimeError(f"the weight of a {type(self).__name__} is sharded or offloaded: fold it before that")
        made = self.plain.__new__(self.plain)
        made.__dict__.update(self.__dict__)
        weight = nn.Parameter(self.effective_weight().detach().clone(), requires_grad=self.weight_v.requires_grad)
        made._parameters = {"weight": weight, "bias": self.bias}
        return made


class NormedLinear(Normed, nn.Linear):
    """``nn.Linear`` with a normalised weight.

    Examples:
        >>> plain = nn.Linear(3, 2)
        >>> layer = NormedLinear(plain)
        >>> torch.equal(layer.weight, plain.weight), sorted(layer.state_dict()), isinstance(layer, nn.Linear)
        (True, ['bias', 'weight_g', 'weight_v'], True)
    """

    plain = nn.Linear

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return W x + bias, with ``weight`` for W if it is computed already."""
        return F.linear(x, self.effective_weight() if weight is None else weight, self.bias)


class NormedConv1d(Normed, nn.Conv1d):
    """``nn.Conv1d`` with a normalised weight.

    Examples:
        >>> plain = nn.Conv1d(4, 4, 3, groups=4)
        >>> layer = NormedConv1d(plain)
        >>> layer.weight_g.shape, torch.equal(layer(torch.ones(1, 4, 5)), plain(torch.ones(1, 4, 5)))
        (torch.Size([4, 1, 1]), True)
    """

    plain = nn.Conv1d

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the convolution, with ``weight`` for W if it is computed already."""
        return self._conv_forward(x, self.effective_weight() if weight is None else weight, self.bias)


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


def _row_norms(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True, dtype=wide(v.dtype))
