"""Phases of training as plain data: how long, how to solve, how to differentiate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Protocol

from deqlm.gradients import GRADIENTS, Gradient, Phantom, Unrolled
from deqlm_solvers import FixedPoint, Options, Solve, Solver, Stop, options
from deqlm_solvers.core.checks import require, whole

__all__ = ["Phase", "Phases", "Trainable", "bounded", "free", "warm_up"]


class Trainable(Protocol):
    """What has phases: a `deqlm.DEQ` or a `deqlm.models.ImplicitLM`, whose forward reads both at every call."""

    solve: Solve
    gradient: Gradient


@options
class Phase(Options):
    """How a model is solved and differentiated for a number of training steps.

    Args:
        steps: optimizer steps, >= 1; None goes on to the end of training.
        solver: registered name, dict with ``name`` and options, or object.
        stop: a `Stop` or a dict of its fields.
        gradient: likewise, of `GRADIENTS`.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or a pair that does not fit.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3))
        >>> Phase(solver="fixed_point", stop=deqlm.Stop(rtol=1e-3), gradient=deqlm.Phantom(2)).apply(deq)
        >>> deq.gradient
        Phantom(steps=2, damping=0.8, same_value=False, checkpoint=False)
    """

    steps: int | None = None
    solver: Solver
    stop: Stop
    gradient: Gradient

    def __post_init__(self) -> None:
        if self.steps is not None:
            whole("steps", self.steps, 1, None)
        solve = Solve(self.solver, self.stop)
        object.__setattr__(self, "solver", solve.solver)
        object.__setattr__(self, "stop", solve.stop)
        object.__setattr__(self, "gradient", GRADIENTS.make(self.gradient))
        self.gradient.check(solve)

    @property
    def solve(self) -> Solve:
        """Solver and stop as one object."""
        return Solve(self.solver, self.stop)

    def apply(self, model: Trainable) -> None:
        """Give ``model`` the two frozen objects of this phase; its weights and its optimizer do not notice.

        Raises:
            TypeError: a model that has no ``solve`` and ``gradient``.
        """
        for name in ("solve", "gradient"):
            if not hasattr(model, name):
                raise TypeError(f"a phase sets model.solve and model.gradient, {type(model).__name__} has no {name!r}")
        model.solve, model.gradient = self.solve, self.gradient


@options(kw_only=False)
class Phases(Options):
    """Phases one after another; a pure function of the step, which the trainer counts and saves.

    So a training that resumes at step n is in the phase of step n, and neither evaluation nor gradient accumulation
    moves it.

    Args:
        phases: in order; only the last may go on without end.

    Raises:
        ValueError: no phase, or one behind a phase without end.

    Examples:
        >>> plan = Phases((warm_up(4005), free(max_iter=32)))
        >>> plan.at(4004).gradient.name, plan.at(4005).gradient.name
        ('unrolled', 'phantom')
        >>> [plan.starts(step) for step in (0, 1, 4005)]
        [True, False, True]
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        made = tuple(Phase.from_dict(p) if isinstance(p, Mapping) else p for p in self.phases)
        object.__setattr__(self, "phases", made)
        require(len(made) > 0, "phases", made, "at least one Phase")
        for phase in made:
            require(isinstance(phase, Phase), "phases", phase, "objects of Phase, or dicts of their fields")
        endless = [i for i, phase in enumerate(made[:-1]) if phase.steps is None]
        require(not endless, "steps of phase", endless, "given, but for the last phase")

    def ends(self) -> list[int]:
        """Return the step at which each phase is over, without one that has no end."""
        return list(accumulate(phase.steps for phase in self.phases if phase.steps is not None))

    def at(self, step: int) -> Phase:
        """Return the phase of the optimizer step number ``step``, from 0; behind the end, the last one."""
        whole("step", step, 0, None)
        index = sum(step >= end for end in self.ends())
        return self.phases[min(index, len(self.phases) - 1)]

    def starts(self, step: int) -> bool:
        """Say whether a phase begins with ``step``."""
        return step == 0 or self.at(step) is not self.at(step - 1)

    def apply(self, model: Trainable, step: int) -> None:
        """Give ``model`` the solve and the gradient of ``step``; call it before every step."""
        self.at(step).apply(model)


def warm_up(steps: int | None = None, *, iterations: int = 4, damping: float = 0.8, checkpoint: bool = False) -> Phase:
    """Return the unrolled warm-up: ``iterations`` differentiated steps from zero, of which the first is undamped.

    Args:
        steps: optimizer steps; the paper's state tracking takes 4005.
        iterations: evaluations per solve.
        damping: of every step but the first.
        checkpoint: keep one state per step and evaluate again in backward.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML.

    Examples:
        >>> warm_up(4005).stop.is_budget
        True
    """
    solver = FixedPoint(damping=damping, first_damping=1.0)
    stop = Stop(max_iter=iterations, rtol=0)
    return Phase(steps=steps, solver=solver, stop=stop, gradient=Unrolled(checkpoint=checkpoint))


def bounded(
    steps: int | None = None, *, max_iter: int = 4, phantom: int = 1, damping: float = 0.8, rtol: float = 0.05
) -> Phase:
    """Return the bounded phase: at most 4 undamped evaluations, then 1 phantom step, 80 % of the paper's pretraining.

    Args:
        steps: optimizer steps.
        max_iter: evaluations without a graph.
        phantom: damped steps with one.
        damping: of these.
        rtol: tolerance; the answer is f(z) at the tested z with the smallest relative residual.

    Examples:
        >>> bounded(100).gradient
        Phantom(steps=1, damping=0.8, same_value=False, checkpoint=False)
    """
    stop = Stop(max_iter=max_iter, rtol=rtol, keep="best_f")
    return Phase(steps=steps, solver=FixedPoint(), stop=stop, gradient=Phantom(phantom, damping))


def free(
    steps: int | None = None, *, max_iter: int = 24, phantom: int = 4, damping: float = 0.8, rtol: float = 0.05
) -> Phase:
    """Return the free phase: at most 24 undamped evaluations (32 for transformers), then 4 phantom steps.

    Args:
        steps: optimizer steps.
        max_iter: evaluations without a graph.
        phantom: damped steps with one.
        damping: of these.
        rtol: see `bounded`.

    Examples:
        >>> free(max_iter=32).solve.stop.keep
        'best_f'
    """
    return bounded(steps, max_iter=max_iter, phantom=phantom, damping=damping, rtol=rtol)
