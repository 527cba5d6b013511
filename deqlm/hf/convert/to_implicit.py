"""Starting an implicit model from an explicit one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from deqlm.hf.model import ImplicitForCausalLM
from deqlm.hf.solving import DeqOptions
from deqlm.layers import Block
from deqlm.layers.weight_norm import Normed
from deqlm.models import ImplicitLM
from deqlm_solvers.core.checks import require

__all__ = ["to_implicit"]

Injection = Literal["first_block", "xavier"]


@torch.no_grad()
def to_implicit(
    model: ImplicitForCausalLM,
    *,
    deq: DeqOptions | Mapping[str, Any] | None = None,
    injection: Injection = "first_block",
) -> ImplicitForCausalLM:
    """Return an implicit model with the blocks, norms, embeddings and head of an explicit one, which stays as it is.

    Weights are normalised from now on, with W = g v / ||v|| equal to the explicit weights. What an explicit model does
    not have is the injection; it starts in one of two ways:

    - "first_block": as the input projection of the first block with its norm, so that this block, at the state zero
      where every solve starts, does to the embeddings what it did in the explicit model.
    - "xavier": Xavier-normal with gain 1, as the authors' code does it. The blocks then see noise, and the first losses
      lie above that of a uniform guess.

    A zero injection is not offered: the solve would know nothing of the tokens, and that learns slowest; a transformer,
    for which the state zero is then a fixed point, does not learn at all when it is solved to tolerance.

    Args:
        model: of `deqlm.hf`, explicit, such as `deqlm.hf.from_upstream` returns.
        deq: how the implicit model is solved; None is the default of its configuration.
        injection: see above.

    Returns:
        A model of the same class, dtype and device.

    Raises:
        ValueError: an implicit model, or an unknown ``injection``.
        TypeError: a mixer without ``input_weight`` (`deqlm.layers.Mixer`), which "first_block" asks for.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML.

    Examples:
        >>> from deqlm.hf import ImplicitMamba2Config, ImplicitMamba2ForCausalLM
        >>> config = ImplicitMamba2Config(vocab_size=11, hidden_size=16, num_hidden_layers=2, implicit=False)
        >>> model = to_implicit(ImplicitMamba2ForCausalLM(config), deq={"mode": "sequential"})
        >>> model.config.implicit, model(torch.tensor([[3, 1, 4]])).steps.shape
        (True, torch.Size([1]))
    """
    require(not model.config.implicit, "model", "implicit already", "explicit (config.implicit=False)")
    known = ("first_block", "xavier")
    require(injection in known, "injection", injection, f"one of {', '.join(known)}")
    config = copy.deepcopy(model.config)
    config.implicit, config.deq, config.imported = True, DeqOptions.of(deq), None
    made: Any = type(model)(config)
    made.to(device=model.device, dtype=model.dtype)
    _copy(model.lm, made.lm)
    into: Any = made.lm.backbone.injection
    if injection == "xavier":
        weight = nn.init.xavier_normal_(torch.empty_like(into.weight))
    else:
        weight = _input_projection(cast(Block, model.lm.backbone.layers[0]))
    _set_weight(into, weight)
    return made.train(model.training)


def _copy(explicit: ImplicitLM, implicit: ImplicitLM) -> None:
    """Copy all parameters; plain weights become the normalised ones of the same layers."""
    there = dict(implicit.named_modules())
    state = implicit.state_dict()
    for name, tensor in explicit.state_dict().items():
        layer = there[name.rpartition(".")[0]]
        if name in state:
            state[name].copy_(tensor)
        else:
            assert isinstance(layer, Normed)
            _set_weight(layer, tensor)


def _set_weight(layer: Any, weight: Tensor) -> None:
    if not isinstance(layer, Normed):
        layer.weight.copy_(weight)
        return
    norms = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    layer.weight_v.copy_(weight)
    layer.weight_g.copy_(norms)


def _input_projection(block: Block) -> Tensor:
    """Return the map from the normalised embeddings to the input projections of a block, (U, D)."""
    mixer, scale = block.mixer, cast(Any, block.norm.weight)
    if not hasattr(mixer, "input_weight"):
        raise TypeError(
            f"where the input of a {type(mixer).__name__} enters is not known: give it input_weight(), see "
            "deqlm.layers.Mixer, or use injection='xavier'"
        )
    return mixer.input_weight() * scale
