"""The model of a training: made, placed on its processes, and solved as the phase of a step says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deqlm.models import ImplicitLM
from deqlm.training import Phase, adamw
from examples.pretrain.processes import World
from examples.pretrain.settings import Settings

__all__ = ["apply_phase", "export", "make_model", "make_optimizer", "place", "without_grad"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


def make_model(settings: Settings, device: torch.device) -> ImplicitLM:
    """Return the model with the initial weights of the seed, the same in every process."""
    torch.manual_seed(settings.seed)
    model = settings.recipe.model.make(dtype=DTYPES[settings.precision]).to(device)
    if settings.recompute:
        model.backbone.checkpoint = _recomputed
    return model


def place(model: ImplicitLM, settings: Settings, world: World) -> nn.Module:
    """Return what is called in place of ``model``: sharded in place, or behind DDP."""
    if world.size == 1:
        return model
    if settings.parallel == "ddp":
        devices = [world.device] if world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    half = settings.precision == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for part in (*(model.backbone.layers if settings.shard == "blocks" else ()), model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """Return AdamW, which decays matrices only."""
    recipe = settings.recipe
    return adamw(model, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)


def apply_phase(model: ImplicitLM, phase: Phase, world: World) -> None:
    """Solve as ``phase`` says; several processes end together, as one process with all their rows would."""
    if world.size > 1 and not phase.stop.is_budget:
        phase = phase.replace(stop=phase.stop.replace(collective=True))
    phase.apply(model)


def without_grad(model: ImplicitLM, world: World) -> dict[str, Any]:
    """Return how to evaluate without grad: several processes end together, and in one solve of all tokens."""
    if not model.backbone.implicit:
        return {}
    stop = model.no_grad.stop
    quiet: dict[str, Any] = {"on_failure": "ignore"}
    return {**quiet, "stop": stop.replace(collective=True)} if world.size > 1 and not stop.is_budget else quiet


def export(model: ImplicitLM, settings: Settings, folder: Any, state: dict[str, Any]) -> None:
    """Write the model as `deqlm.hf` loads it, from the whole state of its weights."""
    from deqlm.hf import ImplicitLlamaForCausalLM, ImplicitMamba2ForCausalLM

    options = settings.recipe.model
    classes = {"mamba2": ImplicitMamba2ForCausalLM, "attention": ImplicitLlamaForCausalLM}
    kind = classes[options.mixer.name or ""]
    made = kind.config_class.from_lm_options(options)  # type: ignore[union-attr]
    saved = kind(made)
    saved.lm.load_state_dict(state)
    saved.save_pretrained(folder)
    if settings.tokenizer == "bytes":
        from examples.pretrain.byte_words import byte_words

        byte_words().save_pretrained(folder)


def _recomputed(block: nn.Module, *args: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False)
