"""What a pretraining takes on a number of GPUs: memory, time, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from deqlm.models.cost import ModelCost, model_cost
from deqlm.models.recipes import Recipe
from deqlm_solvers.core.checks import number, require, suggest, whole

__all__ = ["GPU", "GPUS", "PhasePlan", "Plan", "plan_training"]


class GPU(NamedTuple):
    """One accelerator, as its maker states it.

    Attributes:
        teraflops: dense bfloat16 matrix products, 1e12 FLOP/s, without sparsity.
        gigabytes: memory, 1e9 bytes.
    """

    teraflops: float
    gigabytes: float


GPUS: Mapping[str, GPU] = MappingProxyType(
    {
        "a100-40gb": GPU(312, 40),
        "a100": GPU(312, 80),
        "h100": GPU(989, 80),
        "h200": GPU(989, 141),
        "b200": GPU(2250, 180),
        "mi250x": GPU(383, 128),
        "mi300x": GPU(1307, 192),
        "l40s": GPU(362, 48),
        "rtx4090": GPU(165, 24),
    }
)
"""Name -> `GPU`, from data sheets. None of them was measured here."""

UTILISATION = 0.35
"""Share of the stated rate that is assumed: about what large models reach in training. Measure, and give your own."""
RESERVE = 0.08
"""Share of the memory that fragments and the runtime take."""
STATE, GATHERED = 16, 4
"""Bytes per parameter: float32 weight, gradient and two moments; and bfloat16 weight and gradient where gathered."""


class PhasePlan(NamedTuple):
    """One phase.

    Attributes:
        name: evaluations + differentiated steps.
        steps: optimizer steps.
        flops: per token, forward and backward, at the most evaluations or at those that were given.
        tokens_per_second: of all GPUs.
        days: of this phase.
        share: of the days of the training.
    """

    name: str
    steps: int
    flops: float
    tokens_per_second: float
    days: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training takes.

    Attributes:
        memory: gigabytes per GPU, by what holds them.
        limit: gigabytes per GPU that can be used.
        phases: in order.
        rows: sequences per GPU and backward pass.
        passes: backward passes per step and GPU.
        utilisation: share of the stated rate.
        advice: what to change, in sentences; empty where it fits.

    Examples:
        >>> from deqlm.models import recipe
        >>> plan = plan_training(recipe("mamba2-1.3b"), gpu="h200", count=32, rows=2, recompute=True)
        >>> plan.fits, len(plan.phases), plan.passes
        (True, 2, 8)
    """

    memory: dict[str, float]
    limit: float
    phases: tuple[PhasePlan, ...]
    rows: int
    passes: int
    utilisation: float
    advice: tuple[str, ...]

    @property
    def needed(self) -> float:
        """Gigabytes per GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.needed <= self.limit

    @property
    def days(self) -> float:
        """Of the whole training."""
        return sum(phase.days for phase in self.phases)


def plan_training(
    recipe: Recipe,
    *,
    gpu: str,
    count: int,
    rows: int | None = None,
    utilisation: float | None = None,
    evaluations: float | None = None,
    rate: float | None = None,
    recompute: bool = False,
) -> Plan:
    """Return what a recipe takes, computed and not measured.

    Args:
        recipe: what is trained.
        gpu: a name of `GPUS`.
        count: GPUs, whose number divides the sequences of a step.
        rows: sequences per GPU and backward pass; None is the largest number that fits.
        utilisation: share of the stated rate, in (0, 1]; None is .35.
        evaluations: mean evaluations of the last phase, where they are known; None is the most.
        rate: measured tokens per second of one GPU in the first phase, in place of the stated rate.
        recompute: blocks are evaluated again in backward.

    Raises:
        KeyError: a GPU that is not known; the message names the nearest.
        ValueError: a number out of range, or GPUs that cannot share the sequences of a step.
    """
    if gpu.lower() not in GPUS:
        raise KeyError(f"unknown GPU {gpu!r}: {suggest(gpu.lower(), GPUS)}")
    whole("count", count, 1)
    batch = recipe.batch_tokens // recipe.length
    require(batch % count == 0, "count", count, f"a divisor of the {batch} sequences of a step")
    if rows is not None:
        whole("rows", rows, 1)
        require((batch // count) % rows == 0, "rows", rows, f"a divisor of the {batch // count} sequences of a GPU")
    machine, each = GPUS[gpu.lower()], batch // count
    limit = machine.gigabytes * (1 - RESERVE)
    if rows is None:
        options = [n for n in range(1, each + 1) if each % n == 0]
        fitting = [n for n in options if sum(_memory(recipe, count, n, recompute).values()) <= limit]
        rows = max(fitting, default=1)
    memory = _memory(recipe, count, rows, recompute)
    share, phases = _phases(recipe, machine, count, utilisation, evaluations, rate, recompute)
    made = {"memory": memory, "limit": limit, "phases": phases, "rows": rows, "passes": each // rows}
    return Plan(**made, utilisation=share, advice=_advice(memory, limit, rows, count, recompute))  # type: ignore[arg-type]


def train_flops(cost: ModelCost, evaluations: float, differentiated: float, *, recompute: bool = False) -> float:
    """Return the FLOPs of a token, forward and backward; backward counts two evaluations for one.

    Args:
        cost: of the model.
        evaluations: of f, the differentiated ones included.
        differentiated: of these.
        recompute: differentiated ones are made once more in backward.
    """
    again = 3 if recompute else 2
    return 3 * cost.once + cost.evaluation * (evaluations + again * differentiated)


def _phases(
    recipe: Recipe,
    machine: GPU,
    count: int,
    utilisation: float | None,
    evaluations: float | None,
    rate: float | None,
    recompute: bool,
) -> tuple[float, tuple[PhasePlan, ...]]:
    cost = model_cost(recipe.model, context=recipe.length // 2)
    if utilisation is not None:
        number("utilisation", utilisation, "in (0, 1]", lambda u: 0 < u <= 1)
        require(rate is None, "utilisation", utilisation, "left away beside a measured rate")
    if rate is not None:
        number("rate", rate, "> 0", lambda r: r > 0)
    parts: list[tuple[str, int, float]] = []
    steps = [phase.steps or 0 for phase in recipe.solving.phases] if recipe.phases else [recipe.steps]
    for index, taken in enumerate(steps):
        if not recipe.phases:
            parts.append(("explicit", taken, train_flops(cost, 1, 1, recompute=recompute)))
            continue
        phase = recipe.phases[index]
        most = phase.max_iter
        if evaluations is not None and index == len(steps) - 1:
            number("evaluations", evaluations, f"in (0, {most}]", lambda e, most=most: 0 < e <= most)
            most = evaluations
        flops = train_flops(cost, most + phase.phantom, phase.phantom, recompute=recompute)
        parts.append((f"{most:g} + {phase.phantom}", taken, flops))
    peak = machine.teraflops * 1e12
    if rate is not None:
        utilisation = rate * parts[0][2] / peak
        number("rate", rate, f"below what {peak:.3g} FLOP/s allow", lambda _: utilisation <= 1)
    share = UTILISATION if utilisation is None else utilisation
    speeds = [count * peak * share / flops for _, _, flops in parts]
    seconds = [taken * recipe.batch_tokens / speed for (_, taken, _), speed in zip(parts, speeds, strict=True)]
    return share, tuple(
        PhasePlan(name, taken, flops, speed, spent / 86400, spent / sum(seconds))
        for (name, taken, flops), speed, spent in zip(parts, speeds, seconds, strict=True)
    )


def _memory(recipe: Recipe, count: int, rows: int, recompute: bool) -> dict[str, float]:
    """Return gigabytes per GPU where weights and moments are shared out and the model is gathered once per call."""
    model, cost = recipe.model, model_cost(recipe.model)
    tokens, width = rows * recipe.length, model.d_model
    differentiated = max((phase.phantom for phase in recipe.phases), default=1)
    kept = 4 * width if recompute else _inside(model)
    activations = 2 * tokens * (model.n_layer * kept + 2 * width) * differentiated
    if recompute:
        activations += 2 * tokens * _inside(model)
    held: dict[str, Any] = {
        "weights, gradients, moments": STATE * cost.parameters / count,
        "gathered weights": GATHERED * cost.parameters,
        "activations": activations,
        "solver states": 4 * 5 * tokens * width,
        "logits and their gradient": tokens * model.rows * (2 + 4 + 4),
    }
    return {name: size / 1e9 for name, size in held.items()}


def _inside(model: Any) -> int:
    """Return how many numbers per token a block keeps for backward: both sides of its products, and norms."""
    block = model.replace(n_layer=1).make("meta").backbone.layers[0]
    inputs = sum(m.in_features + m.out_features for m in block.modules() if hasattr(m, "in_features"))
    return inputs + 4 * model.d_model


def _advice(memory: dict[str, float], limit: float, rows: int, count: int, recompute: bool) -> tuple[str, ...]:
    if sum(memory.values()) <= limit:
        return ()
    found = []
    if rows > 1:
        found.append(f"take fewer rows per GPU than {rows}; passes are added up to the tokens of a step")
    if not recompute:
        found.append("evaluate blocks again in backward (--recompute, recompute=True): activations shrink most")
    if memory["gathered weights"] > 0.1 * limit:
        found.append("gather block by block (shard='blocks', with Stop(collective=True)) instead of the whole model")
    if memory["weights, gradients, moments"] > 0.1 * limit:
        found.append(f"share weights and moments out among more GPUs than {count}")
    return (*found, "or take a GPU with more memory, or a smaller model")
