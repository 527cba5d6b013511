"""What an audit of gradients found: data, and a table of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from deqlm_solvers.core.checks import suggest
from deqlm_solvers.core.sizes import show_bytes

__all__ = ["GradientAudit", "MethodAudit", "Verdict"]

Verdict = Literal["", "exact", "WRONG", "truncated", "untold"]

GOOD = 0.99
"""Cosine above which a method is called good enough."""


@dataclass
class MethodAudit:
    """One gradient method.

    Attributes:
        gradient: registry name.
        options: the method with its options.
        outcome: "ran", "raised" or "not installed".
        solver: forward solver that it was paired with.
        verdict: "exact" (claims to be, and is, as far as its tolerance goes), "WRONG" (claims to be and is not),
            "untold" (claims to be, and its tolerance is too loose to tell), "truncated" (claims nothing), or "" where
            there is nothing to compare with.
        cosine: by group ("parameters", "x"), cosine between the gradient and the exact one.
        error: by group, ||g - g_exact|| / ||g_exact||.
        own_error: by group, the same against the exact gradient at the point that the forward solve returned, so
            without the forward solve's share; methods that claim to be exact only.
        explained: by group, what ``own_error`` may be by the backward solve's residual, conditioning and rounding.
        series_norm: ||((1 - tau) I + tau J^T)^k||, the largest of all rows; None without a series, or where a row
            has more than 512 unknowns.
        series_error: share of the exact adjoint that the series lacks; the error itself where f is linear.
        evaluations: calls of f in the forward call.
        row_evaluations: rows of those calls.
        vjps: products with J^T of the backward solve.
        jvps: products with J of the backward solve.
        forward: seconds, median.
        backward: seconds, median.
        peak_bytes: most bytes of tensors held at once by forward and backward together, activations of f included.
        notes: what else happened.
    """

    gradient: str
    options: str = ""
    outcome: str = "raised"
    solver: str = ""
    verdict: Verdict = ""
    cosine: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    own_error: dict[str, float] = field(default_factory=dict)
    explained: dict[str, float] = field(default_factory=dict)
    series_norm: float | None = None
    series_error: float | None = None
    evaluations: int = 0
    row_evaluations: int = 0
    vjps: int = 0
    jvps: int = 0
    forward: float | None = None
    backward: float | None = None
    peak_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Forward and backward together."""
        return None if self.forward is None or self.backward is None else self.forward + self.backward

    @property
    def least_cosine(self) -> float | None:
        """The smaller of the cosines, NaN where one is; None without any."""
        values = list(self.cosine.values())
        return None if not values else math.nan if any(map(math.isnan, values)) else min(values)

    def compare(self, group: str, gradient: Tensor, exact: Tensor) -> None:
        """Fill in cosine and error of one group; nothing where the exact gradient is zero or there is none."""
        gradient, exact = gradient.double().cpu(), exact.double().cpu()
        size = exact.norm()
        if not size > 0:
            return
        length = gradient.norm()
        self.cosine[group] = 0.0 if length == 0 else (gradient @ exact / (length * size)).item()
        self.error[group] = ((gradient - exact).norm() / size).item()


@dataclass
class GradientAudit:
    """Result of `audit_gradient`: a table (`str`), fields, plain data (`to_dict`); index by name for one method.

    Attributes:
        layer: class of the layer.
        rows, unknowns: B and N.
        dtype, device: of the state.
        parameters: numbers that want a gradient.
        no_exact: why there is no exact gradient; empty where there is one.
        exact_by: "dense" or "adjoint".
        mixes_rows: f mixes rows, so all of them were one system.
        fixed_point_by, fixed_point_residual: what found the float64 fixed point, and its relative residual.
        adjoint_residual: relative residual of the exact adjoint.
        kappa: ||(I - J)^-1|| at the fixed point, an estimate from below.
        methods: one `MethodAudit` per method.
    """

    layer: str
    rows: int
    unknowns: int
    dtype: str
    device: str
    parameters: int
    no_exact: str = ""
    exact_by: Literal["", "dense", "adjoint"] = ""
    mixes_rows: bool = False
    fixed_point_by: str = ""
    fixed_point_residual: float | None = None
    adjoint_residual: float | None = None
    kappa: float | None = None
    methods: list[MethodAudit] = field(default_factory=list)

    def __getitem__(self, gradient: str) -> MethodAudit:
        """Return the entry of a method.

        Raises:
            KeyError: no such method in this audit.
        """
        for entry in self.methods:
            if entry.gradient == gradient:
                return entry
        raise KeyError(
            f"no gradient {gradient!r} in this audit: {suggest(gradient, [e.gradient for e in self.methods])}"
        )

    @property
    def wrong(self) -> list[str]:
        """Methods that claim to be exact and are not."""
        return [entry.gradient for entry in self.methods if entry.verdict == "WRONG"]

    @property
    def suggestion(self) -> str:
        """The cheapest method whose gradient points the right way, in a sentence."""
        if self.no_exact:
            return ""
        good = [e for e in self.methods if (e.least_cosine or 0.0) > GOOD and e.verdict != "WRONG" and e.seconds]
        if not good:
            return f"no method has a cosine above {GOOD:g}: tighten stop and the backward solve first"
        best = min(good, key=lambda e: e.seconds or math.inf)
        leanest = min(good, key=lambda e: e.peak_bytes or math.inf)
        text = f"cheapest with a cosine above {GOOD:g}: {best.options} ({_time(best.seconds)})"
        if leanest is not best and leanest.peak_bytes is not None:
            text += f"; least memory: {leanest.options} ({show_bytes(leanest.peak_bytes)})"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinities and NaN become None."""
        return _plain(asdict(self))

    def __str__(self) -> str:
        head = (
            f"Gradients of {self.layer}: {self.rows} rows of {self.unknowns} unknowns, {self.dtype} on {self.device}, "
        )
        lines = [f"{head}{self.parameters} parameters", self._exact_line(), "", *_aligned(self._cells()), ""]
        if any(entry.series_error is not None for entry in self.methods):
            lines.append("series: ||((1 - tau) I + tau J^T)^k|| / share of the adjoint that the method lacks by it")
        for entry in self.methods:
            if entry.verdict == "WRONG":
                where = ", ".join(
                    f"{_short(g)} {e:.1e} (explained: {entry.explained[g]:.1e})" for g, e in entry.own_error.items()
                )
                lines.append(
                    f"WRONG: {entry.gradient} claims to be exact; at its own solved point its error is {where}"
                )
        if self.suggestion:
            lines.append(self.suggestion)
        return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip()

    def _exact_line(self) -> str:
        if self.no_exact:
            return f"No exact gradient to compare with: {self.no_exact}"
        how = "dense solve of I - J^T" if self.exact_by == "dense" else "adjoint by iteration"
        joint = ", all rows as one system because f mixes them" if self.mixes_rows else ""
        return (
            f"Exact: float64, fixed point by {self.fixed_point_by} (residual {self.fixed_point_residual:.0e}), {how} "
            f"(residual {self.adjoint_residual:.0e}){joint}; ||(I - J)^-1|| about {self.kappa:.2g}"
        )

    def _cells(self) -> list[list[str]]:
        groups = [g for g in ("parameters", "x") if any(g in e.cosine for e in self.methods)]
        head = ["gradient", "verdict"]
        for group in groups:
            head += [f"cos {_short(group)}", f"error {_short(group)}"]
        series_known = any(e.series_error is not None for e in self.methods)
        rows = [[*head, *(["series"] if series_known else []), "forward", "backward", "peak", "solver", ""]]
        for e in self.methods:
            row = [e.gradient, e.verdict or ("-" if e.outcome == "ran" else e.outcome)]
            for group in groups:
                row += [_number(e.cosine.get(group), ".5f"), _number(e.error.get(group), ".1e")]
            if series_known:
                norm = _number(e.series_norm, ".1e")
                row.append("" if e.series_error is None else f"{norm} / {e.series_error:.1e}")
            peak = "" if e.peak_bytes is None else show_bytes(e.peak_bytes)
            rows.append([*row, _time(e.forward), _time(e.backward), peak, e.solver, "; ".join(e.notes)])
        return rows


def _short(group: str) -> str:
    return "par" if group == "parameters" else group


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {0, 1, len(widths) - 2, len(widths) - 1}
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
