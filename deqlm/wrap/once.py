"""Weights that are made of other weights, computed once per call however often the layer is evaluated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["close_call", "made_once", "once", "once_per_call_", "open_call"]

M = TypeVar("M", bound=nn.Module)


_Weights = dict[int, tuple[tuple[tuple[Tensor, int], ...], Tensor]]
"""By the list that made it: what a weight was made of, with versions, and the weight."""


class _Local(threading.local):
    """The call that is open on a thread: whether it has a graph, and the weights made so far."""

    call: tuple[bool, _Weights] | None = None


_LOCAL = _Local()


def open_call() -> tuple[bool, _Weights] | None:
    """Begin a call on this thread, unless one is open, and return the one that was; `close_call` takes it."""
    outer = _LOCAL.call
    if outer is None:
        _LOCAL.call = torch.is_grad_enabled(), {}
    return outer


def close_call(outer: tuple[bool, _Weights] | None) -> None:
    """End what `open_call` began."""
    _LOCAL.call = outer


class _OncePerCall(ParametrizationList):
    """A list of parametrisations that is evaluated once in a call of a `deqlm.DEQ`, and each time elsewhere."""

    def forward(self) -> Tensor:
        originals = [self.original] if self.is_tensor else [getattr(self, f"original{i}") for i in range(self.ntensors)]
        return once(self, originals, super().forward)


def once(owner: nn.Module, parts: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
    """Return what ``make`` makes of ``parts``, made once in a call of a `deqlm.DEQ`, and each time elsewhere.

    Args:
        owner: whose it is; one tensor of each is kept.
        parts: what it is made of; a change of them makes it anew.
        make: makes it.
    """
    call = _LOCAL.call
    hooked = torch.is_grad_enabled() and _saves_are_hooked()
    # a checkpoint that is evaluated again, outside of the call, must find what it saw
    if call is None or hooked or any(t.is_inference() for t in parts):
        return make()
    grad, weights = call
    now = tuple((t, t._version) for t in parts)
    kept = weights.get(id(owner))
    if kept is None or any(a is not b or m != n for (a, m), (b, n) in zip(kept[0], now, strict=True)):
        with torch.set_grad_enabled(grad):
            kept = weights[id(owner)] = now, make()
    return kept[1]


def once_per_call_(module: M) -> M:
    """Let every parametrised tensor in ``module`` be computed once per call of a `deqlm.DEQ`, and return the module.

    `deqlm.DEQ` does so for its layer when it is made, `deqlm.solve` and `deqlm.Equilibrium` for the modules that a
    function reaches; a layer that is parametrised later, or that nobody finds, is given here. Any parametrisation of
    ``torch.nn.utils.parametrize`` is meant (weight_norm, spectral_norm, orthogonal, one's own), of any layer. Outside
    of a call, each access computes as before; so it does within a checkpoint.

    Examples:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> layer = once_per_call_(nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Tanh()))
        >>> sorted(layer.state_dict())[1]
        '0.parametrizations.weight.original0'
    """
    for part in module.modules():
        if type(part) is ParametrizationList:
            part.__class__ = _OncePerCall
    return module


def made_once(parametrised: ParametrizationList) -> bool:
    """Say whether a tensor is computed once per call."""
    return isinstance(parametrised, _OncePerCall)


def _saves_are_hooked() -> bool:
    top = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    return top is not None
