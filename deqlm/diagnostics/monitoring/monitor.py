"""Collects what the solves of a model came to, call by call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deqlm.diagnostics.monitoring.callbacks import lightning_callback, trainer_callback
from deqlm.diagnostics.monitoring.plot import draw
from deqlm.diagnostics.monitoring.record import Call, Entry
from deqlm.diagnostics.monitoring.table import table
from deqlm.equilibrium.module import Equilibrium
from deqlm.models import ImplicitLM
from deqlm_solvers.core.checks import require

__all__ = ["Monitor", "monitor"]

WAITING = 128
"""Calls whose numbers may stay on the device before the older half of them is read."""


def monitor(model: nn.Module) -> Monitor:
    """Return a `Monitor` of all solves in a model, from now until it is closed.

    Args:
        model: a `DEQ`, an `Equilibrium`, a language model, or any module that holds some.

    Raises:
        ValueError: nothing in it solves.

    Examples:
        >>> import deqlm, torch
        >>> model = torch.nn.Sequential(deqlm.DEQ(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 1))
        >>> seen = deqlm.monitor(model)
        >>> for seen.step in range(3):
        ...     model(torch.randn(8, 4)).sum().backward()
        >>> len(seen.calls), seen.calls[0].module, seen.calls[2].step
        (3, '0', 2)
        >>> seen.close()
    """
    return Monitor(model)


class Monitor:
    """What the solves of a model came to: a list of `Call`, a table, a plot, scalars for a logger.

    It reads `last` of every module that solves after each of its calls, in train() and eval(), and keeps numbers only.
    Nothing is read from the device at a call, but for the older half of 128 calls once they have gathered. A copy of
    the model is not watched.

    Args:
        model: see `monitor`.

    Attributes:
        step: the training step that calls are filed under; set it in your loop, or let a callback do so. None files
            a call under its number.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a module, got {type(model).__name__}")
        named = model.named_modules()
        found = {name or type(m).__name__: m for name, m in named if isinstance(m, Equilibrium | ImplicitLM)}
        require(
            bool(found), "model", type(model).__name__, "a DEQ, an Equilibrium, an ImplicitLM, or one that holds some"
        )
        self.step: int | None = None
        self._count = 0
        self._told = 0
        self._entries: list[Entry] = []
        self._calls: list[Call] = []
        self._hooks = [module.register_forward_hook(_Listener(self, name)) for name, module in found.items()]

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer; what was collected stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def calls(self) -> list[Call]:
        """All calls so far, in order; reads from the device what has not been read yet."""
        # a backward that is still to come is read next time
        return [*self._calls, *(entry.read() for entry in self._entries)]

    def scalars(self) -> dict[str, float]:
        """Return the means over the calls since this was asked last, by "<module>/<field>", for a logger.

        Calls with grad and without are apart: the latter have "eval/" in front.
        """
        calls = self.calls
        new, self._told = calls[self._told :], len(calls)
        found: dict[str, list[float]] = {}
        for call in new:
            front = "" if call.grad else "eval/"
            for name, value in asdict(call).items():
                if name not in ("module", "step", "grad", "rows") and value is not None:
                    found.setdefault(f"{front}{call.module}/{name}", []).append(float(value))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def __str__(self) -> str:
        return table(self.calls)

    def to_dict(self) -> dict[str, Any]:
        """Return all calls as plain data."""
        return {"calls": [asdict(call) for call in self.calls]}

    def plot(self, path: str | Path) -> Path:
        """Write a plot of evaluations and products of backward over the training, and return its path.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: nothing was solved yet.
        """
        calls = self.calls
        require(bool(calls), "calls", calls, "at least one: nothing was solved yet")
        return draw(calls, Path(path))

    def to_tensorboard(self, writer: Any, step: int | None = None) -> None:
        """Write `scalars` by ``writer.add_scalar``.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``, or what has its ``add_scalar``.
            step: to file them under; None is `step`, or the number of calls.
        """
        at = step if step is not None else self._at
        for name, value in self.scalars().items():
            writer.add_scalar(f"deqlm/{name}", value, at)

    def trainer_callback(self) -> Any:
        """Return a ``transformers.TrainerCallback`` that keeps `step` and adds `scalars` to what the trainer logs.

        Raises:
            ImportError: transformers is missing.
        """
        return trainer_callback(self)

    def lightning_callback(self) -> Any:
        """Return a Lightning ``Callback`` that keeps `step` and logs `scalars` after every batch.

        Raises:
            ImportError: lightning is missing.
        """
        return lightning_callback(self)

    @property
    def _at(self) -> int:
        return self._count if self.step is None else self.step

    def _note(self, name: str, module: nn.Module) -> None:
        sol = module.last
        if sol is None:
            return
        # traces and tokens are no numbers of a call, and might be large
        sol = sol.replace(trace=None, token_steps=None)  # type: ignore[operator, union-attr]
        self._entries.append(Entry(name, self._at, torch.is_grad_enabled(), sol))  # type: ignore[arg-type]
        self._count += 1
        if len(self._entries) >= WAITING:
            self._calls += _read(self._entries[: WAITING // 2])
            del self._entries[: WAITING // 2]


def _read(entries: Iterable[Entry]) -> list[Call]:
    return [entry.read() for entry in entries]


class _Listener:
    """Tells a monitor of a call; a copy of it tells nobody."""

    def __init__(self, to: Monitor | None, name: str) -> None:
        self.to, self.name = to, name

    def __call__(self, module: nn.Module, given: Any, result: Any) -> None:
        if self.to is not None:
            self.to._note(self.name, module)

    def __getstate__(self) -> Mapping[str, Any]:
        return {"to": None, "name": self.name}
