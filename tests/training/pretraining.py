"""A pretraining that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from examples.pretrain.processes import World
from examples.pretrain.settings import Settings
from examples.pretrain.train import Training

MODEL: dict[str, Any] = {"vocab_size": 257, "d_model": 16, "n_layer": 1, "best_f": True}
MIXERS: dict[str, Any] = {
    "mamba2": {"mixer": {"name": "mamba2", "d_state": 4, "headdim": 16}},
    "llama3": {"mixer": {"name": "attention", "n_head": 2}, "d_hidden": 24},
}
PHASES = [{"share": 0.5, "max_iter": 3, "phantom": 1}, {"share": 0.5, "max_iter": 8, "phantom": 2}]


def settings(steps: int = 6, family: str = "mamba2", **changes: Any) -> Settings:
    """Return a training of two sequences of 16 bytes per pass and four per step."""
    recipe = {
        "model": {**MODEL, **MIXERS[family], **changes.pop("model", {})},
        "length": 16,
        "batch_tokens": 64,
        "tokens": 64 * steps,
        "phases": changes.pop("phases", PHASES),
        "warm_up": 2,
        **changes.pop("recipe", {}),
    }
    given = {"recipe": recipe, "held_out": 64, "rows": 2, "log_every": 1, "evaluate_rows": 2}
    return Settings.from_dict({**given, **changes})


def alone() -> World:
    return World(0, 1, torch.device("cpu"))


def text(folder: Path) -> Path:
    file = folder / "text.txt"
    if not file.exists():
        file.write_text("".join(f"{n} squared is {n * n}.\n" for n in range(400)))
    return file


def training(folder: Path, given: Settings | None = None, **options: Any) -> Training:
    given = settings() if given is None else given
    if given.source is None:
        given = given.replace(source=str(text(folder)))
    return Training(given, alone(), folder / "run", folder / "data", show=False, **options)


def stopped_at(made: Training, step: int) -> Training:
    """Train to a step and then, as a kill would, go on no more; a checkpoint under way is waited for."""
    while made.step < step:
        made._keep_books(made._step())
    made.checkpoints.finish()
    return made


def weights(made: Training) -> list[torch.Tensor]:
    return [*made.model.state_dict().values()]
