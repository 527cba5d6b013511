"""Every field of `Stop` beside every gradient method: it has its effect on a call with grad, or the pair is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Solution, Status, Stop
from deqlm.testing.gradients.layers import solver_for

F64 = torch.float64
RATES = torch.tensor([0.1, 0.5, 1.05, 0.7], dtype=F64)[:, None, None]
"""Of four rows that converge to 1 sooner or later or, of the third, run away."""


def f(z: Tensor, rate: Tensor, w: Tensor) -> Tensor:
    return w * (1 + rate * (z - 1))


def solved(gradient: str, **fields: object) -> Solution:
    w = torch.ones((), dtype=F64, requires_grad=True)
    z0 = torch.zeros(4, 3, 2, dtype=F64)
    stop = Stop(**{"max_iter": 40, "rtol": 1e-4, **fields})
    solver = {"name": solver_for(gradient)} if solver_for(gradient) != "anderson" else {"name": "fixed_point"}
    options = {"args": (RATES, w), "on_failure": "ignore", "gradient": gradient, "stop": stop}
    sol = deqlm.solve(f, z0, solver=solver, **options)
    assert sol.z.requires_grad
    return sol


Seen = Callable[[Solution, Solution], object]
EFFECTS: dict[str, tuple[object, Seen]] = {
    "max_iter": (2, lambda new, old: new.steps.max() == 2),
    "rtol": (1e-8, lambda new, old: (new.steps[[0, 1, 3]] > old.steps[[0, 1, 3]]).all()),
    "atol": (0.1, lambda new, old: (new.steps[[0, 1, 3]] < old.steps[[0, 1, 3]]).all()),
    "norm": ("max", lambda new, old: not torch.equal(new.residual, old.residual)),
    "per": ("token", lambda new, old: new.token_steps.shape == (4, 3)),
    "keep": ("best_f", lambda new, old: new.residual_of == "previous" and new.steps.eq(new.steps[2]).all()),
    "test_every": (4, lambda new, old: not torch.equal(new.steps, old.steps)),
    "compact": ("at_once", lambda new, old: new.cost.row_evaluations < 0.8 * 4 * new.cost.evaluations),
    "trace": (True, lambda new, old: new.trace.shape[1] == 4),
    "patience": (1, lambda new, old: new.status[2] == Status.STALLED),
    "divergence": (1.5, lambda new, old: new.status[2] == Status.DIVERGED and new.steps[2] < old.steps[2]),
    "share": (0.5, lambda new, old: (new.status == Status.CONVERGED).sum() == 2),
    "criterion": (deqlm.ReadOut(lambda z: z, "kl", tol=1e-2), lambda new, old: (new.steps[:2] < old.steps[:2]).all()),
}


def test_every_field_that_can_show_an_effect_is_here() -> None:
    unseen = {"token_dim", "first_tokens", "check_every", "collective"}
    """The first two say how tokens are tested, the third when the host looks, which changes no answer, and the last
    which processes end together, where there is one."""
    assert EFFECTS.keys() | unseen == Stop.__dataclass_fields__.keys()


@pytest.mark.parametrize("gradient", sorted(deqlm.GRADIENTS))
@pytest.mark.parametrize("field", EFFECTS)
def test_a_field_has_its_effect_or_is_refused(field: str, gradient: str) -> None:
    value, seen = EFFECTS[field]
    old = solved(gradient)
    try:
        new = solved(gradient, **{field: value})
    except ValueError as error:
        assert field in str(error)  # noqa: PT017
        return
    assert seen(new, old), f"{new}\n{old}"
