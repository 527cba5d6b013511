"""The report: data in fields, a page of plain sentences as text."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deqlm.diagnostics.diagnosis.cause import Cause
from deqlm.diagnostics.diagnosis.findings import Findings
from deqlm.diagnostics.diagnosis.plot import draw
from deqlm.diagnostics.diagnosis.suggestion import Suggestion

__all__ = ["Diagnosis"]

WIDTH = 118


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Findings):
    """What `deqlm.diagnose` found: the evidence (see `Findings`), the likely cause, and what to try.

    Attributes:
        cause: why the solve fails, or what is wrong although it converges; HEALTHY otherwise.
        character: what the map is for plain iteration, whatever the solver made of it: HEALTHY, SLOW_CONTRACTION,
            COMPLEX_PAIR, TWO_CYCLE, NON_NORMAL, DIVERGENCE, CAUSAL_FRONTIER, SINGULAR or UNCLEAR.
        suggestion: what to try, and what came of trying it; None when HEALTHY.
        seconds: the diagnosis took so long.

    Examples:
        >>> import deqlm, torch
        >>> diagnosis = deqlm.diagnose(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
        >>> diagnosis.healthy, diagnosis.contraction.radius
        (True, (0.5, 0.5))
    """

    cause: Cause
    character: Cause
    suggestion: Suggestion | None
    seconds: float

    @property
    def healthy(self) -> bool:
        """Nothing wrong was found."""
        return self.cause is Cause.HEALTHY

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; what is not finite becomes a string."""
        data = {
            **asdict(self),
            "cause": self.cause.value,
            "character": self.character.value,
            "converged": self.converged,
            "healthy": self.healthy,
            "suggestion": None if self.suggestion is None else self.suggestion.to_dict(),
        }
        return _plain(data)

    def plot(self, path: str | Path) -> Path:
        """Draw the residual of every row, as asked and by plain iteration, into a file; return its path.

        Args:
            path: the suffix says the format, such as .png or .svg.

        Raises:
            ImportError: matplotlib is missing; the message names the extra.
        """
        return draw(self, f"{self.cause.value}: {self.solver}", Path(path))

    def __str__(self) -> str:
        return "\n".join(_wrapped(head, text) for head, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        passed, rows = sum(self.passed), len(self.passed)
        yield "diagnosis", f"{self.cause.value}; {passed} of {rows} rows converged"
        yield "solve", self._solve()
        if self.cause is Cause.RUNAWAY:
            yield "growth", self._growth()
        yield from self._contraction()
        if self.adjoint is not None:
            worst = max(self.adjoint.residual, default=0.0)
            done = f"{_count(self.adjoint.status)} after {_most(self.adjoint.steps)} products with J^T"
            yield "backward", f"{done}, largest relative residual {worst:.2g}"
        yield "f", ", ".join(self._habits())
        if self.floor is not None:
            yield "rounding", f"{self.dtype} allows a relative residual of about {self.floor:.1g} here"
        if self.path is not None:
            p = self.path
            distance = f"{p.distance:.2g} tolerances apart (up to {p.expected:.2g} is no surprise)"
            yield "starts", f"{p.converged} of {p.asked} solves from {p.starts} starts converged, {distance}"
        if self.parts is not None:
            yield "parts", self._parts()
        yield "cause", self.cause.text
        if self.healthy and self.character not in (Cause.HEALTHY, Cause.UNCLEAR):
            yield "beware", f"{self.character.value}: {self.character.text}; {self.solver} copes"
        if self.suggestion is not None:
            yield "try", self.suggestion.text
            if self.suggestion.tried:
                yield "", self.suggestion.tried

    def _solve(self) -> str:
        if self.raised is not None:
            return f"{self.solver} stopped by {self.raised}"
        finite = [r for r in self.relative if math.isfinite(r)]
        worst = f"{max(finite):.2g}" if finite else "none that is finite"
        text = f"{_count(self.status)} after {_most(self.steps)} evaluations by {self.solver}; "
        text += f"largest relative residual {worst}, asked {self.rtol:g}"
        if self.atol:
            text += f" (and {self.atol:g} absolute)"
        return text + (", the tolerance it is judged by: a budget tests nothing" if self.budget else "")

    def _parts(self) -> str:
        p = self.parts
        assert p is not None
        what = "leaves" if p.dim is None else f"tokens along dimension {p.dim}"
        text = f"{len(p.below)} of {p.count} {what} are below the tolerance of their row ({_some(p.below)})"
        if p.open:
            text += f"; not solved by their own: {_some(p.open)}, relative residual up to {p.worst:.2g}"
        else:
            text += "; solved, but the backward solve does not see them"
        return f"{text}; the row is {p.spread:.1g} times the smallest"

    def _growth(self) -> str:
        assert self.skip is not None
        plain = ""
        if self.plain is not None:
            ratio = self.plain.trace[self.worst][-1] / self.plain.trace[self.worst][0]
            plain = f"{self.plain.growth[self.worst]:.2g} times in {self.plain.steps[self.worst]} plain steps, "
            plain += f"while ||f(z) - z|| stands at {ratio:.2g} of the first; "
        return f"{plain}mean diagonal of J {self.skip.diagonal[0]:.2g} at the start: f hands its argument on"

    def _contraction(self) -> Iterator[tuple[str, str]]:
        c = self.contraction
        if c is None:
            return
        i = c.rows.index(self.telling) if self.telling in c.rows else 0
        real, imaginary = c.eigenvalue[i]
        value = f"{real:+.3g} +- {imaginary:.3g}i" if imaginary > 1e-9 else f"{real:+.3g}"
        kind = "all of J, exact" if c.products == "exact" else "all of J, by differences"
        if c.method == "arnoldi":
            kind = f"an estimate by Arnoldi, residual {c.radius_error[i]:.1g}"
        where = "" if len(self.passed) == 1 else f" in row {c.rows[i]}"
        yield "contraction", f"spectral radius {c.radius[i]:.3g} at the {c.at}{where} ({kind}); eigenvalue {value}"
        gain = "unknown" if c.norm is None else f"{c.norm[i]:.3g}"
        growth = f"errors grow up to {c.growth[i]:.2g} times" if c.growth[i] > 1.05 else "no transient growth seen"
        growth = "errors keep growing" if c.radius[i] > 1.05 else growth
        spread = f"numerical radius {c.numerical_radius[i]:.3g}, local Lipschitz {c.lipschitz[i]:.3g}"
        yield "norms", f"||J|| {gain}, {spread}; {growth}"
        if c.token_radius is not None:
            yield "tokens", f"largest radius of the diagonal token blocks {c.token_radius:.3g}, over {c.tokens} tokens"
        about = "" if c.method == "dense" else "at least "
        error = f"the relative error of the point is about {c.relative_error[i]:.1g} (an estimate)"
        yield "conditioning", f"||(I - J)^-1|| {about}{c.kappa[i]:.3g}: {error}"

    def _habits(self) -> Iterator[str]:
        noise = self.randomness
        if noise is None:
            yield "raises where its noise is looked for"
        elif noise.source is None:
            yield "deterministic"
        elif noise.source == "state":
            held = ", held within a call" if noise.held else ""
            yield f"changes from call to call by {noise.difference:.1g}{held}"
        else:
            held = "held within a call" if noise.held else "not held"
            yield f"draws from {noise.source} (differs by {noise.difference:.1g}, {held})"
        if self.in_place.writes_argument:
            yield "writes into its argument"
        if self.in_place.returns_buffer:
            yield "returns its own buffer"
        if not self.in_place.writes_argument and not self.in_place.returns_buffer:
            yield "nothing in place"
        if self.mixing is not None:
            yield "mixes rows" if self.mixing.mixes else "keeps rows apart"
        if self.causality is not None:
            named = {"causal": "causal along tokens", "tokenwise": "each token alone", "mixing": "not causal"}
            yield named[self.causality]


def _wrapped(head: str, text: str) -> str:
    label = f"{head + ':' if head else '':<14}"
    return textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label))


def _count(names: tuple[str, ...]) -> str:
    return ", ".join(f"{n} {name}" for name, n in Counter(names).items()) or "no rows"


def _some(indices: tuple[int, ...], most: int = 8) -> str:
    shown = ", ".join(map(str, indices[:most]))
    return shown if len(indices) <= most else f"{shown}, ..."


def _most(steps: tuple[int, ...]) -> str:
    return f"at most {max(steps)}" if steps else "no"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
