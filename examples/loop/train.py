"""The loop: batch, loss, gradient, step; and what makes a long training safe to interrupt."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deqlm import Unrolled
from deqlm.reporting.environment import environment
from deqlm.reporting.progress import Progress
from deqlm.training import (
    Course,
    Phase,
    adamw,
    checkpoints,
    get_random_state,
    load_checkpoint,
    random_state_kept,
    save_checkpoint,
    set_random_state,
)
from examples.loop.carry import cut, from_plain, to_plain
from examples.loop.guard import Watchman
from examples.loop.log import Log
from examples.loop.options import LoopOptions
from examples.loop.tally import Tally
from examples.loop.task import IGNORED, Batch, Task
from examples.loop.watch import Watch

__all__ = ["Run", "TrainingError", "train"]

Ended = Literal["target", "steps", "time"]
LOG = logging.getLogger("examples.loop")
CHECKED = ("loss", "grad_norm")
"""What ends a training, or wakes its guard, when it is not finite."""

DELAY = 3.0
"""Seconds of a training before which no progress bar is drawn."""


class TrainingError(RuntimeError):
    """A loss or a gradient that is not finite; what was saved before is untouched."""


@dataclass(frozen=True)
class Run:
    """What a training came to.

    Attributes:
        ended: by the accuracy of the last stage ("target"), by the number of "steps", or by the limit of "time".
        steps: optimizer steps, earlier runs of the same training included, as everywhere here.
        stage: index of the stage that was trained last.
        accuracy: running accuracy of that stage; None if none of its steps was taken.
        seconds: of training, by "wall" and "cpu" clock.
        cost: what all solves together spent, those of backward under "adjoint_".
        records: the log.
        evaluations: what the task's ``evaluate`` returned, with its step.
        falls: what the guard did, as JSON data of `examples.loop.guard.Fall`; empty without a guard.
    """

    ended: Ended
    steps: int
    stage: int
    accuracy: float | None
    seconds: dict[str, float]
    cost: dict[str, int]
    records: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    falls: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return everything but the log."""
        return {name: value for name, value in vars(self).items() if name not in ("records", "evaluations")}


def train(
    model: nn.Module,
    task: Task,
    options: LoopOptions,
    *,
    folder: Path | str | None = None,
    resume: bool = False,
    about: dict[str, Any] | None = None,
    name: str = "",
    progress: bool | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train ``model`` in place; with ``resume``, go on from the newest checkpoint as if nothing had happened.

    A resumed training has the losses and weights of an uninterrupted one, to the bit on a CPU.

    Args:
        model: `deqlm.models.ImplicitLM`, or a module that is called as ``model(ids, labels=..., mask=...)`` and returns
            an object with ``loss``, ``logits`` and perhaps ``solution``.
        task: data and accuracy.
        options: everything that the numbers depend on but the model's initial weights.
        folder: of checkpoints and log; None keeps nothing.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        about: JSON data that tells this experiment from others, such as the options of the model.
        name: of the progress bar.
        progress: True draws the bar, False never, None where stderr is a terminal.
        tensorboard: also write event files.

    Raises:
        ValueError: checkpoints in ``folder`` that ``resume`` does not ask for, or phases for a model without a solve.
        deqlm.training.CheckpointError: the newest one is damaged or belongs to another experiment.
        TrainingError: a loss or gradient that is not finite.
        OSError: a checkpoint could not be written; the one before is still there.
    """
    if resume and folder is None:
        raise ValueError("resume=True needs a folder, got None")
    folder = None if folder is None else Path(folder)
    found = checkpoints(folder) if folder is not None else []
    if found and not resume:
        raise ValueError(f"{folder} holds {found[-1].name}: resume that training, or choose another folder")
    training = _Training(model, task, options, folder, about or {})
    was_training = model.training
    with random_state_kept():
        training.start(found[-1] if found else None, tensorboard=tensorboard)
        bar = Progress(options.steps, progress, name=name, unit="step", first=training.step, delay=DELAY)
        try:
            return training.run(bar)
        finally:
            bar.close()
            training.log.close()
            model.train(was_training)


class _Training:
    """One training under way; ``step`` counts the optimizer steps that were taken."""

    def __init__(
        self, model: nn.Module, task: Task, options: LoopOptions, folder: Path | None, about: dict[str, Any]
    ) -> None:
        self.model, self.task, self.options, self.folder = model, task, options, folder
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = adamw(model, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)
        self.device = self.parameters[0].device
        self.schedule = options.schedule
        self.experiment = {
            "model": {name: list(value.shape) for name, value in model.state_dict().items()},
            "task": task.describe(),
            "options": options.identity(),
            "about": about,
        }
        self.course = Course(options.curriculum)
        self.watchman = None if options.guard is None else Watchman(options.guard)
        self.phase: Phase | None = None
        self.window, self.total = Tally(), Tally()
        self.names: list[str] = []
        self.pending: list[tuple[int, Tensor]] = []
        self.step, self.loss, self.rate = 0, math.nan, math.nan
        self.saved: Path | None = None
        self.carried: Any = None

    def start(self, path: Path | None, *, tensorboard: bool) -> None:
        """Begin at step 0, or where the checkpoint at ``path`` was saved."""
        log: dict[str, Any] = {"records": [], "evaluations": []}
        seconds = {"wall": 0.0, "cpu": 0.0}
        torch.manual_seed(self.options.seed)
        if path is not None:
            self.step, state = load_checkpoint(path, experiment=self.experiment)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.course.load_state_dict(state["course"])
            if self.watchman is not None:
                self.watchman.load_state_dict(state["guard"])
            self.window, self.total = Tally.from_state(state["window"]), Tally.from_state(state["total"])
            log, seconds, self.saved = state["log"], state["seconds"], path
            self.carried = from_plain(state["carried"], self.device)
            set_random_state(state["random"])
        head = {"experiment": {**self.experiment, "options": self.options.to_dict()}}
        head["environment"] = environment(self.device)
        self.log = Log(self.folder, head, **log, tensorboard=tensorboard)
        self.watch = Watch(**seconds)

    def run(self, bar: Progress) -> Run:
        """Take steps until the training is over."""
        self.model.train()
        while (ended := self._ended()) is None:
            self._step()
            if self.step % self.options.read_every == 0 or self.step == self.options.steps:
                self._read()
                accuracy, stage = self.course.running, self.course.index
                bar.reach(self.step, f"loss={self.loss:.3f}, accuracy={accuracy:.3f}, stage={stage}")
                self._keep_books()
        return self._finish(ended)

    def _ended(self) -> Ended | None:
        if self.pending:
            return None
        if self.course.ended is not None:
            return self.course.ended
        if self.step >= self.options.steps:
            return "steps"
        limit = self.options.time_limit
        return "time" if limit is not None and self.watch.read()[self.options.clock] >= limit else None

    def _step(self) -> None:
        self._use_phase()
        self.rate = self.schedule.at(self.step) * (1.0 if self.watchman is None else self.watchman.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        batch = self.task.batch(self.options.seed, self.step, self.course.stage)
        # the mean over no target at all would be NaN
        if bool((batch.targets != IGNORED).any()):
            self._learn(batch.to(self.device))
        elif self.options.carry:
            self._hand_over(batch.to(self.device))
        self.step += 1

    def _learn(self, batch: Batch) -> None:
        output = self._forward(batch)
        solution = getattr(output, "solution", None)
        if self.phase is not None and solution is None:
            raise ValueError("phases need a model that solves, got one whose output has no solution: leave them away")
        output.loss.backward()
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            measured = {"loss": output.loss, "grad_norm": norm, **self.task.scores(output.logits, batch)}
            if solution is not None:
                measured["converged"] = solution.converged.double().mean()
            self.pending.append((self.step, torch.stack([value.double() for value in measured.values()])))
        self.names = list(measured)
        self.window.count(solution)
        self.total.count(solution)

    def _forward(self, batch: Batch) -> Any:
        given = {"labels": batch.targets, "mask": batch.mask}
        if not self.options.carry:
            if not batch.fresh:
                raise ValueError(f"carry must be True for a task whose batch {self.step} goes on with the one before")
            return self.model(batch.ids, **given)
        cache = self._state_before(batch)
        if isinstance(getattr(self.model, "gradient", None), Unrolled):
            self._hand_over(batch)
            return self.model(batch.ids, cache=cache, **given)
        output = self.model(batch.ids, cache=cache, use_cache=True, **given)
        self.carried = cut(output.cache)
        return output

    def _state_before(self, batch: Batch) -> Any:
        if not batch.fresh and self.carried is None:
            raise ValueError(f"batch {self.step} must be fresh, since there is no state to go on from")
        return None if batch.fresh else self.carried

    def _hand_over(self, batch: Batch) -> None:
        with torch.no_grad():
            before = self._state_before(batch)
            self.carried = cut(self.model(batch.ids, mask=batch.mask, cache=before, use_cache=True).cache)

    def _clip(self) -> Tensor:
        if self.options.clip is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        return nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)

    def _use_phase(self) -> None:
        plan, phase = self.options.phases, self.course.stage.phase
        if plan is not None:
            phase = plan.at(self.step)
        if phase is not None and phase is not self.phase:
            phase.apply(self.model)  # type: ignore[arg-type]
        self.phase = phase

    def _read(self) -> None:
        if not self.pending:
            return
        steps, rows = zip(*self.pending, strict=True)
        self.pending.clear()
        for step, row in zip(steps, torch.stack(rows).tolist(), strict=True):
            values = dict(zip(self.names, row, strict=True))
            returned = self._returned(step, values)
            if not returned:
                self._check_finite(step, values)
            if all(math.isfinite(values[name]) for name in CHECKED):
                self.loss = values["loss"]
                self.window.measure(values)
                self.course.record(values["accuracy"])
            if returned:
                # what was read with this step was computed with the weights that are gone
                return

    def _returned(self, step: int, values: dict[str, float]) -> bool:
        """Let the guard judge a step; return whether it brought earlier weights back."""
        if self.watchman is None:
            return False
        loss = values["loss"] if math.isfinite(values["grad_norm"]) else values["grad_norm"]
        self.watchman.observe(self.course.index, loss, values.get("converged"))
        fall = self.watchman.judge(step + 1, self._weights)
        if fall is None:
            return False
        assert self.watchman.refuge is not None
        kept = copy.deepcopy(self.watchman.refuge["weights"])
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        LOG.warning(fall.line())
        return True

    def _weights(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        for name in CHECKED:
            if not math.isfinite(values[name]):
                kept = "nothing was saved before" if self.saved is None else f"the last checkpoint is {self.saved}"
                raise TrainingError(
                    f"{name} is {values[name]} at step {step}, with the rate {self.rate:.3g}; {kept}; "
                    "try a smaller lr or clip, or a gradient that drops rows that diverge"
                )

    def _keep_books(self) -> None:
        options = self.options
        if self.step % options.log_every == 0:
            self._record()
        if self.course.advance() and self.watchman is not None:
            self.watchman.leave(self.step, self._weights)
        if self._ended() is not None:
            return
        if options.evaluate_every is not None and self.step % options.evaluate_every == 0:
            self._evaluate()
        if options.checkpoint_every is not None and self.step % options.checkpoint_every == 0:
            self._save()

    def _record(self) -> None:
        if not self.window.steps:
            return
        stage, seconds = self.course.stage, self.watch.read()
        self.log.record(
            {
                "step": self.step,
                "steps": self.window.steps,
                "stage": self.course.index,
                "length": stage.length,
                "p": stage.p,
                "lr": self.rate,
                **self.window.means(),
                **self.window.costs(),
                **{f"{clock}_seconds": round(value, 3) for clock, value in seconds.items()},
            }
        )
        self.window = Tally()

    def _evaluate(self) -> None:
        if self.log.evaluations and self.log.evaluations[-1]["step"] == self.step:
            return
        self.model.eval()
        with self.watch.paused(), random_state_kept(), torch.no_grad():
            self.log.evaluation({"step": self.step, **self.task.evaluate(self.model, self.step)})
        self.model.train()

    def _save(self) -> None:
        if self.folder is None:
            return
        with self.watch.paused():
            state = {
                **self._weights(),
                "guard": None if self.watchman is None else self.watchman.state_dict(),
                "course": self.course.state_dict(),
                "window": self.window.state_dict(),
                "total": self.total.state_dict(),
                "log": {"records": self.log.records, "evaluations": self.log.evaluations},
                "seconds": self.watch.read(),
                "carried": to_plain(self.carried),
                "random": get_random_state(),
            }
            keep = self.options.keep
            self.saved = save_checkpoint(self.folder, self.step, state, experiment=self.experiment, keep=keep)
            self.log.save()

    def _finish(self, ended: Ended) -> Run:
        # what a limit of time cuts short goes on later, in the same records
        if ended != "time":
            self._record()
        self._evaluate()
        self._save()
        run = Run(
            ended=ended,
            steps=self.step,
            stage=self.course.index,
            accuracy=None if math.isnan(self.course.running) else self.course.running,
            seconds=self.watch.read(),
            cost=self.total.costs(),
            records=self.log.records,
            evaluations=self.log.evaluations,
            falls=[] if self.watchman is None else [fall._asdict() for fall in self.watchman.falls],
        )
        self.log.save(run.summary())
        return run
