"""The equation that a `DEQ` solves at an input, as a map that solvers can be compared on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ
from deqlm.models import ImplicitLM
from deqlm.wrap.trees import map_tensors, tensors
from deqlm_solvers.core.checks import require

__all__ = ["Equation", "refuse_solvers"]

SEED = 0
"""Of the noise of a layer in train()."""
SOLVE = (DEQ, ImplicitLM)
DEQ_HINT = "return (the DEQ itself, its x); if every evaluation shall solve, return a function that calls it"
LM_HINT = "return (lambda z: backbone(z, u, context), z0) of its backbone, see deqlm.models.Backbone"


class Equation(nn.Module):
    """z -> layer(z + u), as the ``DEQ`` joins them, with u of a fixed x; copied and widened with its x.

    Noise of a layer in train() is the same at every evaluation, as within a call of the ``DEQ``: it is drawn from one
    seed, and torch's generators are put back.

    Args:
        deq: its own solver, stop and gradient are not used.
        x: input, a tensor or a tree of them with the batch first.

    Examples:
        >>> import torch
        >>> equation = Equation(DEQ(torch.nn.Tanh()), torch.ones(2, 3))
        >>> torch.equal(equation(torch.zeros(2, 3)), torch.ones(2, 3).tanh())
        True
    """

    def __init__(self, deq: DEQ, x: Any) -> None:
        super().__init__()
        self.deq = deq
        self.x = x

    def start(self) -> Any:
        """Return the state from which the ``DEQ`` starts."""
        rows = self.deq.on_rows(self.x, (), {})[0].rows
        return rows.unpack(rows.z0)

    def forward(self, z: Any) -> Any:
        """Evaluate the layer at ``z``; gradients reach the injection too."""
        if not any(part.training for part in self.deq.modules()):
            return self._at(z)
        device = next(iter(tensors(z))).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            return self._at(z)

    def _at(self, z: Any) -> Any:
        return self.deq.inject.join(self.deq.layer, z, self.deq.inject(self.x), (), {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Equation:
        self.x = map_tensors(fn, self.x)
        return super()._apply(fn, recurse)


def refuse_solvers(f: Callable[..., Any], label: str) -> None:
    """Raise ``ValueError`` unless ``f`` is a map of z alone that does not solve anything itself, as far as one can see.

    Args:
        f: the map of a pair (f, z0).
        label: of what returned it.
    """
    rule = "a map f(z), or a DEQ with its input x"
    owner = getattr(f, "__self__", f)
    inner = [part for part in owner.modules() if isinstance(part, SOLVE)] if isinstance(owner, nn.Module) else []
    if inner:
        what = type(owner).__name__ + ("" if owner is inner[0] else f" with a {type(inner[0]).__name__} inside")
        hint = DEQ_HINT if isinstance(inner[0], DEQ) else LM_HINT
        raise ValueError(f"the f of {label} must be {rule}, got {what}, which solves at every evaluation: {hint}")
    needed = _needed(f)
    hint = "for a layer with an input return (deqlm.DEQ(layer, inject='argument'), x)"
    require(len(needed) <= 1, f"the f of {label}", f"f({', '.join(needed)})", f"{rule}; {hint}")


def _needed(f: Callable[..., Any]) -> list[str]:
    """Return the arguments that ``f`` cannot be called without, where it says so."""
    try:
        known = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in known if p.default is p.empty and p.kind not in variable]
