"""What stays fixed within one call: padding, positions, noise, effective weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deqlm.layers.compiled import settled_parts, stock, twin_of
from deqlm.layers.kept_weights import KeptWeights, usable
from deqlm.layers.noise import VariationalDropout
from deqlm.layers.rope import Rope, row_positions
from deqlm.layers.weight_norm import Normed, NormedConv1d, NormedLinear
from deqlm.ops.checks import require
from deqlm.ops.native.library import Build

__all__ = ["NOTHING", "Context"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """Everything that a map z -> f(z) of one call shares between its evaluations; made once, before the solve.

    `Context.open` makes a whole one. Layers take ``context=None`` too: they then compute weights, draw noise and count
    positions in each evaluation. A context is a value: it lives as long as the call, and no module remembers it.

    Weights are held, and calls left out, of layers that are exactly those of torch and of this package. A layer with a
    hook, an adapter, a parametrisation or a quantised weight, and one below such a layer that may bring its weight, is
    called as it is in every evaluation, and reads its weight itself.

    Attributes:
        mask: (B, L) bool, False at padding; None when no token is.
        positions: (B or 1, L) int64, of real tokens; None leaves them to the layers.
        offset: token slots (padding included) that lie in caches before the first of these tokens.
        weights: effective weight of each `deqlm.layers.compiled.stock` layer that normalises its weight.
        noise: mask (B, 1, width) of each active dropout.
        tables: cosines and sines, (B or 1, L, P/2) each, of each kind of rotary positions in use.
        twins: compiled twin of each stock layer that has one, with its parameters of this call; for evaluations without
            grad.
        linears: weight and bias of each stock linear layer, normalised or not, whose call as a module may be left out,
            which costs as much as a small product; likewise.
        grad: whether grad mode was on when the weights were made.
        constant: whether they are constants of the call on purpose: derivatives that are wanted are those by the state,
            as a solver takes them in a call without grad.
        kept: what was made of the weights, for the call that goes on from this one; None with grad.
    """

    mask: Tensor | None = None
    positions: Tensor | None = None
    offset: int = 0
    weights: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    noise: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    tables: Mapping[Rope, tuple[Tensor, Tensor]] = field(default_factory=dict)
    twins: Mapping[nn.Module, Any] = field(default_factory=dict)
    linears: Mapping[nn.Module, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    grad: bool = True
    constant: bool = False
    kept: KeptWeights | None = None

    @classmethod
    def open(
        cls,
        module: nn.Module,
        like: Tensor,
        *,
        mask: Tensor | None = None,
        offset: int = 0,
        committed: Tensor | None = None,
        build: Build | None = None,
        kept: KeptWeights | None = None,
    ) -> Context:
        """Return the context of a call of ``module``: weights with grad if grad mode is on, masks drawn, positions.

        Open it before the solve and outside of f, in the grad mode of the call: the solve's own no_grad comes later.

        Args:
            module: everything that f evaluates.
            like: (B, L, ...), such as the embeddings; gives batch, length, device and dtype.
            mask: (B, L) bool, False at padding; None when there is none, which is cheaper.
            offset: token slots that caches hold already.
            committed: real tokens among them per row, (B,) int64; None when all are real.
            build: compiles what layers have compiled twins of; None leaves all to torch.
            kept: of the call that this one goes on from; without grad, weights that still hold are not made again.

        Raises:
            ValueError: a mask or counts of another shape, or a mask that is not bool.
            RuntimeError: grad mode is on, and ``parametrize.cached()`` holds a weight that was made without.

        Examples:
            >>> from deqlm.layers import Mamba2, weight_norm_
            >>> mixer = weight_norm_(Mamba2(16, d_state=8, headdim=8, dropout=0.1))
            >>> z, u = torch.zeros(2, 5, 16), torch.randn(2, 5, mixer.d_inject)
            >>> context = Context.open(mixer, z)
            >>> torch.equal(mixer(z, u, context), mixer(z, u, context))
            True
        """
        batch, length = like.shape[:2]
        if mask is not None:
            ok = mask.dtype == torch.bool and mask.shape == (batch, length)
            require(ok, "mask", f"{mask.dtype} {tuple(mask.shape)}", f"bool of shape {(batch, length)}")
        if committed is not None:
            require(committed.shape == (batch,), "committed", tuple(committed.shape), f"of shape {(batch,)}")
        past = offset if committed is None else committed
        positions = row_positions(mask, length, past=past, device=like.device)
        weights, noise, tables, linears = {}, {}, {}, {}
        twins: dict[nn.Module, Any] = {}
        keeps = (KeptWeights() if kept is None else kept) if usable() else None
        parts = list(settled_parts(module))
        for part, settled in parts:
            if parametrize._cache_enabled and torch.is_grad_enabled() and parametrize.is_parametrized(part):
                _cache_with_graph(part)
            if isinstance(part, VariationalDropout) and part.active:
                noise[part] = part.draw(batch, like.device, like.dtype)
            if settled and stock(part, nn.Linear):
                linears[part] = (part.weight, part.bias)
            elif settled and isinstance(part, Normed) and stock(part, NormedLinear, NormedConv1d):
                make = part.effective_weight
                weights[part] = make() if keeps is None else keeps.of(part, part.made_of(), make)
                if isinstance(part, NormedLinear):
                    linears[part] = (weights[part], part.bias)
            rope = getattr(part, "rope", None)
            if isinstance(rope, Rope) and rope not in tables:
                tables[rope] = rope.table(positions, like.dtype)
        if build is not None:
            made = {part: _twin(part, weights, build, keeps) for part, settled in parts if settled}
            twins = {part: twin for part, twin in made.items() if twin is not None}
        return cls(
            mask=mask,
            positions=positions,
            offset=offset,
            weights=weights,
            noise=noise,
            tables=tables,
            twins=twins,
            linears=linears,
            grad=torch.is_grad_enabled(),
            kept=keeps,
        )

    def tokens(self, start: int, stop: int) -> Context:
        """Return the context of tokens ``start`` to ``stop`` (exclusive); noise and weights stay the same."""
        if start == 0 and self.positions is not None and stop >= self.positions.shape[1]:
            return self
        cut = slice(start, stop)
        return replace(
            self,
            mask=None if self.mask is None else self.mask[:, cut],
            positions=None if self.positions is None else self.positions[:, cut],
            offset=self.offset + start,
            tables={rope: (cos[:, cut], sin[:, cut]) for rope, (cos, sin) in self.tables.items()},
        )

    def rows(self, index: Tensor) -> Context:
        """Return the context of some rows, in the order of ``index`` (K,), int64."""

        def pick(t: Tensor) -> Tensor:
            return t if t.shape[0] == 1 else t.index_select(0, index)

        return replace(
            self,
            mask=None if self.mask is None else self.mask.index_select(0, index),
            positions=None if self.positions is None else pick(self.positions),
            noise={part: mask.index_select(0, index) for part, mask in self.noise.items()},
            tables={rope: (pick(cos), pick(sin)) for rope, (cos, sin) in self.tables.items()},
        )

    def keep(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, L, ...) with zeros at padding, whatever was there, NaN included."""
        if self.mask is None:
            return x
        shape = (*self.mask.shape, *(1,) * (x.dim() - 2))
        return torch.where(self.mask.view(shape), x, torch.zeros((), dtype=x.dtype, device=x.device))

    def weight(self, layer: Any) -> Tensor:
        """Return the weight of ``layer`` in this call.

        Raises:
            RuntimeError: the call was opened without grad mode and a gradient is wanted now; it would be lost.
        """
        held = self.weights.get(layer)
        if held is None:
            return layer.effective_weight() if isinstance(layer, Normed) else layer.weight
        if torch.is_grad_enabled() and not (self.grad or self.constant):
            raise RuntimeError(
                "this Context was opened without grad mode, so its weights have no gradient: open it where grad mode "
                "is on, before the solve"
            )
        return held

    def normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Return ``norm(x)``, with ``x`` in the dtype of the norm's weight."""
        twin = self.twins.get(norm)
        if twin is not None and twin.takes(x):
            return twin(x)
        dtype = getattr(getattr(norm, "weight", None), "dtype", x.dtype)
        return norm(x if dtype == x.dtype else x.to(dtype))

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``layer(x)``, with the weight or the noise that is held for it."""
        if layer in self.linears and not torch.is_grad_enabled():
            return F.linear(x, *self.linears[layer])
        if layer in self.weights:
            return layer(x, self.weight(layer))
        if layer in self.noise:
            return layer(x, self.noise[layer])
        return layer(x)


def _twin(part: nn.Module, weights: Mapping[nn.Module, Tensor], build: Build, kept: KeptWeights | None) -> Any:
    """Return the compiled twin of a layer, that of an earlier call where it holds; see `twin_of`."""
    made_by_parts = not isinstance(part, nn.RMSNorm) and not hasattr(type(part), "twin")
    if kept is None or made_by_parts or not all(stock(inner, type(inner)) for inner in part.modules()):
        return twin_of(part, weights, build)
    return kept.of((part, "twin"), part.parameters(), lambda: twin_of(part, weights, build))


def _cache_with_graph(part: Any) -> None:
    """Let ``parametrize.cached()`` make the weights of a layer now: the solve's first evaluation has no graph.

    Raises:
        RuntimeError: it holds one without a graph, made earlier without grad; its gradient would be lost.
    """
    for name, made_of in part.parametrizations.items():
        if not getattr(part, name).requires_grad and any(p.requires_grad for p in made_of.parameters()):
            raise RuntimeError(
                f"torch.nn.utils.parametrize.cached() holds the {name} of a {type(part).__name__} that a call without "
                "grad made, so that it would get no gradient: enter cached() anew for calls with grad"
            )


NOTHING = Context()
"""Holds nothing; what ``context=None`` means."""
