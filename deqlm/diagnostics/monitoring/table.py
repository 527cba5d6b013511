"""The calls of a training run as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deqlm.diagnostics.monitoring.record import Call
from deqlm.reporting.table import WIDTH, aligned, amount

__all__ = ["table"]

HEAD = ("module", "", "calls", "evaluations", "at the end", "steps", "converged", "worst residual", "J^T", "backward")
LEGEND = (
    "evaluations: mean of a call, and of the last quarter of the calls; steps: mean of the rows; converged, backward: "
    "share of rows whose solve and whose backward solve passed; J^T: products of a backward"
)


def table(calls: Sequence[Call]) -> str:
    """Return a line per module, calls with grad and without apart."""
    if not calls:
        return "nothing was solved yet"
    groups: dict[tuple[str, bool], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.module, call.grad), []).append(call)
    lines = [_line(name, grad, group) for (name, grad), group in groups.items()]
    return "\n".join([*aligned([HEAD, *lines], left=(0, 1)), "", *textwrap.wrap(LEGEND, WIDTH)])


def _line(name: str, grad: bool, calls: Sequence[Call]) -> tuple[str, ...]:
    last = calls[-max(1, len(calls) // 4) :]
    ran = [call for call in calls if call.backward_converged is not None]
    passed = [call.backward_converged for call in ran if call.backward_converged is not None]
    return (
        name,
        "grad" if grad else "no grad",
        str(len(calls)),
        f"{_mean([call.evaluations for call in calls]):.1f}",
        f"{_mean([call.evaluations for call in last]):.1f}",
        f"{_mean([call.steps for call in calls]):.1f}",
        f"{_mean([call.converged for call in calls]):.0%}",
        amount(max(call.residual for call in calls)),
        f"{_mean([call.products for call in ran]):.1f}" if ran else "-",
        f"{_mean(passed):.0%}" if passed else "-",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
