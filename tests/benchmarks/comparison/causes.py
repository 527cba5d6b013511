"""The gallery of the page "It does not converge": what each pattern looks like, diagnosed and tried anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm.comparison.record import write_json
from deqlm.diagnostics.diagnosis.diagnose import diagnose
from deqlm.reporting.environment import environment
from deqlm.reporting.page import redraw, table
from deqlm.reporting.style import PALETTE, figure, steady
from deqlm_solvers import Stop

__all__ = ["FIGURE", "PAGE", "RECORD", "gallery", "write_causes"]

PAGE = "guides/not_converging.md"
RECORD = "causes.json"
FIGURE = "not_converging.svg"


class Pattern(NamedTuple):
    """A map that plain iteration does not solve in 100 evaluations, or hardly."""

    shown: str
    f: Callable[[Tensor], Tensor]
    z0: Tensor


def gallery() -> list[dict[str, Any]]:
    """Return per pattern the diagnosed cause, the contraction, what was suggested and what came of it, as plain data.

    Examples:
        >>> found = gallery()
        >>> found[0]["cause"], found[0]["worked"]
        ('SLOW_CONTRACTION', True)
    """
    records = []
    for pattern in _patterns():
        found = diagnose(pattern.f, pattern.z0, solver="fixed_point", stop=Stop(max_iter=100, trace=True))
        suggestion = found.suggestion
        records.append(
            {
                "map": pattern.shown,
                "cause": str(found.cause),
                "suggestion": "" if suggestion is None else suggestion.text,
                "tried": "" if suggestion is None else suggestion.tried,
                "worked": None if suggestion is None else suggestion.worked,
                "residual": _residuals(pattern.f, pattern.z0, 100),
            }
        )
    return records


def write_causes(folder: Path, plots: bool = True) -> list[Path]:
    """Diagnose the patterns, write their record and plot, and draw the block of the page anew where it has one.

    Args:
        folder: such as ``docs``; ``records/causes.json``, ``assets/not_converging.svg`` and, where it is there,
            ``guides/not_converging.md``.
        plots: draw the plot, which needs matplotlib.

    Returns:
        What was written.

    Raises:
        ValueError: the page lacks a marker.
    """
    records, assets, page = folder / "records", folder / "assets", folder / PAGE
    records.mkdir(parents=True, exist_ok=True)
    found = gallery()
    record = {"record": "gallery of causes", "version": 1, "environment": environment(), "patterns": found}
    written = [write_json(record, records / RECORD)]
    if plots:
        assets.mkdir(parents=True, exist_ok=True)
        written.append(_draw(found, assets / FIGURE))
    if page.exists():
        written.append(redraw(page, {"causes": block(found)}))
    return written


def block(found: list[dict[str, Any]]) -> str:
    """Return the table of the page."""
    rows = [
        [one["map"], f"[`{one['cause']}`](#{one['cause'].lower()})", one["suggestion"], one["tried"]] for one in found
    ]
    return table(["map", "cause", "what is suggested", "what came of it"], rows, numbers=False)


def _patterns() -> Iterator[Pattern]:
    known: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}

    def linear(shown: str, a: Tensor) -> Pattern:
        return Pattern(shown, lambda z: z @ a.T + 1, torch.zeros(1, len(a), **known))

    yield linear("slow: eigenvalues .97 and .5", torch.diag(torch.tensor([0.97, 0.5], **known)))
    angle = 1.0
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], **known)
    yield linear("a rotation of .99", 0.99 * turn)
    yield Pattern("a two-cycle, 1 - z", lambda z: 1 - z, torch.zeros(1, 2, **known))
    upper = 0.7 * torch.eye(30, **known) + 0.6 * torch.diag(torch.ones(29, **known), 1)
    yield linear("a Jordan-like chain of 30", upper)
    yield linear("expanding: eigenvalue 1.5", torch.diag(torch.tensor([1.5, 0.5], **known)))
    yield Pattern("a GPT-2 block (pre-norm)", _pre_norm_block(16), torch.zeros(1, 6, 16, **known))


def _pre_norm_block(width: int) -> Callable[[Tensor], Tensor]:
    """Return z -> block(z + x) of random weights: y = z + attention(norm(z)), y + mlp(norm(y))."""
    draw = torch.Generator("cpu").manual_seed(0)
    known: dict[str, Any] = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    q, k, v, out, up, down = (torch.randn(shape, **known) / shape[0] ** 0.5 for shape in shapes)
    x = torch.randn(1, 6, width, **known)

    def block(z: Tensor) -> Tensor:
        z = z + x
        y = F.layer_norm(z, (width,))
        z = z + F.scaled_dot_product_attention(y @ q, y @ k, y @ v, is_causal=True) @ out
        return z + F.gelu(F.layer_norm(z, (width,)) @ up) @ down

    return block


def _residuals(f: Callable[[Tensor], Tensor], z: Tensor, evaluations: int) -> list[float | None]:
    """Return ||f(z) - z|| / ||f(z)|| of plain iteration, None where it is not finite."""
    seen: list[float | None] = []
    for _ in range(evaluations):
        fz = f(z)
        value = ((fz - z).norm() / fz.norm()).item()
        seen.append(value if math.isfinite(value) else None)
        z = fz
    return seen


def _draw(found: list[dict[str, Any]], path: Path) -> Path:
    with steady():
        made = figure(7.2, 3.6)
        panel = made.subplots()
        for i, one in enumerate(found):
            points = [(k + 1, r) for k, r in enumerate(one["residual"]) if r is not None and r > 0]
            evaluations, residuals = zip(*points, strict=True)
            panel.plot(evaluations, residuals, color=PALETTE[i % len(PALETTE)], label=f"{one['map']}: {one['cause']}")
        panel.axhline(1e-4, color="#777777", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_ylim(1e-6, 10)
        panel.set_xlabel("evaluations of plain iteration")
        panel.set_ylabel("relative residual")
        made.legend(loc="center right", fontsize=7)
        made.tight_layout(rect=(0, 0, 0.62, 1))
        made.savefig(path, metadata={"Date": None, "Creator": None})
    return path
