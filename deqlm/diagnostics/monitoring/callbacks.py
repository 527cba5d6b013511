"""Callbacks of trainers, whose packages are imported when a callback is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

__all__ = ["Watched", "lightning_callback", "trainer_callback"]


class Watched(Protocol):
    """What a callback needs of a monitor."""

    step: int | None

    def scalars(self) -> dict[str, float]:
        """Return what is new."""
        ...


def trainer_callback(seen: Watched) -> Any:
    """Return a callback of transformers' ``Trainer``; see `Monitor.trainer_callback`."""
    try:
        base: Any = import_module("transformers").TrainerCallback
    except ImportError as error:
        raise ImportError('a callback of Trainer needs transformers: pip install "deqlm[hf]"') from error

    class Callback(base):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.step = state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs is not None:
                logs.update({f"deqlm/{name}": value for name, value in seen.scalars().items()})

    return Callback()


def lightning_callback(seen: Watched) -> Any:
    """Return a callback of Lightning; see `Monitor.lightning_callback`."""
    name = next((name for name in ("lightning.pytorch", "pytorch_lightning") if _is_there(name)), None)
    if name is None:
        raise ImportError("a callback of Lightning needs lightning: pip install lightning")
    base: Any = import_module(name).Callback

    class Callback(base):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.step = trainer.global_step

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            pl_module.log_dict({f"deqlm/{name}": value for name, value in seen.scalars().items()})

    return Callback()


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
