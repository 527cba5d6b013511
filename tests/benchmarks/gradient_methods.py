"""What each gradient method costs and how far it is from the exact gradient, on four layers.

    python tests/benchmarks/gradient_methods.py --record docs/records/gradient_methods.json [--repeats 9]
    python tests/benchmarks/gradient_methods.py --page docs/records/gradient_methods.json    # tables, plot of the guide

Errors are those of `deqlm.audit_gradient`, against a dense float64 solve; times are CPU, one thread, medians; memory is
the most bytes of tensors that forward and backward hold at once. A minute.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deqlm import (
    DEQ,
    Gradient,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Reversible,
    Shine,
    Stop,
    Unrolled,
    audit_gradient,
)
from deqlm.reporting.environment import environment
from deqlm.reporting.page import redraw, table
from deqlm.reporting.style import PALETTE, panels, steady

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOT = DOCS / "guides" / "choose_a_gradient.md", DOCS / "assets" / "gradient_methods.svg"
STOP = Stop(max_iter=300, rtol=1e-5)
METHODS: dict[str, Gradient] = {
    "implicit": Implicit(),
    "shine": Shine(),
    "shine, refine=5": Shine(refine=5),
    "neumann, 4 terms": Neumann(4),
    "neumann, 16 terms": Neumann(16),
    "phantom, 4 steps": Phantom(4, 1.0),
    "phantom, 16 steps": Phantom(16, 1.0),
    "phantom, 16, checkpoint": Phantom(16, 1.0, checkpoint=True),
    "one_step": OneStep(),
    "unrolled": Unrolled(),
    "unrolled, recursive": Unrolled(checkpoint="recursive"),
    "reversible": Reversible(),
}


class Layer(nn.Module):
    """tanh(W z + b + u) with ||W|| = size, along the last dimension, of neighbours too where there is a graph."""

    graph: Tensor | None

    def __init__(self, width: int, size: float, graph: Tensor | None = None) -> None:
        super().__init__()
        W = torch.randn(width, width)
        self.W = nn.Parameter(size * W / torch.linalg.matrix_norm(W, 2))
        self.b = nn.Parameter(0.1 * torch.randn(width))
        self.register_buffer("graph", graph)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the next state, (..., width)."""
        z = z if self.graph is None else self.graph @ z
        return torch.tanh(z @ self.W.T + self.b + u)


class Encoder(nn.TransformerEncoderLayer):
    """A post-norm transformer layer with the input added in front."""

    def forward(self, z: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        """Return the next state, (B, L, D)."""
        return super().forward(z + u)


def cases() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield name, layer and input."""
    torch.manual_seed(0)
    yield "tanh, norm .5, 256 x 32", Layer(32, 0.5), torch.randn(256, 32)
    yield "tanh, norm .97, 256 x 32", Layer(32, 0.97), torch.randn(256, 32)
    encoder = Encoder(16, 2, 64, dropout=0.0, batch_first=True)
    yield "transformer layer, 8 x (8, 16)", encoder, torch.randn(8, 8, 16)
    ring = torch.eye(24).roll(1, 0)
    graph = (ring + ring.T + torch.eye(24)) / 3
    yield "graph convolution, 8 x (24, 16)", Layer(16, 0.9, graph), torch.randn(8, 24, 16)


def measured(repeats: int) -> dict[str, Any]:
    """Return the record."""
    found = []
    for name, layer, x in cases():
        deq = DEQ(layer, inject="argument", start=torch.zeros_like, stop=STOP, on_failure="ignore")
        audit = audit_gradient(deq, x, gradients=METHODS.values(), repeats=repeats)
        entries = [
            {
                "method": label,
                "solver": entry.solver,
                "error": entry.error.get("parameters"),
                "cosine": entry.cosine.get("parameters"),
                "forward": entry.forward,
                "backward": entry.backward,
                "bytes": entry.peak_bytes,
                "notes": entry.notes,
            }
            for label, entry in zip(METHODS, audit.methods, strict=True)
        ]
        found.append({"case": name, "no_exact": audit.no_exact, "kappa": audit.kappa, "entries": entries})
        print(audit)
    return {
        "command": "python tests/benchmarks/gradient_methods.py --record docs/records/gradient_methods.json",
        "environment": environment(),
        "machine": platform.processor(),
        "threads": torch.get_num_threads(),
        "stop": STOP.to_dict(),
        "repeats": repeats,
        "cases": found,
    }


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page."""
    parts = []
    for case in record["cases"]:
        rows = [
            [
                entry["method"],
                entry["solver"],
                f"{entry['error']:.1e}",
                f"{entry['cosine']:.4f}",
                f"{1e3 * entry['forward']:.1f}",
                f"{1e3 * entry['backward']:.1f}",
                f"{entry['bytes'] / 1024:.0f}",
            ]
            for entry in case["entries"]
            if entry["error"] is not None
        ]
        head = ["method", "forward by", "error", "cosine", "forward ms", "backward ms", "KiB at once"]
        parts.append(f"**{case['case']}**, ||(I - J)^-1|| about {case['kappa']:.2g}\n\n{table(head, rows)}")
    return {"tables": "\n\n".join(parts)}


def draw(record: dict[str, Any]) -> None:
    """Draw error against time and against memory, a column per layer."""
    with steady():
        columns = len(record["cases"])
        fig, axes = panels(2 * columns, columns, (2.6, 2.2), 0.9)
        for column, case in enumerate(record["cases"]):
            for row, (measure, unit) in enumerate((("seconds", 1e3), ("bytes", 1 / 1024))):
                ax = axes[row * columns + column]
                for i, entry in enumerate(case["entries"]):
                    value = entry["forward"] + entry["backward"] if measure == "seconds" else entry["bytes"]
                    color, marker = PALETTE[i % len(PALETTE)], "os"[i // len(PALETTE)]
                    label = entry["method"] if row == column == 0 else None
                    ax.plot(unit * value, max(entry["error"], 1e-9), marker, color=color, label=label)
                ax.set(xscale="log", yscale="log", xlabel="ms" if measure == "seconds" else "KiB at once")
                ax.xaxis.set_minor_formatter("")
                if row == 0:
                    ax.set_title(case["case"], fontsize=7)
                if column == 0:
                    ax.set_ylabel("error")
        fig.subplots_adjust(left=0.06, right=0.99, top=0.95, bottom=0.24, hspace=0.45, wspace=0.3)
        fig.legend(loc="lower center", ncols=6, fontsize=8)
        fig.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--record", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.record:
        options.record.write_text(json.dumps(measured(options.repeats), indent=1) + "\n", encoding="utf-8")
    if options.page:
        record = json.loads(options.page.read_text(encoding="utf-8"))
        redraw(PAGE, blocks(record))
        draw(record)


if __name__ == "__main__":
    main()
