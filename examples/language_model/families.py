"""The two tiny models, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deqlm.hf import (
    ImplicitConfig,
    ImplicitForCausalLM,
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
)
from deqlm.training import Curriculum, Phases, Stage, bounded, free
from examples.loop import LoopOptions

__all__ = ["FAMILIES", "LENGTH", "Family"]

LENGTH, ROWS, WIDTH = 64, 16, 64
BOUNDED = 0.8
"""Part of the steps in which a solve is 4 evaluations and 1 differentiated step, as in the paper's pretraining."""


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Args:
        model: its class.
        config: class of its configuration.
        sizes: keys of the configuration.
        max_iter: most evaluations per solve in the free phase.
    """

    model: type[ImplicitForCausalLM]
    config: type[ImplicitConfig]
    sizes: dict[str, Any]
    max_iter: int

    def make(self, *, implicit: bool = True) -> ImplicitForCausalLM:
        """Return the model with initial weights, or its explicit twin."""
        return self.model(self.config(vocab_size=256, hidden_size=WIDTH, implicit=implicit, **self.sizes))

    def training(self, steps: int, *, lr: float, seed: int = 0, implicit: bool = True) -> LoopOptions:
        """Return how ``steps`` optimizer steps are taken, four fifths of them in the bounded phase."""
        return LoopOptions(
            steps=steps,
            curriculum=Curriculum((Stage(length=LENGTH, rows=ROWS),)),
            phases=self.phases(steps) if implicit else None,
            lr=lr,
            warm_up=min(20, steps // 2),
            seed=seed,
            log_every=max(1, steps // 30),
            evaluate_every=max(1, steps // 5),
        )

    def phases(self, steps: int) -> Phases:
        """Return the phases of a training of ``steps``."""
        most = max(1, round(BOUNDED * steps))
        return Phases((bounded(most), free(max_iter=self.max_iter)))


MAMBA2 = {"num_hidden_layers": 1, "state_size": 16, "head_dim": 32}
LLAMA = {"num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 128}

FAMILIES = {
    "mamba2": Family(ImplicitMamba2ForCausalLM, ImplicitMamba2Config, MAMBA2, 24),
    "llama": Family(ImplicitLlamaForCausalLM, ImplicitLlamaConfig, LLAMA, 32),
}
"""By name. The caps of the free phase are the paper's."""
