"""What a solver must do: the checks of every solver, and those of each guarantee that it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deqlm.testing.check import Named, bind, run_all
from deqlm.testing.solvers.asked import (
    a_batch_without_rows_passes,
    broken_numbers_are_told,
    declared_fields_of_stop_are_obeyed,
    the_start_is_left_alone,
)
from deqlm.testing.solvers.cost import budget, budget_does_not_read_the_device, differentiable, lean
from deqlm.testing.solvers.rows import (
    alone_agrees_with_blas,
    alone_is_together,
    check_every_is_bit_equal,
    neighbours_do_not_matter,
)
from deqlm.testing.solvers.sequences import recurrences_are_solved, rows_of_sequences_keep_apart
from deqlm.testing.solvers.truth import declarations, half_states, known_answers, true_counts, true_residual
from deqlm_solvers import SOLVERS, Solver

__all__ = ["check_solver", "solver_checks"]

Promise = Callable[[Solver], None]

ALWAYS: tuple[Promise, ...] = (
    declarations,
    true_residual,
    true_counts,
    declared_fields_of_stop_are_obeyed,
    the_start_is_left_alone,
    broken_numbers_are_told,
    a_batch_without_rows_passes,
)
CHECKS: dict[str, tuple[Promise, ...]] = {
    "known_answers": (known_answers,),
    "rows": (neighbours_do_not_matter, alone_is_together, alone_agrees_with_blas),
    "check_every": (check_every_is_bit_equal,),
    "half": (half_states,),
    "budget": (budget, budget_does_not_read_the_device),
    "lean": (lean,),
    "differentiable": (differentiable,),
    "sequences": (recurrences_are_solved, rows_of_sequences_keep_apart),
}


def check_solver(solver: type[Solver] | Solver | str | Mapping[str, Any]) -> None:
    """Hold a solver to the contract: true residuals and counts, and every guarantee and field that it declares.

    Put it into the tests of a package that brings a solver. It takes seconds to a minute, on the CPU.

    Args:
        solver: a class, tested with its default options; an object; or a registered name or dict.

    Raises:
        AssertionError: the first promise that broke: its name, what it asks, and what was seen.
        TypeError: no solver, or a class whose options have no defaults.
        ImportError: a package that the solver needs is missing.

    Examples:
        >>> from deqlm import StepSolver, options
        >>> from deqlm.testing import check_solver
        >>> @options
        ... class Hasty(StepSolver):
        ...     guarantees = frozenset({"known_answers"})
        ...     def init(self, z):
        ...         return None
        ...     def step(self, f, at, state):
        ...         return at.z + 1.5 * at.r, state
        >>> check_solver(Hasty)
        Traceback (most recent call last):
        AssertionError: Hasty() breaks 'known_answers'
          asked: Linear and tanh contractions are solved to the dense float64 truth.
          seen: symmetric_0.9 in torch.float32: ...
    """
    run_all(solver_checks(solver))


def solver_checks(solver: type[Solver] | Solver | str | Mapping[str, Any]) -> list[Named]:
    """Return (name, check) of everything that `check_solver` asks, so that a test can be made of each.

    Where a class has the option ``impl``, all is asked a second time of ``impl="torch"``.

    Args:
        solver: as for `check_solver`.

    Returns:
        pairs of a name, such as "true_residual", and a function of no argument that raises AssertionError.

    Raises:
        TypeError, ImportError: as `check_solver`.

    Examples:
        >>> import deqlm
        >>> from deqlm.testing import solver_checks
        >>> [name for name, check in solver_checks(deqlm.Newton)][:3]
        ['declarations', 'true_residual', 'true_counts']

        In a test file, each with a result of its own:

        >>> import pytest
        >>> @pytest.mark.parametrize("check", [pytest.param(c, id=n) for n, c in solver_checks(deqlm.Newton)])
        ... def test_newton(check):
        ...     check()
    """
    made = SOLVERS.make(solver() if isinstance(solver, type) and issubclass(solver, Solver) else solver)
    return [
        bind(promise, realised, str(realised), prefix + promise.__name__)
        for realised, prefix in _realisations(made)
        for promise in promises(made)
    ]


def promises(solver: type[Solver] | Solver) -> list[Promise]:
    """Return what a solver is held to; a guarantee of an unknown name is left to `declarations`."""
    return [*ALWAYS, *(promise for name in sorted(solver.guarantees) for promise in CHECKS.get(name, ()))]


def _realisations(solver: Solver) -> list[tuple[Solver, str]]:
    """Return the solver as it comes and, where it has a choice, on torch operations; with the prefix of names."""
    as_it_comes = [(solver, "")]
    if getattr(solver, "impl", "torch") == "torch":
        return as_it_comes
    return [*as_it_comes, (solver.replace(impl="torch"), "torch-")]
