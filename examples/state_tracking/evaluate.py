"""What a trained model gets right, at which position, and what that costs."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm.models import ImplicitLM
from deqlm.sequence.modes import Simultaneous
from deqlm_solvers import Cost, Stop
from examples.state_tracking.data import WordProblem
from examples.state_tracking.recipe import Test
from examples.state_tracking.task import started

__all__ = ["Outcome", "agreement", "by_budget", "frontier", "predict", "summary"]


class Outcome(NamedTuple):
    """What a model answered to the sequences of a test.

    Attributes:
        predicted: (N, L) int64.
        correct: (N, L) bool.
        hard: (N, L) bool, tokens that move the group's state.
        token_steps: (N, L) int64 evaluations from which each token stayed within tolerance, within its own solve; None
            of an explicit model.
        converged: fraction of the solves; None of an explicit model.
        cost: of all solves.
        seconds: by clock, "cpu" and "wall".
    """

    predicted: Tensor
    correct: Tensor
    hard: Tensor
    token_steps: Tensor | None
    converged: float | None
    cost: Cost
    seconds: dict[str, float]


def predict(model: ImplicitLM, problem: WordProblem, test: Test, *, start: bool = False) -> Outcome:
    """Answer the sequences of ``test``, which depend on nothing but the problem and the test.

    Args:
        model: in eval mode or not; no grad is recorded.
        problem: whose p is replaced by that of the test.
        test: what to look at.
        start: put a start token before every sequence; nothing is said about its position.
    """
    problem = problem.with_p(test.p)
    words = problem.draw(test.rows, test.length, seed=test.seed, split="test")
    predicted, steps, converged, cost = [], [], [], Cost()
    clocks = time.process_time(), time.perf_counter()
    with torch.no_grad():
        for ids in words.inputs.split(test.batch):
            output = model(_given(model, ids, problem, start), **_how(model, test))
            predicted.append(output.logits[:, int(start) :].argmax(-1).cpu())
            if output.solution is not None:
                steps.append(output.solution.token_steps[:, int(start) :].cpu())
                converged.append(output.solution.converged.cpu())
                cost = cost + output.solution.cost
    seconds = {"cpu": time.process_time() - clocks[0], "wall": time.perf_counter() - clocks[1]}
    answers = torch.cat(predicted)
    return Outcome(
        answers,
        answers == words.targets,
        problem.hard(words.inputs),
        torch.cat(steps) if steps else None,
        torch.cat(converged).double().mean().item() if converged else None,
        cost,
        seconds,
    )


def _given(model: ImplicitLM, ids: Tensor, problem: WordProblem, start: bool) -> Tensor:
    ids = started(ids, problem) if start else ids
    return ids.to(next(model.parameters()).device)


def _how(model: ImplicitLM, test: Test) -> dict[str, Any]:
    if not model.backbone.implicit:
        return {}
    stop = model.no_grad.stop
    stop = stop.replace(
        max_iter=stop.max_iter if test.max_iter is None else test.max_iter,
        rtol=stop.rtol if test.rtol is None else test.rtol,
    )
    return {"mode": test.mode, "stop": stop, "on_failure": "ignore"}


def summary(outcome: Outcome, test: Test) -> dict[str, Any]:
    """Return an outcome as JSON data: accuracies, steps per position, cost per token.

    Args:
        outcome: of `predict`.
        test: its test.
    """
    correct = outcome.correct.double()
    found: dict[str, Any] = {
        **{name: getattr(test, name) for name in ("length", "p", "rows", "batch")},
        "last": correct[:, -1].mean().item(),
        "last10": correct[:, -10:].mean().item(),
        "mean": correct.mean().item(),
        "accuracy": _rounded(correct.mean(0)),
        "seconds": {clock: round(value, 3) for clock, value in outcome.seconds.items()},
    }
    if outcome.token_steps is None:
        return found
    steps = outcome.token_steps.double()
    tokens = outcome.token_steps.numel()
    return {
        **found,
        "mode": test.mode.to_dict(),
        "converged": outcome.converged,
        "evaluations_per_token": round(outcome.cost.token_evaluations / tokens, 2),
        "token_evaluations": outcome.cost.token_evaluations,
        "token_steps": _rounded(steps.mean(0), 2),
        "by_token": {
            kind: {"accuracy": _mean(correct, where), "token_steps": _mean(steps, where)}
            for kind, where in (("hard", outcome.hard), ("easy", ~outcome.hard))
        },
    }


def agreement(one: Outcome, other: Outcome) -> float:
    """Return the fraction of tokens for which two modes give the same answer."""
    return (one.predicted == other.predicted).double().mean().item()


def by_budget(
    model: ImplicitLM,
    problem: WordProblem,
    *,
    length: int,
    budgets: tuple[int, ...],
    rows: int,
    p: float = 0.0,
    start: bool = False,
) -> list[dict[str, Any]]:
    """Return accuracies of solves that are cut off after so many evaluations of the whole sequence.

    Args:
        model: implicit.
        problem: whose p is replaced.
        length: tokens.
        budgets: evaluations.
        rows: sequences.
        p: probability of an easy token.
        start: as for `predict`.
    """
    words = problem.with_p(p).draw(rows, length, split="test")
    ids = _given(model, words.inputs, problem, start)
    found = []
    with torch.no_grad():
        for budget in budgets:
            stop = Stop(max_iter=budget, rtol=0)
            logits = model(ids, mode=Simultaneous(), stop=stop).logits[:, int(start) :]
            correct = (logits.argmax(-1).cpu() == words.targets).double()
            found.append({"budget": budget, "last": correct[:, -1].mean().item(), "mean": correct.mean().item()})
    return found


def frontier(
    model: ImplicitLM,
    problem: WordProblem,
    *,
    length: int,
    iterations: int,
    p: float = 0.0,
    row: int = 0,
    start: bool = False,
) -> dict[str, Any]:
    """Return how far each token of one sequence is from settled, iteration after iteration of all tokens at once.

    Args:
        model: implicit; the damping of its solve without grad is used.
        problem: whose p is replaced.
        length: tokens.
        iterations: how many.
        p: probability of an easy token.
        row: which sequence of the draw.
        start: as for `predict`; the start token is solved with the others and not returned.

    Returns:
        JSON data: ``residual``, (iterations, length) of ||f(z) - z|| / ||f(z)|| per token as decimal logarithms, and
        ``settled``, the length of the prefix whose residuals are within the tolerance from then on.
    """
    words = problem.with_p(p).draw(row + 1, length, split="test")
    damping = getattr(model.no_grad.solver, "damping", 1.0)
    backbone, residuals = model.backbone, []
    with torch.no_grad():
        embedded = model.embedding(_given(model, words.inputs[row:], problem, start))
        context = backbone.open(embedded)
        u = backbone.project(embedded, context)
        z = torch.zeros_like(embedded)
        for _ in range(iterations):
            fz = backbone(z, u, context)
            residuals.append(((fz - z).norm(dim=-1) / fz.norm(dim=-1).clamp_min(1e-30))[0].cpu())
            z = z + damping * (fz - z)
    table = torch.stack(residuals)[:, int(start) :]
    # within tolerance in this iteration and in all later ones
    stays = (table <= model.no_grad.stop.rtol).flip(0).cummin(0).values.flip(0)
    settled = stays.long().cumprod(1).sum(1)
    logs = table.clamp_min(1e-8).log10()
    return {
        "length": length,
        "p": p,
        "rtol": model.no_grad.stop.rtol,
        "residual": [_rounded(line, 2) for line in logs],
        "settled": settled.tolist(),
        "hard": problem.hard(words.inputs[row]).tolist(),
    }


def _mean(values: Tensor, where: Tensor) -> float | None:
    return round(values[where].mean().item(), 4) if bool(where.any()) else None


def _rounded(values: Tensor, digits: int = 4) -> list[float]:
    return [round(value, digits) for value in values.tolist()]
