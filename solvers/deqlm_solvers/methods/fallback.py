"""Several solvers, one after another, for the rows that need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import SOLVERS, Map, Solver, register_solver
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.methods.attempts import PROBES, Search
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["Fallback"]

DEFAULT = ("anderson", "broyden", "fixed_point", "newton_krylov", "newton", "dogleg")
DENSE = 128
"""Most unknowns for which the default chain makes dense Jacobians: 32 rows of 128 hold 21 MB in float64, of 1024 they
hold 1.3 GB, and a step is paid with N products."""


STATES = 64
"""States of float64 that members without dense Jacobians hold at most, for the forecast."""
_ADVICE = {
    Status.MAX_ITER: "raise max_iter, loosen rtol, or start elsewhere",
    Status.STALLED: "loosen rtol, set atol if the solution is zero, or start elsewhere",
    Status.DIVERGED: "f may have no fixed point in reach; start elsewhere, or scale the layer down",
    Status.NONFINITE: "look for NaN in the inputs, or start where f is finite",
}


@register_solver("fallback")
@options
class Fallback(Solver):
    """Try solvers one after another, each on the rows that the ones before left unsolved.

    For batches in which rows need different methods, and for whoever wants an answer whatever it costs: every row is
    solved that some member solves alone. The first member runs on the whole batch. Each further one runs on the failed
    rows, from their best point so far and, where that fails, once more from z0. A row returns the point with the
    smallest residual relative to its tolerance over all attempts, and the status of that attempt; `Solution.picked`
    says which member found it. A row that converged is never touched again: it has the bits that the first member gives
    it without the others.

    ``Stop.max_iter`` is the budget of one attempt. There are at most 2 m - 1 attempts of m members, and with the
    evaluations that look at f, 2 m max_iter evaluations in all. Where f offers `SubsetMap.narrow` and does not mix
    rows, it is evaluated on failed rows only (unless ``Stop(compact=False)``). Otherwise finished rows are held at
    their solution and paid for. Where f mixes rows, the answers of several attempts do not fit together: members run on
    the whole batch, and the attempt that solved most rows is returned whole (then the one whose worst row is best).

    A row whose z0 is not finite is left to the first member. ``steps`` of a row are summed over the attempts that it
    took part in, ``token_steps`` counts on from there; ``trace`` is that of all attempts one after another, each up to
    the evaluation in which its last row was done, and a row that takes no part repeats its last residual.

    A function among a member's options, such as that of ``Newton(jacobian=...)``, is given the failed rows only.

    A member that cannot run is left out, and its name in `Solution.choices` says why: autograd cannot differentiate f,
    or ``max_iter`` cannot pay one step. The default chain also leaves out dense Jacobians of more than 128 unknowns
    and, under ``Stop(compact="at_once")``, all that differentiate. Where none can run, the reason is raised.

    Args:
        members: at least one solver, each an object, a registered name or a dict with ``name`` and options; none
            twice, and no `Fallback`, whose members can be listed instead. None given: "anderson", "broyden",
            "fixed_point", which need no derivative, then "newton_krylov", "newton", "dogleg", for rows that are still
            unsolved.
        solvers: the same by keyword, for `from_dict` and `replace`.

    Raises:
        KeyError: an unknown name.
        TypeError: a member that is no solver.
        ValueError: no member, one twice, or a `Fallback`; in a solve, a budget (rtol=0, atol=0), which tests nothing,
            or max_iter < 3.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Fallback, Solve, Stop
        >>> gain = torch.tensor([[0.5], [-3.0]])
        >>> solve = Solve(Fallback("fixed_point", "anderson"), Stop(rtol=1e-5))
        >>> sol = solve(lambda z: gain * z + 1, torch.zeros(2, 1))
        >>> sol.converged.tolist(), [sol.choices[i] for i in sol.picked]
        ([True, True], ['fixed_point', 'anderson'])
    """

    solvers: tuple[Solver, ...] = ()

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half"})
    honours: ClassVar[frozenset[str]] = frozenset(Stop.__dataclass_fields__) - {"keep", "share", "collective"}  # type: ignore[attr-defined]

    def __init__(
        self,
        *members: str | Mapping[str, Any] | Solver,
        solvers: Iterable[str | Mapping[str, Any] | Solver] | None = None,
    ) -> None:
        if members and solvers is not None:
            raise TypeError("Fallback got its members twice, by position and as solvers=")
        listed = isinstance(solvers, Iterable) and not isinstance(solvers, str | bytes | Mapping)
        require(solvers is None or listed, "solvers", solvers, "a sequence of solvers, such as ['anderson', 'broyden']")
        given = members or (DEFAULT if solvers is None else tuple(solvers))
        made = tuple(SOLVERS.make(member) for member in given)
        require(len(made) > 0, "solvers", made, "at least one solver")
        for i, member in enumerate(made):
            nested = isinstance(member, Fallback)
            require(not nested, "solvers", member, "solvers that are no Fallback; list the members of that one")
            require(member not in made[:i], "solvers", member, "without a repetition")
        object.__setattr__(self, "solvers", made)
        object.__setattr__(self, "honours", self.honours.intersection(*(member.honours for member in made)))
        evaluate = [member.steps_evaluate for member in made]
        object.__setattr__(self, "steps_evaluate", evaluate[0] if self._is_default else any(evaluate))
        object.__setattr__(self, "attempts", 1 if len(made) == 1 else 2 * len(made))

    @property
    def _is_default(self) -> bool:
        return self.solvers == tuple(map(SOLVERS.make, DEFAULT))

    def rehearsable(self) -> bool:
        return all(member.rehearsable() or self._is_default for member in self.solvers)

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        """Return what dense Jacobians and Krylov spaces hold where the default chain makes Jacobians, else None."""
        dense = [m for m in self.solvers if isinstance(m, DenseSolver) and not self._obstacle(m, unknowns, stop)]
        if not dense or not self._is_default:
            return None
        held = [member.peak_bytes(rows, unknowns, dtype, stop) or 0 for member in dense]
        return max(held) + rows * unknowns * STATES * 8

    def advice(self, status: Status) -> str:
        if not status.failed:
            return status.hint
        return f"none of {len(self.solvers)} methods solved it, also not from its start: {_ADVICE[status]}"

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        if stop.is_budget:
            raise ValueError("fallback cannot run a budget (rtol=0, atol=0), which tests nothing; set rtol or atol")
        if len(self.solvers) == 1:
            sol = self.solvers[0].solve(f, z0, stop, layout)
            return sol.replace(picked=torch.zeros_like(sol.status), choices=_labels(self.solvers))
        require(stop.max_iter >= PROBES, "max_iter", stop.max_iter, f">= {PROBES} for fallback")
        with torch.no_grad():
            search = Search(f, z0, stop, layout, _labels(self.solvers))
            for index, member in enumerate(self.solvers):
                obstacle = self._obstacle(member, z0.shape[1], stop)
                if obstacle:
                    search.leave_out(index, obstacle)
                else:
                    search.run(index, member)
            return search.close()

    def _obstacle(self, member: Solver, unknowns: int, stop: Stop) -> str:
        """Return why ``member`` cannot run, or an empty text."""
        if self._is_default and member.steps_evaluate and stop.compact == "at_once":
            return "its steps evaluate f on all rows"
        if not isinstance(member, DenseSolver):
            return ""
        if self._is_default and unknowns > DENSE:
            return f"{unknowns} unknowns are too many for dense Jacobians"
        price = member.price(unknowns)
        return "" if stop.max_iter > price else f"max_iter={stop.max_iter} cannot pay a step, which takes {price + 1}"


def _labels(solvers: tuple[Solver, ...]) -> tuple[str, ...]:
    """Return the names of the members; where one occurs twice, with the options that differ from their defaults."""
    counts = Counter(solver.name or type(solver).__name__ for solver in solvers)
    labels = []
    for solver in solvers:
        name = solver.name or type(solver).__name__
        told = []
        if counts[name] > 1:
            told = [
                f"{key}={getattr(solver, key)!r}"
                for key, field in solver.__dataclass_fields__.items()  # type: ignore[attr-defined]
                if getattr(solver, key) != field.default
            ]
        labels.append(f"{name}({', '.join(told)})" if told else name)
    return tuple(labels)
