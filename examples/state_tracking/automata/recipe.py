"""One training on one automaton as plain data, and the recipes of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from deqlm.models import AttentionOptions, LMOptions, Mamba2Options
from deqlm.training import Curriculum, Stage, free, warm_up
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, suggest, whole
from examples.loop import LoopOptions
from examples.state_tracking.automata.contract import SHORTEST, Contract
from examples.state_tracking.automata.references import LSTM, PDSSM, DeltaProduct, Reference
from examples.state_tracking.automata.tasks import contract

__all__ = ["MODELS", "OURS", "AutomatonRecipe", "ReferenceOptions", "baseline", "implicit"]

KINDS: dict[str, Callable[[int], nn.Module]] = {"lstm": LSTM, "delta_product": DeltaProduct, "pd_ssm": PDSSM}

OURS = "implicit, 1 layer"
TOKENS = 2048
"""Per step."""

UNROLLED = 12
"""Longest sequence whose solve is unrolled in training; longer ones are solved."""

SMALL = {"width": 32, "lr": 5e-3, "steps": 900, "hop": 1, "more": 2, "until": 0.98}
LARGE = {"width": 64, "lr": 3e-3, "steps": 1300, "hop": 2, "more": 4, "until": 0.97, "chunk": UNROLLED}
TRACES = {"width": 64, "lr": 3e-3, "steps": 500, "hop": 3, "more": 5, "until": 0.95, "chunk": UNROLLED}
SETTINGS: dict[str, dict[str, Any]] = {
    "cycle_navigation": SMALL,
    "even_pairs": SMALL,
    "modular_arithmetic": LARGE,
    "parity": SMALL,
    "modular_arithmetic_brackets": LARGE,
    "repl_traces": TRACES,
}
"""What differs between the tasks: width, highest rate, the steps over which it would decay to zero; tokens per
evaluation of an unrolled solve, as many as one step of the automaton reads, and how many more evaluations; the accuracy
that ends a stage; and the tokens that a training solve of longer sequences takes at a time, all of them where none is
given."""


@options
class ReferenceOptions(Options):
    """A model of `examples.state_tracking.automata.references` as plain data.

    Args:
        kind: "lstm", "delta_product" or "pd_ssm".
        width: of the model.
        layers: how many.
        rows: tokens and answers.

    Raises:
        ValueError, KeyError: a value that breaks its rule, or an unknown kind.
    """

    kind: str
    rows: int
    width: int = 64
    layers: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "width", "layers"):
            whole(name, getattr(self, name), 1)
        if self.kind not in KINDS:
            raise KeyError(f"unknown reference {self.kind!r}: {suggest(self.kind, KINDS)}")

    @property
    def implicit(self) -> bool:
        """Whether anything is solved."""
        return False

    def make(self) -> Reference:
        """Return the model, with weights from torch's generator."""
        return Reference(self.rows, self.width, [KINDS[self.kind](self.width) for _ in range(self.layers)])


@options
class AutomatonRecipe(Options):
    """One training and its tests.

    Args:
        label: what tables and plots call the model.
        task: name of a contract.
        model: what is trained.
        loop: how.
        mixed: as for `examples.state_tracking.automata.task.Automaton`.
        lengths: tested ones; None is 25, evenly from the shortest to the longest of the contract.
        rows: sequences per tested length.
        split: "test" for what is shown, "valid" for a choice.
        chunk: tokens that a solve of more than `UNROLLED` tokens takes at a time in training; None is all of them.

    Raises:
        ValueError, TypeError, KeyError: a value that breaks its rule, an unknown task, a model without a row for every
            token.
    """

    label: str
    task: str
    model: LMOptions | ReferenceOptions
    loop: LoopOptions
    mixed: float = 0.5
    lengths: tuple[int, ...] | None = None
    rows: int = 40
    split: Literal["valid", "test"] = "test"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, Mapping):
            kind = ReferenceOptions if "kind" in self.model else LMOptions
            object.__setattr__(self, "model", kind.from_dict(self.model))
        if isinstance(self.loop, Mapping):
            object.__setattr__(self, "loop", LoopOptions.from_dict(self.loop))
        number("mixed", self.mixed, "in [0, 1]", lambda share: 0 <= share <= 1)
        whole("rows", self.rows, 1)
        if self.chunk is not None:
            whole("chunk", self.chunk, UNROLLED)
            require(self.model.implicit, "chunk", self.chunk, "None for a model that solves nothing")
        require(self.split in ("valid", "test"), "split", self.split, "'valid' or 'test'")
        needed, there = self.contract.rows, self.model.rows
        require(there >= needed, "rows of the model", there, f">= {needed}, tokens and answers of {self.task}")
        if self.lengths is None:
            low, high = self.contract.tested
            object.__setattr__(self, "lengths", tuple(low + (high - low) * i // 24 for i in range(25)))
        else:
            object.__setattr__(self, "lengths", tuple(self.lengths))
        for stage in self.loop.curriculum.stages:
            whole("length of a stage", stage.length, SHORTEST)
        for length in self.lengths or ():
            whole("tested length", length, SHORTEST)

    @property
    def contract(self) -> Contract:
        """The task."""
        return contract(self.task)


def implicit(task: str, seed: int = 0, *, tokens: int = TOKENS, **changes: Any) -> AutomatonRecipe:
    """Return the training of one implicit Mamba2 layer on a task.

    Sequences of up to 12 tokens are unrolled for a few evaluations more than the automaton takes steps, longer ones are
    solved and differentiated through six phantom steps. A stage ends when the last tokens of 20 steps are right.

    Args:
        task: name of a contract.
        seed: of weights and batches.
        tokens: per step.
        changes: of the options of the loop.
    """
    found, given = contract(task), SETTINGS[task]
    model = LMOptions(
        vocab_size=found.rows,
        d_model=given["width"],
        n_layer=1,
        mixer=Mamba2Options(d_state=16, headdim=32),
        weight_norm=False,
        labels="aligned",
    )
    how = {"lr": given["lr"], "steps": given["steps"], "seed": seed, **changes}
    loop = _loop(_stages(found, given, tokens, solved=True), **how)
    return AutomatonRecipe(label=OURS, task=task, model=model, loop=loop, chunk=given.get("chunk"))


def baseline(
    label: str, task: str, *, lr: float, seconds: float, curriculum: bool = True, seed: int = 0, **changes: Any
) -> AutomatonRecipe:
    """Return the training of another model for ``seconds`` of CPU time, at a rate that stays.

    Args:
        label: one of `MODELS`.
        task: name of a contract.
        lr: its rate.
        seconds: of the process.
        curriculum: the stages of the implicit layer; False draws every length from the first step on, as published.
        seed: of weights and batches.
        changes: of the recipe.

    Raises:
        KeyError: an unknown label.
    """
    if label not in MODELS:
        raise KeyError(f"unknown model {label!r}: {suggest(label, MODELS)}")
    found = contract(task)
    stages = _stages(found, SETTINGS[task], TOKENS, solved=False)
    timed = {"decay": "constant", "time_limit": seconds, "clock": "cpu"}
    loop = _loop(stages if curriculum else stages[-1:], lr=lr, steps=10**6, seed=seed, **timed)
    mixed = 0.5 if curriculum else 1.0
    return AutomatonRecipe(label=label, task=task, model=MODELS[label](found.rows), loop=loop, mixed=mixed, **changes)


def _stages(found: Contract, given: dict[str, Any], tokens: int, *, solved: bool) -> tuple[Stage, ...]:
    lengths = [n for n in (3, 4, 6, 8, 10, 12, 20, 30) if n >= found.trained[0]] + [found.trained[1]]
    made = []
    for length in dict.fromkeys(found.tokens(n) for n in lengths):
        last = length >= found.trained[1]
        phase = None
        if solved:
            unrolled = warm_up(iterations=length // given["hop"] + given["more"], damping=1.0)
            at_once = min(length, given.get("chunk", length))
            phase = unrolled if length <= UNROLLED else free(max_iter=at_once + 8, phantom=6, damping=1.0)
        until = 0.998 if last else given["until"]
        made.append(Stage(length=length, rows=max(1, tokens // length), until=until, window=20, phase=phase))
    return tuple(made)


def _loop(stages: tuple[Stage, ...], **given: Any) -> LoopOptions:
    return LoopOptions(**{"curriculum": Curriculum(stages), "warm_up": 20, "log_every": 25, **given})


def _explicit(rows: int, **mixer: Any) -> LMOptions:
    return LMOptions(vocab_size=rows, weight_norm=False, labels="aligned", implicit=False, **mixer)


MODELS: dict[str, Callable[[int], LMOptions | ReferenceOptions]] = {
    "LSTM": lambda rows: ReferenceOptions(kind="lstm", rows=rows),
    "PD-SSM, 2 layers": lambda rows: ReferenceOptions(kind="pd_ssm", rows=rows, layers=2),
    "DeltaProduct, 2 layers": lambda rows: ReferenceOptions(kind="delta_product", rows=rows, layers=2),
    "Mamba2, 2 layers": lambda rows: _explicit(
        rows, d_model=64, n_layer=2, mixer=Mamba2Options(d_state=16, headdim=32)
    ),
    "transformer, 2 layers": lambda rows: _explicit(
        rows, d_model=64, n_layer=2, mixer=AttentionOptions(n_head=4), d_hidden=128
    ),
}
"""What stands beside the implicit layer, by its label; each takes the number of tokens and answers."""
