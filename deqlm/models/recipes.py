"""How the models of the paper were pretrained, as plain data: what is trained, on how much, in which phases."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deqlm.models.options import LMOptions
from deqlm.models.presets import preset
from deqlm.training import Phases, Schedule, bounded
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, suggest, whole

__all__ = ["RECIPES", "Recipe", "RecipePhase", "recipe"]


@options
class RecipePhase(Options):
    """A part of a training, by its share of the steps.

    Args:
        share: of the steps, in (0, 1].
        max_iter: most evaluations of f without a graph, per solve.
        phantom: damped steps with one.
        rtol: tolerance of the rule of `deqlm.training.bounded`.

    Raises:
        ValueError: a value that breaks its rule.

    Examples:
        >>> RecipePhase(share=0.8, max_iter=4, phantom=1).rtol
        0.05
    """

    share: float
    max_iter: int
    phantom: int
    rtol: float = 0.05

    def __post_init__(self) -> None:
        number("share", self.share, "in (0, 1]", lambda s: 0 < s <= 1)
        whole("max_iter", self.max_iter, 1)
        whole("phantom", self.phantom, 1)
        number("rtol", self.rtol, "> 0", lambda t: 0 < t < float("inf"))


@options
class Recipe(Options):
    """A pretraining. `deqlm plan` says what it costs, ``examples/pretrain`` runs it.

    Args:
        model: options, a dict of them, or the name of a preset.
        tokens: of the whole training, >= batch_tokens.
        batch_tokens: per optimizer step, a multiple of ``length``.
        length: tokens per sequence.
        phases: in order, their shares adding up to 1; none for an explicit model.
        lr: highest rate.
        end_lr: rate of the last step.
        warm_up: steps of the linear warm-up.
        decay_share: share of the steps, at the end, in which the rate decays with the square root.
        weight_decay: of matrices; norms, biases, A_log, D, dt_bias and embeddings have none.
        betas: of AdamW.
        clip: largest norm of the gradient.

    Raises:
        ValueError, TypeError, KeyError: a value that breaks its rule, or an option that is not known.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML: 207 B tokens, a million per step, bounded for
        80 % of the steps, free for the rest. Deviates: the paper does not say how long the warm-up is, nor where the
        gradient is clipped.

    Examples:
        >>> plan = recipe("mamba2-1.3b")
        >>> plan.steps, [phase.steps for phase in plan.solving.phases]
        (197410, [157928, 39482])
    """

    model: LMOptions
    tokens: int
    batch_tokens: int = 2**20
    length: int = 2048
    phases: tuple[RecipePhase, ...] = ()
    lr: float = 1e-3
    end_lr: float = 1e-5
    warm_up: int = 2000
    decay_share: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _model(self.model))
        made = tuple(RecipePhase.from_dict(p) if isinstance(p, Mapping) else p for p in self.phases)
        object.__setattr__(self, "phases", made)
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("tokens", "batch_tokens", "length"):
            whole(name, getattr(self, name), 1, None)
        rule = f"a multiple of length={self.length}"
        require(self.batch_tokens % self.length == 0, "batch_tokens", self.batch_tokens, rule)
        require(self.tokens >= self.batch_tokens, "tokens", self.tokens, f">= batch_tokens={self.batch_tokens}")
        number("weight_decay", self.weight_decay, ">= 0 and finite", lambda d: 0 <= d < float("inf"))
        number("clip", self.clip, "> 0 and finite", lambda c: 0 < c < float("inf"))
        number("decay_share", self.decay_share, "in (0, 1]", lambda s: 0 < s <= 1)
        number("end_lr", self.end_lr, "in [0, lr]", lambda e: 0 <= e <= self.lr)
        if not self.model.implicit:
            require(not self.phases, "phases", self.phases, "none for an explicit model, which solves nothing")
        else:
            total = sum(phase.share for phase in made)
            require(abs(total - 1) < 1e-9, "phases", [p.share for p in made], "shares that add up to 1")
        _ = self.schedule

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens

    @property
    def schedule(self) -> Schedule:
        """The learning rate."""
        begin = max(min(self.warm_up, self.steps - 1), round((1 - self.decay_share) * self.steps))
        return Schedule(
            lr=self.lr,
            warm_up=min(self.warm_up, self.steps - 1),
            decay="square_root",
            steps=self.steps,
            floor=self.end_lr / self.lr,
            begin=min(begin, self.steps - 1),
        )

    @property
    def solving(self) -> Phases:
        """The phases by their steps, the last of which has no end.

        Raises:
            ValueError: an explicit model.
        """
        counts = [max(1, round(phase.share * self.steps)) for phase in self.phases[:-1]]
        counts = [*counts, max(1, self.steps - sum(counts))] if self.phases else []
        return Phases(
            tuple(
                bounded(count, max_iter=phase.max_iter, phantom=phase.phantom, rtol=phase.rtol)
                for phase, count in zip(self.phases, counts, strict=True)
            )
        )


def _model(given: Any) -> LMOptions:
    made = preset(given) if isinstance(given, str) else given
    made = LMOptions.from_dict(made) if isinstance(made, Mapping) else made
    require(isinstance(made, LMOptions), "model", given, "LMOptions, a dict of them, or the name of a preset")
    return made


BOUNDED = RecipePhase(share=0.8, max_iter=4, phantom=1)
RATES = {"130m": 3e-3, "370m": 1.5e-3, "760m": 1.25e-3, "1.3b": 1e-3}
"""Five times those of GPT-3 of the same size."""
TOKENS = 207 * 10**9


def _paper(family: str, size: str) -> Recipe:
    options = preset(f"{family}-{size}-implicit")
    free = RecipePhase(share=0.2, max_iter=options.max_iter, phantom=options.phantom_steps)
    return Recipe(model=options, tokens=TOKENS, phases=(BOUNDED, free), lr=RATES[size])


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {f"{family}-{size}": _paper(family, size) for family in ("mamba2", "llama3") for size in RATES}
)
"""Name -> `Recipe`: both families in the four sizes of M. Schoene et al. (2025)."""


def recipe(name: str) -> Recipe:
    """Return a named recipe; change it by ``replace``.

    Args:
        name: one of `RECIPES`.

    Raises:
        KeyError: an unknown name; the message names the nearest one.

    Examples:
        >>> recipe("llama3-130m").phases[1].max_iter
        32
    """
    if name not in RECIPES:
        raise KeyError(f"unknown recipe {name!r}: {suggest(name, RECIPES)}")
    return RECIPES[name]
