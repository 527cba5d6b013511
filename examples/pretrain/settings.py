"""A pretraining as one JSON file: the recipe, the data, and how it runs here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deqlm.models import RECIPES, Recipe, recipe
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, suggest, whole
from examples.loop.guard import Guard

__all__ = ["CONFIGS", "Settings", "read_settings"]

CONFIGS = Path(__file__).parent / "configs"

IDENTITY = ("recipe", "source", "tokenizer", "end", "held_out", "stream", "precision", "seed", "guard")
"""What the numbers of a training depend on, but for rounding and the cut of its batches among processes."""


@options
class Settings(Options):
    """How to pretrain.

    Args:
        recipe: what is trained, a name of `deqlm.models.RECIPES` or a dict of a `Recipe`.
        source: of the text, see `examples.pretrain.documents`; None is Python's help pages.
        tokenizer: "bytes", or the path of a tokenizer.json or its folder.
        end: text of the token behind a document, for a tokenizer from a file.
        held_out: tokens at the end of the corpus that are not trained on.
        stream: tokenise while reading instead of writing shards first; held-out windows then are the first ones.
        workers: processes that tokenise a stream, of each training process; they need torchdata.
        rows: sequences per process and backward pass; passes are added up to the tokens of a step.
        precision: "float32", "bfloat16" (parameters and sums stay float32) or "float64".
        parallel: "ddp" (every process has the weights) or "fsdp" (they are shared out); not used by one process.
        shard: what FSDP gathers at once: the "model", once per call, or "blocks", at every evaluation, which takes less
            memory and more talk.
        recompute: evaluate blocks again in backward instead of keeping what is inside them.
        seed: of the weights, the order of the windows and dropout.
        log_every: steps per line of metrics.jsonl.
        evaluate_every: steps between perplexities on the held-out tokens; None at the end only.
        evaluate_rows: held-out windows that are looked at.
        checkpoint_every: steps between checkpoints; None at the end only.
        keep: newest checkpoints that stay.
        guard: what to do when the training collapses, a `Guard` or a dict of its fields; None does nothing.
        timeout: seconds that a process waits for another one.

    Raises:
        ValueError, TypeError, KeyError: a value that breaks its rule, or an option that is not known.
    """

    recipe: Recipe
    source: str | None = None
    tokenizer: str = "bytes"
    end: str = "<|endoftext|>"
    held_out: int = 2**20
    stream: bool = False
    workers: int = 0
    rows: int = 8
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    shard: Literal["model", "blocks"] = "model"
    recompute: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int | None = None
    evaluate_rows: int = 64
    checkpoint_every: int | None = None
    keep: int = 2
    guard: Guard | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        given = self.recipe
        made = recipe(given) if isinstance(given, str) else given
        made = Recipe.from_dict(made) if isinstance(made, Mapping) else made
        require(isinstance(made, Recipe), "recipe", given, "a Recipe, a dict of its fields, or a name of RECIPES")
        object.__setattr__(self, "recipe", made)
        if isinstance(self.guard, Mapping):
            object.__setattr__(self, "guard", Guard.from_dict(self.guard))
        require(isinstance(self.guard, Guard | None), "guard", self.guard, "a Guard, a dict of its fields, or None")
        for name in ("held_out", "rows", "log_every", "evaluate_rows", "keep"):
            whole(name, getattr(self, name), 1, None)
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1, None)
        whole("seed", self.seed, 0, sys.maxsize)
        whole("workers", self.workers, 0)
        require(self.workers == 0 or self.stream, "workers", self.workers, "0 without stream=True")
        known = {"precision": ("float32", "bfloat16", "float64"), "parallel": ("ddp", "fsdp")}
        known["shard"] = ("model", "blocks")
        for name, values in known.items():
            require(getattr(self, name) in values, name, getattr(self, name), f"one of {values}")
        whole_model = self.shard == "model" or self.parallel == "fsdp"
        require(whole_model, "shard", self.shard, "'model' without parallel='fsdp'")
        number("timeout", self.timeout, "> 0", lambda t: t > 0)

    def passes(self, processes: int) -> int:
        """Return how many backward passes a step has.

        Raises:
            ValueError: the rows of a step cannot be shared out evenly.
        """
        batch, at_once = self.recipe.batch_tokens // self.recipe.length, self.rows * processes
        rule = f"so many that rows x {processes} processes divide the {batch} sequences of a step"
        require(batch % at_once == 0, "rows", self.rows, rule)
        return batch // at_once

    def identity(self) -> dict[str, Any]:
        """Return the settings that the numbers depend on; a checkpoint goes on with equal ones only."""
        return {name: value for name, value in self.to_dict().items() if name in IDENTITY}


def read_settings(name: str, changes: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a configuration.

    Args:
        name: of a file in ``configs/``, of a recipe, or the path of a JSON file.
        changes: fields in place of those of the file; "recipe.lr" is one of the recipe.

    Raises:
        ValueError: no such configuration, or one that cannot be read.
    """
    found = {path.stem: path for path in CONFIGS.glob("*.json")}
    path = Path(name) if name.endswith(".json") else found.get(name)
    if path is None and name not in RECIPES:
        raise ValueError(f"unknown config {name!r}: {suggest(name, [*found, *RECIPES])}; or the path of a .json file")
    try:
        data = {"recipe": name} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {name!r} cannot be read: {error}") from error
    for key, value in (changes or {}).items():
        head, _, rest = key.partition(".")
        if head == "recipe" and rest:
            given = data["recipe"]
            data["recipe"] = recipe(given).to_dict() if isinstance(given, str) else given
            _put(data["recipe"], rest, value)
        else:
            _put(data, key, value)
    return Settings.from_dict(data)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        data = data.setdefault(part, {})
    data[last] = value
