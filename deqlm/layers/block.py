"""What a mixer is, and the residual block around one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deqlm.layers.context import NOTHING, Context
from deqlm.layers.remembered import remembered

__all__ = ["Block", "Mixer"]


class Mixer(Protocol):
    """A layer that mixes tokens, causally, with an input injected: what `Block` and a backbone know of it.

    A mixer is an ``nn.Module`` and pure: it writes no cache, keeps nothing between evaluations, and draws noise only
    through the `Context`. Names that a backbone may use besides: ``out_proj``, the last linear layer, is scaled by
    `deqlm.layers.depth_scale_`; an attribute ``rope`` of type `deqlm.layers.Rope` makes `Context.open` prepare its
    table.

    ``context`` holds what stays fixed within a call: the mask of real tokens, their positions, dropout masks, effective
    weights. A mixer asks it, ``context.apply(self.in_proj, z)``, instead of its layers; zeros its input and output at
    padding by ``context.keep``; and treats None as a context that holds nothing. `deqlm.testing.check_mixer` holds one
    to all of it.

    Modules are entered by their call, and nobody reads a weight past the layer that owns it: so hooks, sharding by
    blocks, offloading, adapters and quantised weights work. A mixer does so with its own layers by ``context.apply``.
    It is entered itself by ``forward(z, u, context, cache=cache)``, with ``forward_chunk(z, u, cache, context)`` as
    another name of it; one whose ``forward`` takes no ``cache`` is entered by ``forward_chunk`` with the hooks of the
    module, but not where a library such as accelerate replaces ``forward``.

    Two more methods are asked for by those who need them. `deqlm.models.model_cost` asks ``flops(context)``: what a
    token computes beside the linear layers, on top of a cache of so many tokens; a product and its sum count 2.
    `deqlm.hf.to_implicit` asks ``input_weight()``: the map W (U, D) from a state to what ``u`` is added to, so that the
    output at the state 0 with W v injected is that at v with nothing injected.

    A mixer with a compiled twin makes it by ``twin(weights, build)``, see `deqlm.layers.compiled.twin_of`.

    Attributes:
        d_model: width D of the state.
        d_inject: width U of the injected input.
    """

    d_model: int
    d_inject: int

    def __call__(self, z: Tensor, u: Tensor | None = None, context: Context | None = None, cache: Any = None) -> Any:
        """Return the output (B, L, D) at the state ``z`` (B, L, D) with the injected input ``u`` (B, L, U).

        None for ``u`` injects nothing, which is the explicit layer. With a cache, return `forward_chunk`.
        """
        ...

    def forward_chunk(
        self, z: Tensor, u: Tensor | None, cache: Any, context: Context | None = None
    ) -> tuple[Tensor, Any]:
        """Return the output of the next L tokens after those in ``cache``, and the cache with them, as new values.

        Whole sequence at once or chunk after chunk: equal to rounding, for any L >= 1.
        """
        ...

    def empty_cache(self, batch: int) -> Any:
        """Return the cache of ``batch`` rows without any token: a value with ``rows(index)``."""
        ...


class Block(nn.Module):
    """z + mixer(norm(z), u), then, with an MLP, z + mlp(norm2(z)); the state keeps its dtype.

    The normalised state has the dtype of the norm's weight, so with weights in half precision a float32 state makes
    a residual stream in float32.

    Args:
        mixer: any `Mixer`.
        mlp: called as ``mlp(z, context)``; None leaves that half away.
        norm: makes a normalisation of a width; None is ``nn.RMSNorm`` with eps 1e-5.

    Raises:
        TypeError: a mixer without one of the names it must have.

    Examples:
        >>> import torch
        >>> from deqlm.layers import LlamaMLP, Attention
        >>> block = Block(Attention(16, n_head=2), mlp=LlamaMLP(16, 32))
        >>> z, u = torch.zeros(2, 5, 16), torch.randn(2, 5, block.d_inject)
        >>> y, cache = block.forward_chunk(z[:, :3], u[:, :3], block.empty_cache(2))
        >>> rest, cache = block.forward_chunk(z[:, 3:], u[:, 3:], cache)
        >>> torch.allclose(torch.cat([y, rest], dim=1), block(z, u), atol=1e-6)
        True
    """

    def __init__(
        self,
        mixer: Mixer | nn.Module,
        *,
        mlp: nn.Module | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in ("d_model", "d_inject", "forward_chunk", "empty_cache") if not hasattr(mixer, name)]
        if missing:
            raise TypeError(f"mixer must have {', '.join(missing)}, got {type(mixer).__name__}; see deqlm.layers.Mixer")
        norm = partial(nn.RMSNorm, eps=1e-5) if norm is None else norm
        width: int = mixer.d_model  # type: ignore[assignment]
        self.norm = norm(width)
        self.mixer: Any = mixer
        self.norm2 = None if mlp is None else norm(width)
        self.mlp = mlp

    @property
    def d_model(self) -> int:
        """Width D of the state."""
        return self.mixer.d_model

    @property
    def d_inject(self) -> int:
        """Width U of the injected input."""
        return self.mixer.d_inject

    def forward(self, z: Tensor, u: Tensor | None = None, context: Context | None = None, cache: Any = None) -> Any:
        """Return the next state, (B, L, D) in the dtype of ``z``, zero at padding; behind a cache, also the next one.

        Args:
            z: state, (B, L, D).
            u: injected input, (B, L, U); None injects nothing.
            context: what is fixed within the call.
            cache: the mixer's, of the tokens before these.
        """
        context = NOTHING if context is None else context
        z = context.keep(z)
        normed = context.normalise(self.norm, z)
        if cache is None:
            return self._mlp(z, self.mixer(normed, u, context), context)
        mixed, cache = enter_chunk(self.mixer, normed, u, cache, context)
        return self._mlp(z, mixed, context), cache

    def forward_chunk(
        self, z: Tensor, u: Tensor | None, cache: Any, context: Context | None = None
    ) -> tuple[Tensor, Any]:
        """Return the next state of the L tokens after those in ``cache``, and the cache with them."""
        return self(z, u, context, cache)

    def empty_cache(self, batch: int, device: torch.device | None = None) -> Any:
        """Return the mixer's cache of ``batch`` rows without any token.

        Args:
            batch: rows B.
            device: None is that of the parameters; others are for mixers whose ``empty_cache`` takes one.
        """
        empty = self.mixer.empty_cache
        takes = device is not None and _takes(getattr(empty, "__func__", empty), "device")
        return empty(batch, device=device) if takes else empty(batch)

    def _mlp(self, z: Tensor, mixed: Tensor, context: Context) -> Tensor:
        z = z + mixed.to(z.dtype)
        if self.mlp is None:
            return z
        assert self.norm2 is not None
        return z + context.keep(self.mlp(context.normalise(self.norm2, z), context)).to(z.dtype)


def enter_chunk(mixer: Any, z: Tensor, u: Tensor | None, cache: Any, context: Context) -> tuple[Tensor, Any]:
    """Return ``mixer.forward_chunk(z, u, cache, context)``, entered by a call of the module, as hooks have to see it.

    Args:
        mixer: one whose ``forward`` takes a cache, or one that has that method.
        z: normalised state, (B, L, D).
        u: injected input, (B, L, U), or None.
        cache: of the tokens before these.
        context: what is fixed within the call.

    Raises:
        TypeError: ``forward`` takes no cache, and a library has replaced it.
    """
    if _takes(type(mixer).forward, "cache") or _takes(getattr(mixer.forward, "__func__", mixer.forward), "cache"):
        return mixer(z, u, context, cache=cache)
    if "forward" in vars(mixer):
        raise TypeError(
            f"a library has replaced forward of {type(mixer).__name__}, which then must take cache, as "
            "deqlm.layers.Mixer says"
        )
    # the same object but for its forward, so a call has the hooks of the mixer
    entered = object.__new__(type(mixer))
    vars(entered).update(vars(mixer), forward=mixer.forward_chunk)
    return entered(z, u, cache, context)


@remembered
def _takes(function: Any, name: str) -> bool:
    """Say whether a function takes an argument by that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
