"""A weight that a layer computes, for those who change it from outside: merged adapters, initialisers, assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["ComputedWeight"]


class ComputedWeight(Tensor):
    """A weight whose changes in place, ``.data`` and views included, are assigned to the layer that computes it.

    Such a weight is made anew whenever it is read, so a change of it, ``layer.weight.data += delta``, would be lost.
    ``layer.weight.requires_grad = False`` freezes what it is made of. All other operations return plain tensors, with
    their graph.

    Examples:
        >>> from deqlm.layers import NormedLinear
        >>> layer = NormedLinear(torch.nn.Linear(3, 2))
        >>> want = layer.weight + 1
        >>> layer.weight.data += 1
        >>> torch.allclose(layer.weight, want)
        True
    """

    _layer: Any
    _whole: Tensor

    @classmethod
    def of(cls, weight: Tensor, layer: Any) -> ComputedWeight:
        """Return ``weight`` as one that tells of its changes.

        Args:
            weight: plain, made for this.
            layer: its ``assign_`` takes the whole weight after a change, and ``made_of()`` returns the parameters.
        """
        return _aliased(weight, layer, weight.detach())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        watched = list(_weights_in((*args, *given.values())))
        written = getattr(func, "__self__", None) if getattr(func, "__name__", "") == "__set__" else None
        with torch._C.DisableTorchFunctionSubclass():
            if written is Tensor.requires_grad:
                for parameter in args[0]._layer.made_of():
                    parameter.requires_grad = args[1]
                return None
            before = [t._version for t in watched]
            out = func(*args, **given)
            for t, version in zip(watched, before, strict=True):
                if written is Tensor.data and t is args[0]:
                    t._whole = t.detach()
                    t._layer.assign_(t._whole)
                elif t._version != version:
                    t._layer.assign_(t._whole)
            return _map(out, lambda t: _view_of(t, watched))

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().clone().__reduce_ex__(protocol)


def _weights_in(arguments: Iterable[Any]) -> Iterator[ComputedWeight]:
    """Yield the computed weights among arguments, which are tensors, or lists and tuples of them, or other things."""
    for each in arguments:
        if isinstance(each, ComputedWeight):
            yield each
        elif isinstance(each, list | tuple):
            yield from _weights_in(each)


def _aliased(t: Tensor, layer: Any, whole: Tensor) -> ComputedWeight:
    made = t.as_subclass(ComputedWeight)
    made._layer, made._whole = layer, whole
    return made


def _view_of(t: Tensor, watched: list[ComputedWeight]) -> Tensor:
    """Return ``t``, or where it shares the numbers of a weight, as one that tells of its changes too."""
    for weight in watched:
        if type(t) is Tensor and torch._C._is_alias_of(t, weight):  # type: ignore[attr-defined]
            return _aliased(t, weight._layer, weight._whole)
    return t


def _map(out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(out, Tensor):
        return change(out)
    return type(out)(change(t) for t in out) if type(out) in (list, tuple) and _tensors(out) else out


def _tensors(out: Any) -> bool:
    return all(isinstance(t, Tensor) for t in out)
