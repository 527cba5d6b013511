"""The `deq` section of a configuration: how the model is solved, differentiated and cut into chunks, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from deqlm.gradients import GRADIENTS, Gradient, Phantom, Unrolled
from deqlm.models import ImplicitLM, LMOptions
from deqlm.models.failing import LMFailures, WhenFailed
from deqlm.models.lm import EVALUATION, FREE
from deqlm.sequence.modes import MODES, Auto, Chunked, Mode, Sequential, Simultaneous
from deqlm.training import Phases
from deqlm_solvers import FixedPoint, Options, Solve, Solver, Stop, options
from deqlm_solvers.core.checks import require

__all__ = ["DeqOptions", "Grad", "NoGrad"]

FailedGrad = Literal["drop", "keep", "raise"]
Start = Literal["zero", "previous"]
MODE_NAMES = ("mode", "prompt_mode", "token_mode")
PRESETS = ("evaluation",)
"""Names that stand for a section; see `DeqOptions.for_evaluation`."""


def _settle(section: Grad | NoGrad, solve: Solve) -> None:
    object.__setattr__(section, "solver", solve.solver)
    object.__setattr__(section, "stop", solve.stop)


@options
class NoGrad(Options):
    """How to solve without grad.

    Args:
        solver: registered name, dict with ``name`` and options, or object.
        stop: a `deqlm.Stop`, or a dict of its fields; fields that are left away have `Stop`'s defaults.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or a pair that does not fit.

    Examples:
        >>> NoGrad(stop={"rtol": 1e-3, "per": "token"}).solve.solver
        FixedPoint(damping=0.8, first_damping=None, decay=0.0, impl='auto')
    """

    solver: Solver = EVALUATION.solver
    stop: Stop = EVALUATION.stop

    def __post_init__(self) -> None:
        _settle(self, Solve(self.solver, self.stop))

    @property
    def solve(self) -> Solve:
        """Solver and stop as one object."""
        return Solve(self.solver, self.stop)


@options
class Grad(Options):
    """How to solve with grad, and how the gradient is made.

    Args:
        solver: registered name, dict with ``name`` and options, or object.
        stop: a `deqlm.Stop`, or a dict of its fields; fields that are left away have `Stop`'s defaults.
        gradient: as ``solver``, of `deqlm.GRADIENTS`.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or a pair that does not fit.

    Examples:
        >>> Grad(gradient={"name": "phantom", "steps": 1}).stop.max_iter
        24
    """

    solver: Solver = FREE.solver
    stop: Stop = FREE.stop
    gradient: Gradient = Phantom()

    def __post_init__(self) -> None:
        _settle(self, Solve(self.solver, self.stop))
        object.__setattr__(self, "gradient", GRADIENTS.make(self.gradient))
        self.gradient.check(self.solve)

    @property
    def solve(self) -> Solve:
        """Solver and stop as one object."""
        return Solve(self.solver, self.stop)


@options
class DeqOptions(Options):
    """The section ``deq`` of a configuration; in config.json a dict of the same keys.

    Grad mode chooses between ``grad`` and ``no_grad``, not ``train()``. Keys of a section that are left away keep the
    section's defaults: evaluations, tolerance and gradient of the paper's free phase, where every row ends by itself.

    Args:
        grad: a `Grad`, or a dict of its fields.
        no_grad: a `NoGrad`, or a dict of its fields. Beside a gradient with ``same_value`` it is that of ``grad``.
        phases: `deqlm.training.Phases` or the dict of one: the plan that a training applies to the model at each step,
            ``config.deq.phases.apply(model, step)``; None has no plan. A model itself starts with ``grad``.
        mode: how a forward is solved along its tokens: `deqlm.Auto`, `deqlm.Simultaneous`, `deqlm.Chunked`,
            `deqlm.Sequential` or `deqlm.Frontier`, by object, name or dict. `Auto` is one solve with grad, and without,
            where that has not converged early, goes on in chunks.
        prompt_mode: likewise, of the prompt in ``generate``.
        token_mode: likewise, of the new tokens there.
        start: where ``generate`` starts the solve of a new token: "zero", or "previous" for the state of the token
            before.
        on_failure: "auto", "warn", "raise" or "ignore" when a row does not converge: "auto" warns without grad, and
            with grad, where solves that are cut short are trained, only of rows that end DIVERGED or NONFINITE.
            ``generate`` warns once per call.
        failed_grad: as for `deqlm.DEQ`.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, contradicts another, or is no plain
            data.

    Examples:
        >>> section = DeqOptions(grad={"stop": {"max_iter": 4, "rtol": 0.05, "keep": "best_f"}}, mode="sequential")
        >>> DeqOptions.from_dict(section.to_dict()) == section
        True
    """

    grad: Grad = Grad()
    no_grad: NoGrad = NoGrad()
    phases: Phases | None = None
    mode: Mode = Auto()
    prompt_mode: Mode = Chunked(64)
    token_mode: Mode = Sequential()
    start: Start = "zero"
    on_failure: WhenFailed = "auto"
    failed_grad: FailedGrad = "drop"

    def __post_init__(self) -> None:
        for name, cls in (("grad", Grad), ("no_grad", NoGrad), ("phases", Phases)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = cls.from_dict(value)
            if name != "phases" or value is not None:
                require(isinstance(value, cls), name, value, f"a {cls.__name__}, or a dict of its fields")
            object.__setattr__(self, name, value)
        if getattr(self.grad.gradient, "same_value", False):
            same = NoGrad(solver=self.grad.solver, stop=self.grad.stop)
            given = self.no_grad not in (NoGrad(), same)
            require(not given, "no_grad", self.no_grad, "that of grad, or left away, beside a gradient with same_value")
            object.__setattr__(self, "no_grad", same)
        for name in MODE_NAMES:
            object.__setattr__(self, name, MODES.make(getattr(self, name)))
        for name, kind in (("on_failure", WhenFailed), ("failed_grad", FailedGrad), ("start", Start)):
            require(getattr(self, name) in get_args(kind), name, getattr(self, name), f"one of {get_args(kind)}")
        self._refuse_contradictions()
        try:
            json.dumps(self.to_dict())
        except TypeError as error:
            raise TypeError(f"the deq section must be plain data, to be saved as JSON: {error}") from None

    @classmethod
    def of(cls, given: DeqOptions | Mapping[str, Any] | str | None, before: DeqOptions | None = None) -> DeqOptions:
        """Return the section of an object, a dict of its fields, a name, or None, which is the default.

        Args:
            given: the section; "evaluation" is `for_evaluation` of the one before.
            before: the section in whose place it comes; None is the default.

        Raises:
            TypeError: anything else, or an unknown key; the message names the nearest one.
            ValueError: an unknown name.
        """
        if given is None:
            return cls()
        if isinstance(given, str):
            require(given in PRESETS, "deq", given, f"one of {PRESETS}, a dict, or a {cls.__name__}")
            return (before or cls()).for_evaluation()
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if not isinstance(given, cls):
            raise TypeError(f"deq must be a dict or a {cls.__name__}, got {given!r}")
        return given

    @classmethod
    def of_preset(cls, preset: LMOptions) -> DeqOptions:
        """Return the section that solves as the options of a model say."""
        if not preset.implicit:
            return cls()
        phantom = Phantom(preset.phantom_steps, preset.damping)
        grad = Grad(solver=preset.solve.solver, stop=preset.solve.stop, gradient=phantom)
        return cls(grad=grad, no_grad=NoGrad(solver=preset.no_grad.solver, stop=preset.no_grad.stop))

    def for_evaluation(self) -> DeqOptions:
        """Return the section with which scores of a text depend on nothing behind it, nor on the batch.

        A tolerance ends the solve of a chunk where its last token passes, so that later tokens, padding among them,
        move earlier ones within the tolerance. Here every token is the same number of plain evaluations of a causal
        map, whether they converge or not: a forward solves chunks of 32, 96 evaluations each, and ``generate`` solves
        tokens of prompt and text one by one, because padding on the left would move the ends of chunks. Rows end as
        BUDGET; how far they are from a fixed point is their ``residual``. The mode is that of a forward with grad too,
        so that this is no section to train with, and gradient "unrolled", which knows no chunks, becomes the default.

        Examples:
            >>> section = DeqOptions(no_grad={"solver": "anderson"}).for_evaluation()
            >>> section.mode, section.no_grad.stop.is_budget, section.no_grad.solver.damping
            (Chunked(size=32, start='zero'), True, 0.8)
        """
        solver = self.no_grad.solver if isinstance(self.no_grad.solver, FixedPoint) else EVALUATION.solver
        no_grad = NoGrad(solver=solver, stop=Stop(max_iter=96, rtol=0, per="token"))
        modes = {"mode": Chunked(32), "prompt_mode": Sequential(), "token_mode": Sequential()}
        grad = Grad() if isinstance(self.grad.gradient, Unrolled) else self.grad
        if getattr(grad.gradient, "same_value", False):  # evaluation is another solve
            grad = grad.replace(gradient=grad.gradient.replace(same_value=False))
        return self.replace(grad=grad, no_grad=no_grad, start="zero", **modes)

    def apply(self, lm: ImplicitLM) -> None:
        """Make ``lm`` solve in this way; its weights do not change."""
        lm.solve, lm.gradient = self.grad.solve, self.grad.gradient
        lm.no_grad, lm.mode = self.no_grad.solve, self.mode
        lm.failures = LMFailures(self.on_failure, self.failed_grad)

    def refuse_solving(self) -> None:
        """Raise if anything but the modes is set; an explicit model would ignore it.

        Raises:
            ValueError: it is.
        """
        for name, field in type(self).__dataclass_fields__.items():  # type: ignore[attr-defined]
            if name not in MODE_NAMES:
                value = getattr(self, name)
                require(
                    value == field.default, f"deq.{name}", value, "left away with implicit=False: nothing is solved"
                )

    def _refuse_contradictions(self) -> None:
        for name in MODE_NAMES:
            getattr(self, name).check(self.no_grad.solve)
        if isinstance(self.grad.gradient, Unrolled):
            rule = "'auto' or 'simultaneous' with gradient 'unrolled', which differentiates the steps of one solve"
            one = self.mode.for_model(self.grad.stop, grad=True) == Simultaneous()
            require(one, "mode", self.mode, rule)
