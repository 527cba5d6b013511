"""What a model of given sizes holds and what a token costs, without making it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deqlm.layers import Block
from deqlm.layers.weight_norm import NormedLinear
from deqlm.models.options import LMOptions
from deqlm_solvers.core.checks import whole

__all__ = ["ModelCost", "model_cost"]


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Parameters and FLOPs per token, forward; a product of two numbers that is added up counts 2.

    Matrix products, convolutions, scans and attention scores count, which is all that grows faster than the width;
    norms, activations and residual sums do not.

    Attributes:
        parameters: of the whole model; a table that is tied to the head counts once.
        embedding: of the embedding table.
        head: of the head, 0 where it is tied and has no bias.
        evaluation: FLOPs of one evaluation of f for one token, on top of a cache.
        once: FLOPs per token whatever the number of evaluations: injection and head.
        context: tokens in the cache, which attention looks at.
    """

    parameters: int
    embedding: int
    head: int
    evaluation: int
    once: int
    context: int

    @property
    def backbone(self) -> int:
        """Parameters of blocks, injection and norms."""
        return self.parameters - self.embedding - self.head

    def per_token(self, evaluations: float) -> float:
        """Return the FLOPs of a token that takes so many evaluations of f, the one that commits it included."""
        return self.once + evaluations * self.evaluation


def model_cost(options: LMOptions, *, context: int = 0) -> ModelCost:
    """Return parameters and FLOPs of the model that ``options`` make; one block is made, on the device "meta".

    One token on top of a cache of T tokens costs, per block, 2 per weight of its linear layers, and what its mixer's
    ``flops(T)`` says (`deqlm.layers.Mixer`): of a Mamba2 2 C W for the convolution of C channels by W taps, and
    5 H P N + 2 H P for the scan; of attention 4 D for each token that is seen, for scores and sums.

    Args:
        options: of the model.
        context: tokens in the cache.

    Raises:
        ValueError: ``context`` is no whole number >= 0.
        TypeError: a mixer without ``flops``.

    Examples:
        >>> from deqlm.models import preset
        >>> cost = model_cost(preset("mamba2-130m-implicit"))
        >>> cost.parameters, round(cost.evaluation / 1e6), round(cost.per_token(6) / 1e6)
        (131713328, 204, 1308)
    """
    whole("context", context, 0, None)
    model = options.replace(n_layer=1).make("meta")
    (block,) = model.backbone.layers
    assert isinstance(block, Block)
    assert model.head is not None
    head = 0 if options.tie else model.head.weight.numel()
    head += 0 if model.head.bias is None else model.head.bias.numel()
    injection = model.backbone.injection
    return ModelCost(
        parameters=_count(model) + (options.n_layer - 1) * _count(block),
        embedding=_count(model.embedding),
        head=head,
        evaluation=options.n_layer * (_products(block) + _mixing(block.mixer, context)),
        once=2 * model.head.weight.numel() + (0 if injection is None else _products(injection)),
        context=context,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _products(module: nn.Module) -> int:
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | NormedLinear)]
    return sum(2 * layer.in_features * layer.out_features for layer in layers)


def _mixing(mixer: nn.Module, context: int) -> int:
    """Return what a mixer computes for one token beside its linear layers."""
    if not hasattr(mixer, "flops"):
        raise TypeError(
            f"the cost of a {type(mixer).__name__} is not known: give it flops(context), see deqlm.layers.Mixer"
        )
    return mixer.flops(context)  # type: ignore[operator]
