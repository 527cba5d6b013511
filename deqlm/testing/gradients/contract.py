"""What a gradient method must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.testing.check import Named, bind, run_all
from deqlm.testing.gradients import graphs, transforms, values

__all__ = ["check_gradient", "gradient_checks"]

Promise = Callable[[Gradient], None]

ALWAYS: tuple[Promise, ...] = (
    values.reaches_parameters_arguments_and_captured_tensors,
    values.layer_keywords_get_gradients,
    values.neighbours_do_not_matter,
    values.a_second_backward_gives_the_same,
    values.several_solves_stand_in_one_graph,
    values.a_solve_feeds_the_next,
    values.the_scale_of_the_loss_changes_nothing,
    values.frozen_parameters_may_be_mixed,
    graphs.nothing_stays_on_the_module,
    graphs.the_graph_goes_with_its_last_reference,
    graphs.eval_mode_has_gradients,
    graphs.grad_mode_decides,
    graphs.no_graph_where_nothing_asks,
    graphs.empty_batches_and_rows_pass,
    graphs.a_start_may_be_the_solution,
    graphs.half_precision_has_gradients,
    graphs.caller_tensors_are_left_alone,
    transforms.transforms_are_right_or_refused,
)
EXACT: tuple[Promise, ...] = (values.matches_a_dense_solve, values.finite_differences_agree)


def check_gradient(gradient: type[Gradient] | Gradient | str | Mapping[str, Any]) -> None:
    """Hold a gradient method to the contract, and one with ``exact = True`` to the truth.

    Put it into the tests of a package that brings a gradient method. It takes seconds, on the CPU. Every gradient must
    point where the true one does (cosine above 0.9 on a contraction by 0.3). Where a method has an option ``solve``, as
    `Implicit` has, the checks of values solve as far as float64 goes.

    Args:
        gradient: a class, tested with its default options; an object; or a registered name or dict.

    Raises:
        AssertionError: the first promise that broke: its name, what it asks, and what was seen.
        TypeError: no gradient method, or a class whose options have no defaults.

    Examples:
        >>> from deqlm import Gradient, options
        >>> from deqlm.testing import check_gradient
        >>> @options
        ... class OneTooMany(Gradient):
        ...     exact = True
        ...     def connect(self, f, z, adjoint):
        ...         return f(f(z))
        >>> check_gradient(OneTooMany)
        Traceback (most recent call last):
        AssertionError: OneTooMany() breaks 'a_solve_feeds_the_next'
          asked: The gradient goes through a call whose output is the input of the next one.
          seen: Tensor-likes are not close!
        ...
    """
    run_all(gradient_checks(gradient))


def gradient_checks(gradient: type[Gradient] | Gradient | str | Mapping[str, Any]) -> list[Named]:
    """Return (name, check) of everything that `check_gradient` asks, so that a test can be made of each.

    Args:
        gradient: as for `check_gradient`.

    Returns:
        pairs of a name, such as "grad_mode_decides", and a function of no argument that raises AssertionError.

    Raises:
        TypeError: as `check_gradient`.

    Examples:
        >>> import deqlm
        >>> from deqlm.testing import gradient_checks
        >>> exact, truncated = gradient_checks("implicit"), gradient_checks(deqlm.Phantom(steps=4))
        >>> sorted(dict(exact).keys() - dict(truncated).keys())
        ['finite_differences_agree', 'matches_a_dense_solve']
    """
    made = GRADIENTS.make(gradient() if isinstance(gradient, type) and issubclass(gradient, Gradient) else gradient)
    return [bind(each, made, str(made), each.__name__) for each in (*ALWAYS, *(EXACT if made.exact else ()))]
