"""Which layers are exactly those of the library or of torch, so that compiled twins and held weights may stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from deqlm.layers.remembered import remembered
from deqlm.ops.native.library import PLAIN, Build
from deqlm.ops.native.norm import fuse_norm

__all__ = ["settled_parts", "stock", "twin_of"]

CALL = nn.Module.__call__
"""As it was when this was imported: tools that watch a program replace it."""


def stock(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Say whether a call of ``module`` does what its class says and nothing more, so that it may be left out.

    It is exactly of one of ``kinds``, not of a subclass or with a parametrisation, which is one; nobody has registered
    a hook, patched its ``forward`` or compiled it; and its parameters are plain tensors that hold numbers.

    Args:
        module: any.
        kinds: classes.
    """
    kind, own = type(module), module.__dict__
    if kind not in kinds or "forward" in own or "weight" in own or not _written_in(kind, kind.forward):
        return False
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    for p in own["_parameters"].values():
        if p is not None and (type(p) not in PLAIN or p.is_meta):
            return False
    return module._compiled_call_impl is None and not _watched()


def settled_parts(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield ``module`` and its parts, each once, and whether nothing above a part may change it before it is called.

    Hooks before a call and patched calls do so: they gather shards, and bring back what was offloaded.
    """
    seen: set[nn.Module] = set()
    left = [(module, not _watched())]
    while left:
        part, settled = left.pop()
        if part in seen:
            continue
        seen.add(part)
        yield part, settled
        if part._modules:
            settled = settled and not _prepares(part)
            left += [(child, settled) for child in reversed(part._modules.values()) if child is not None]


def twin_of(part: nn.Module, weights: Mapping[nn.Module, Tensor], build: Build) -> Any:
    """Return the compiled twin of ``part`` with its parameters of now, or None if it has none or is not `stock`.

    A twin says by ``takes(x)`` whether it may stand for the layer at an input. Layers other than ``nn.RMSNorm`` make
    their own by a method ``twin(weights, build)`` of their class.

    Args:
        part: a layer.
        weights: effective weight of each layer that normalises its weight.
        build: compiles a C++ file.
    """
    if isinstance(part, nn.RMSNorm):
        plain = stock(part, nn.RMSNorm) and part.weight is not None
        return fuse_norm(build, part.weight, part.eps) if plain else None
    make = getattr(type(part), "twin", None)
    return None if make is None else make(part, weights, build)


@remembered
def _written_in(kind: type[nn.Module], forward: Any) -> bool:
    """Say whether the ``forward`` of a class is still the function that was written in it."""
    code = getattr(forward, "__code__", None)
    return code is not None and code.co_qualname == f"{kind.__qualname__}.forward"


def _watched() -> bool:
    """Say whether somebody watches or replaces the calls of all modules."""
    return (
        bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
        or bool(hooks._global_backward_hooks or hooks._global_backward_pre_hooks)
        or nn.Module.__call__ is not CALL
    )


def _prepares(part: nn.Module) -> bool:
    """Say whether a call of ``part`` may change its parts before it runs."""
    own = part.__dict__
    return bool(own["_forward_pre_hooks"]) or "forward" in own or type(part).__module__.startswith("torch.distributed")
