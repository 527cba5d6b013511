"""Where a `DEQ` starts that was given no start for the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deqlm.wrap.trees import first_tensor, tensors, zeros_like_tree
from deqlm_solvers.core.kinds import require_state

__all__ = ["AT_ZERO", "CALLED", "started"]

AT_ZERO = (
    "deqlm: the layer raised at the start, a state of zeros; where it needs another one, give start=, such as "
    "start=torch.ones_like"
)
"""A note on what a layer raises there."""

CALLED = (
    'deqlm: the layer is called as layer(z + x), with inject="argument" as layer(z, x), and with the further arguments '
    "of the call behind; one that takes others goes into an nn.Module whose forward calls it"
)
"""A note on a layer that cannot be called so."""


def started(start: Tensor | Callable[[Any], Any] | None, u: Any, batch_dims: int | None, name: str) -> Any:
    """Return the state at which a solve starts.

    Args:
        start: of the `DEQ`: None is zeros like ``u``; a tensor of the state's shape, with or without the batch
            dimensions; or a callable u -> state.
        u: the injected input, a tensor or a tree of them.
        batch_dims: leading dimensions that index rows; None is 1.
        name: of ``u``, for messages.

    Raises:
        ValueError: a ``u`` that cannot be a state.
    """
    if start is None:
        also = "" if isinstance(u, Tensor) else ", or give what is no unknown as a further argument"
        for leaf in tensors(u):
            require_state(leaf, name, also)
        return zeros_like_tree(u)
    if not isinstance(start, Tensor):
        return start(u)
    like = first_tensor(u)
    count = 1 if batch_dims is None else batch_dims
    batch = start.shape[:count] if like is None else like.shape[:count]
    if like is not None and start.shape == like.shape[count:]:
        return start.expand(*batch, *start.shape)
    return start if start.shape[:count] == batch else start.expand(*batch, *start.shape)
