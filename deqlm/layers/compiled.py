"""Which layers have a compiled twin, for evaluations without grad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from deqlm.ops.native.library import Build
from deqlm.ops.native.norm import fuse_norm

__all__ = ["twin_of", "unhooked"]


def unhooked(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Say whether ``module`` is exactly of ``kind``, unhooked and unpatched, so that its call may be left out."""
    if type(module) is not kind:
        return False
    listeners = (
        *(module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks),
        *(hooks._global_forward_hooks, hooks._global_forward_pre_hooks),
        *(hooks._global_backward_hooks, hooks._global_backward_pre_hooks),
    )
    return "forward" not in module.__dict__ and not any(listeners)


def twin_of(part: nn.Module, weights: Mapping[nn.Module, Tensor], build: Build) -> Any:
    """Return the compiled twin of ``part`` with its parameters of now, or None if it has none.

    A twin says by ``takes(x)`` whether it may stand for the layer at an input. Layers other than ``nn.RMSNorm`` make
    their own by a method ``twin(weights, build)`` of their class.

    Args:
        part: a layer.
        weights: effective weight of each layer that normalises its weight.
        build: compiles a C++ file.
    """
    if isinstance(part, nn.RMSNorm):
        plain = unhooked(part, nn.RMSNorm) and part.weight is not None
        return fuse_norm(build, part.weight, part.eps) if plain else None
    make = getattr(type(part), "twin", None)
    return None if make is None else make(part, weights, build)
