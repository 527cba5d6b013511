"""Loops some layers of a decoder that was not made for it, without changing what it computes at first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ
from deqlm.equilibrium.settings import GivenGradient, GivenSolver, GivenStop
from deqlm.looped.names import Renamed
from deqlm.wrap.inject import Inject
from deqlm_solvers import Stop
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["LoopedBlocks", "find_layers", "loop"]

M = TypeVar("M", bound=nn.Module)

ONCE = Stop(max_iter=1, rtol=0)
LISTS = ("layers", "h", "blocks")
CACHES = ("cache", "past_key_values", "past_key_value", "cache_params")


def loop(
    model: M,
    layers: tuple[int, int],
    *,
    gate: float = 0.5,
    solver: GivenSolver = "fixed_point",
    stop: GivenStop = ONCE,
    gradient: GivenGradient = "unrolled",
    width: int | None = None,
    **options: Any,
) -> M:
    """Make a middle part of a decoder implicit, in place, and return the model.

    Of the layers i to j - 1 with their own input x, the part solves z = blocks(x + g (z - x)), with a gate g in (0, 1)
    per channel, which is learned, from the start z = x. The first evaluation is blocks(x): with the default budget of
    one evaluation the model computes what it did, to the bit, and has the same gradients. With more evaluations it
    loops; blocks that add to their input, z + F(z), have a fixed point where F is tame beside 1 - g.

    The layers keep their weights and their names in ``state_dict``; the gate is "loop_gate" of layer i. `LoopedBlocks`
    takes the place of layer i, and what is behind it up to j passes its input on.

    A cache of keys or states would be written to at every evaluation: it is turned off in the model's configuration,
    and one that comes all the same is refused. `generate` then reads the whole text for every token.

    Args:
        model: a decoder of transformers (Llama, Qwen, Mamba2 and their like), or a module whose layers stand in a list
            named "layers", "h" or "blocks", each called with a state (B, L, D) and keywords.
        layers: (i, j), first layer and end (exclusive), 0 <= i < j <= number of layers.
        gate: g at first, in (0, 1).
        solver: as for `DEQ`.
        stop: likewise; the default is one evaluation. Give more after loading, ``looped.solve``, or in phases.
        gradient: likewise; the default differentiates all steps, as looped models are trained.
        width: D, where the model has no ``config.hidden_size``.
        **options: further ones of `DEQ`.

    Raises:
        TypeError: a model without such a list.
        ValueError: layers out of range or of different kinds, a gate out of range, or a model that is looped already.

    Reference:
        S. McLeish et al. (2025), Teaching pretrained language models to think deeper with retrofitted recurrence
        (arXiv 2511.07384), for the training. Deviates: their injection is a linear layer on both, which changes the
        function; this one does not.

    Examples:
        >>> import torch
        >>> class Decoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4))
        ...     def forward(self, x):
        ...         for layer in self.layers:
        ...             x = layer(x)
        ...         return x
        >>> model, x = Decoder(), torch.randn(2, 3, 4)
        >>> before = model(x)
        >>> torch.equal(loop(model, layers=(1, 3), width=4)(x), before)
        True
    """
    found, _ = find_layers(model)
    first, end = _range(layers, len(found))
    number("gate", gate, "in (0, 1)", lambda g: 0 < g < 1)
    again = any(isinstance(part, LoopedBlocks) for part in model.modules())
    require(not again, "model", type(model).__name__, "one that is not looped yet")
    blocks = list(found[first:end])
    for name in ("attention_type", "layer_type"):
        kinds = {getattr(block, name, None) for block in blocks}
        require(len(kinds) == 1, "layers", layers, f"of one {name}, got {sorted(map(str, kinds))}")
    if width is None:
        width = getattr(getattr(model, "config", None), "hidden_size", None)
        require(width is not None, "width", width, "given for a model without config.hidden_size")
    assert width is not None
    like = next((p for block in blocks for p in block.parameters()), None)
    place = {} if like is None else {"dtype": like.dtype, "device": like.device}
    given = {"solver": solver, "stop": stop, "gradient": gradient, **options}
    made = LoopedBlocks(blocks, Gated(width, gate, **place), **given)
    found[first] = made
    for index in range(first + 1, end):
        found[index] = Passed(blocks[index - first])
    Renamed(first, end).attach(found)
    _without_cache(model, {"layers": [first, end], **_plain(made.deq)})
    return model


def find_layers(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """Return the list of a decoder's layers, the longest of those named so, and its name.

    Raises:
        TypeError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    found = [
        (part, name)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and name.rpartition(".")[2] in LISTS
    ]
    if not found:
        raise TypeError(f"model must have its layers in an nn.ModuleList named {', '.join(LISTS)}, and has none")
    return max(found, key=lambda each: len(each[0]))


class LoopedBlocks(nn.Module):
    """Some layers of a decoder as one fixed point; it takes the place of the first of them.

    Attributes:
        deq: the `DEQ`; its ``solve`` and ``gradient`` can be replaced at any time, as phases of training do.

    Examples:
        >>> looped = LoopedBlocks([nn.Tanh()], Gated(4, 0.5), solver="fixed_point", stop=ONCE)
        >>> looped(torch.zeros(1, 2, 4)).shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, blocks: list[nn.Module], inject: Inject, **options: Any) -> None:
        super().__init__()
        self.deq = DEQ(Stack(blocks), inject=inject, start=itself, **options)
        for name in ("attention_type", "layer_type"):
            if hasattr(blocks[0], name):
                setattr(self, name, getattr(blocks[0], name))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fixed point; further arguments are those of the layers.

        Raises:
            ValueError: a cache, which every evaluation would write to.
        """
        for name in CACHES:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for looped layers, which would write to it at every evaluation; call with "
                    "use_cache=False (generate(..., use_cache=False) too), as model.config says"
                )
        kept = {name: value for name, value in kwargs.items() if name not in CACHES and name != "use_cache"}
        return self.deq(hidden_states, *args, **kept)


class Stack(nn.Module):
    """Layers one after another, all with the same further arguments.

    Args:
        blocks: at least one.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the state behind the last layer."""
        for block in self.blocks:
            out = block(z, *args, **kwargs)
            z = out[0] if isinstance(out, tuple) else out
        return z


class Gated(Inject):
    """layer(u + g (z - u)): at z = u that is layer(u) to the bit.

    Args:
        width: D.
        gate: g of all channels at first.
        dtype: of the gate.
        device: likewise.
    """

    def __init__(
        self, width: int, gate: float, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        whole("width", width, 1)
        logit = math.log(gate / (1 - gate))
        self.gate = nn.Parameter(torch.full((width,), logit, dtype=dtype, device=device))

    def join(self, layer: Any, z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer(u + self.gate.sigmoid() * (z - u), *args, **kwargs)


class Passed(nn.Module):
    """Stands where a layer was that is looped now.

    Args:
        block: the layer, of which it tells the kind.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type"):
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the state as it is."""
        return hidden_states


def itself(u: Any) -> Any:
    """Return ``u``: where a loop starts."""
    return u


def _range(layers: Any, count: int) -> tuple[int, int]:
    rule = f"(first, end) with 0 <= first < end <= {count}"
    pair = isinstance(layers, tuple | list) and len(layers) == 2
    require(pair and all(type(n) is int for n in layers), "layers", layers, rule)
    first, end = layers
    require(0 <= first < end <= count, "layers", layers, rule)
    return first, end


def _plain(deq: DEQ) -> dict[str, Any]:
    return {**deq.solve.to_dict(), "gradient": deq.gradient.to_dict()}


def _without_cache(model: nn.Module, about: Mapping[str, Any]) -> None:
    for name in ("config", "generation_config"):
        config = getattr(model, name, None)
        if config is not None and hasattr(config, "use_cache"):
            config.use_cache = False
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        config.deqlm_loop = dict(about)
