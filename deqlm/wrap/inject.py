"""How the input x enters the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.wrap.trees import tensors, tree_add
from deqlm_solvers.core.checks import require

__all__ = ["Add", "Argument", "Inject", "Projected", "make_inject", "passes_on"]


class Inject(nn.Module):
    """Injection: `forward` makes u of x once per call, `join` evaluates the layer at (z, u).

    Examples:
        >>> import deqlm, torch
        >>> class Scaled(Inject):
        ...     def join(self, layer, z, u, args, kwargs):
        ...         return layer(0.5 * z + u, *args, **kwargs)
        >>> deqlm.DEQ(torch.nn.Tanh(), inject=Scaled())(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def forward(self, x: Any) -> Any:
        """Return u, made once per call of the `DEQ`."""
        return x

    def join(self, layer: Callable[..., Any], z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate the layer at the state ``z`` with the injected input ``u``."""
        raise NotImplementedError


class Add(Inject):
    """layer(z + u, ...), leaf by leaf."""

    def check(self, shapes: Sequence[torch.Size], u: Any) -> None:
        """Raise unless the state, of leaves of ``shapes``, has the shapes of ``u``.

        Raises:
            ValueError: a start of another shape.
        """
        want = [leaf.shape for leaf in tensors(u)]
        if len(want) == len(shapes) and list(shapes) != want:
            got, rule = [tuple(s) for s in shapes], [tuple(w) for w in want]
            raise ValueError(f"start must have the shapes of u, {rule}, with or without batch dimensions, got {got}")

    def join(self, layer: Callable[..., Any], z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain = isinstance(z, Tensor) and isinstance(u, Tensor) and z.shape == u.shape
        return layer(z + u if plain else tree_add(z, u), *args, **kwargs)


class Argument(Inject):
    """layer(z, u, ...)."""

    def join(self, layer: Callable[..., Any], z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer(z, u, *args, **kwargs)


class Projected(Add):
    """layer(z + u, ...) with u = module(x): a learned injection, evaluated once per call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x)


def passes_on(inject: nn.Module) -> bool:
    """Say whether u is x itself, and nobody looks at how it is made.

    Examples:
        >>> passes_on(Add()), passes_on(Projected(nn.Identity()))
        (True, False)
    """
    if type(inject) not in (Add, Argument):
        return False
    own = vars(inject)
    return not (own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_modules"] or own["_buffers"])


def make_inject(spec: str | nn.Module) -> Inject:
    """Return the injection of "add", "argument", an `Inject`, or any module that makes u of x (then added).

    Raises:
        ValueError: anything else.
    """
    if isinstance(spec, Inject):
        return spec
    if isinstance(spec, nn.Module):
        return Projected(spec)
    require(spec in ("add", "argument"), "inject", spec, "'add', 'argument' or an nn.Module")
    return Add() if spec == "add" else Argument()
