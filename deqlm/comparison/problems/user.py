"""The user's own map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deqlm.comparison.problem import Case, Problem
from deqlm.comparison.problems.equation import Equation, refuse_solvers
from deqlm.comparison.problems.factory import FromFactory
from deqlm.comparison.settings import Settings
from deqlm.deq import DEQ
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Map, options
from deqlm_solvers.core.checks import require

__all__ = ["UserProblem"]


@options
class UserProblem(FromFactory, Problem):
    """Your own map.

    ``make`` is called with those of the keywords ``dtype``, ``device``, ``batch`` and ``seed`` that it accepts, and
    with ``options``; it returns ``(f, z0)``: a callable (or `nn.Module`) and a start of the same structure, a tensor or
    a tree of tensors with the batch first. torch's generator is seeded before the call. A z0 of another dtype is cast.
    Of ``(deq, x)``, a `DEQ` and its input, the equation z = layer(z + x) is the map, and the start is that of the DEQ.

    The true residual needs f in float64: a module is copied and widened, any other f is called with a float64 z. Where
    it refuses or returns another dtype, the residual is taken in f's own dtype and the table says so.

    Args:
        make: the factory.
        shown: name in tables; None takes the factory's own.
        options: further keywords for ``make``; they come before what the comparison offers.

    Raises:
        TypeError: an option that ``make`` does not take.

    Examples:
        >>> from deqlm.comparison import UserProblem, compare
        >>> def make(dtype, width=4):
        ...     layer = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh())
        ...     return layer.to(dtype), torch.zeros(2, width, dtype=dtype)
        >>> result = compare(UserProblem(make=make, options={"width": 3}), "anderson", repeats=1, progress=False)
        >>> result["make"].unknowns, result["make"].entry("anderson").outcome
        (3, 'solved')
    """

    own: ClassVar[str] = "map"

    def build(self, settings: Settings) -> Case:
        f, state = self.call(settings)
        state = _cast(state, settings.dtype, settings.device)
        notes, batch_dims = [], None
        if isinstance(f, DEQ):
            notes.append(f"{self.label} is a DEQ: solved is its equation at x, with none of its own settings")
            f, batch_dims = Equation(f, state), f.batch_dims
            state = f.start()
        else:
            refuse_solvers(f, self.label)
        rows = Rows(state, batch_dims)
        packed = RowMap(rows, f, ())
        exact, widened = _exact(f, state, rows, batch_dims)
        if widened is None:
            notes.append(f"{self.label} does not run in float64: residual in its own dtype")
        parameters = tuple(f.parameters()) if isinstance(f, nn.Module) else ()
        return Case(
            f=packed,
            exact=exact,
            z0=rows.z0.detach(),
            max_iter=self.budget(settings),
            parameters=parameters,
            exact_parameters=tuple(widened.parameters()) if isinstance(widened, nn.Module) else (),
            note="\n".join(notes),
        )

    def call(self, settings: Settings) -> tuple[Callable[..., Any], Any]:
        """Call the factory with what it accepts of the settings; return its (f, z0) or (deq, x).

        Raises:
            ValueError: it returns anything else.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            made = self.made(settings)
        ok = isinstance(made, tuple) and len(made) == 2 and callable(made[0])
        rule = "a pair (f, z0) with a callable f, or (deq, x) with a DEQ and its input"
        got = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        require(ok, f"the result of {self.label}", got, rule)
        return made


def _cast(state: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a tree of tensors in another floating dtype."""
    if isinstance(state, Tensor):
        return state.detach().to(device, dtype) if state.is_floating_point() else state
    if isinstance(state, Mapping):
        return {key: _cast(value, dtype, device) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(_cast(value, dtype, device) for value in state)
    return state


def _exact(
    f: Callable[..., Any], state: Any, rows: Rows, batch_dims: int | None
) -> tuple[Map, Callable[..., Any] | None]:
    """Return f as a map on float64 rows, and the widened f, or None where f keeps its own dtype."""
    wide = _cast(state, torch.float64, rows.device)
    wide_rows = Rows(wide, batch_dims)
    widened = copy.deepcopy(f).double() if isinstance(f, nn.Module) else f
    try:
        with torch.no_grad():
            wide_rows.pack(widened(wide))
    except (RuntimeError, TypeError, ValueError):
        own = RowMap(rows, f, ())
        return lambda z: own(z.to(rows.dtype)).double(), None
    return RowMap(wide_rows, widened, ()), widened
