"""Recurrent cells solved by Newton along the sequence: steps and time against length, beside the loop and the peers.

    PYTHONPATH=tests python -m benchmarks.recurrent --record docs/records/recurrent.json [--longest 16384] [--repeats 3]
    PYTHONPATH=tests python -m benchmarks.recurrent --page docs/records/recurrent.json  # table and plot of the guide

One row, float64, tolerance 1e-10, seconds of one thread of the CPU; every repeat runs all contenders in turn, and
medians are told, but above 4096 tokens, where there is one repeat. Errors are beside the loop over tokens, of values
and of the gradient of a random linear loss. Three minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.recurrent_peers import deer, pararnn
from deqlm import Deer, Stop, solve
from deqlm.reporting.environment import environment
from deqlm.reporting.page import redraw, table
from deqlm.reporting.style import PALETTE, panels, steady

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOT = DOCS / "guides" / "recurrent_cells.md", DOCS / "assets" / "recurrent.svg"
INPUTS, TOL = 4, 1e-10
STOP = Stop(max_iter=10**6, rtol=TOL)
LENGTHS = (256, 1024, 4096, 16384)


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A cell: how it steps many tokens at once, the shape of its state, the structures of `Deer` it is run with."""

    name: str
    cell: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    structures: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    slope: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the cell at every token, each after the state before it; z: (B, L, ...)."""
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return self.cell(before.flatten(0, 1), x.flatten(0, 1)).view_as(z)

    def loop(self, x: Tensor) -> Tensor:
        """Return the states, (B, L, ...), one token after the other."""
        h, states = torch.zeros(x.shape[0], *self.shape, dtype=x.dtype), []
        for one in x.unbind(1):
            h = self.cell(h, one)
            states.append(h)
        return torch.stack(states, 1)

    def flat(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the cell on states (T, D)."""
        return self.cell(h.unflatten(1, self.shape), x).flatten(1)


def recurrences() -> Iterator[Recurrence]:
    """Yield GRU and LSTM of torch, a matrix-valued cell, and an elementwise GRU."""
    torch.manual_seed(0)
    gru, lstm = nn.GRUCell(INPUTS, 16).double(), nn.LSTMCell(INPUTS, 8).double()
    yield Recurrence("GRU", lambda h, x: gru(x, h), (16,), ("dense", "diagonal"), tuple(gru.parameters()))

    def both(state: Tensor, x: Tensor) -> Tensor:
        return torch.stack(lstm(x, (state[:, 0], state[:, 1])), 1)

    yield Recurrence("LSTM", both, (2, 8), ("dense", "diagonal"), tuple(lstm.parameters()))
    W, K, V, f = (nn.Parameter(torch.randn(n, 4).double() / n**0.5) for n in (4, INPUTS, INPUTS, INPUTS))

    def matrix(H: Tensor, x: Tensor) -> Tensor:
        keep = torch.sigmoid(x @ f[:, :1])[..., None]
        return keep * H + (1 - keep) * torch.tanh(H @ W + (x @ K)[..., None] * (x @ V)[:, None])

    yield Recurrence("M2RNN", matrix, (4, 4), ("dense", "block"), (W, K, V, f))
    A, R = torch.randn(3, 16).double(), torch.randn(INPUTS, 48).double() / 2

    def gates(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, r, n = (x @ R).chunk(3, 1)
        update, reset = torch.sigmoid(u + A[0] * h), torch.sigmoid(r + A[1] * h)
        return update, reset, torch.tanh(n + A[2] * reset * h)

    def elementwise(h: Tensor, x: Tensor) -> Tensor:
        update, _, new = gates(h, x)
        return update * h + (1 - update) * new

    def slope(h: Tensor, x: Tensor) -> Tensor:
        update, reset, new = gates(h, x)
        inner = A[2] * (reset + h * A[1] * reset * (1 - reset))
        return update + (h - new) * A[0] * update * (1 - update) + (1 - update) * (1 - new**2) * inner

    yield Recurrence("elementwise GRU", elementwise, (16,), ("diagonal",), (), slope)


def measured(lengths: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Return one entry per cell, length and contender."""
    entries = []
    for cell in recurrences():
        for length in (64, *lengths):
            x = torch.randn(1, length, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            found = _compared(cell, x, repeats if length <= 4096 else 1)
            if length == 64:  # the first calls load and warm up
                continue
            entries += found
            print(json.dumps(entries[-1]), flush=True)
    return entries


def _compared(cell: Recurrence, x: Tensor, repeats: int) -> list[dict[str, Any]]:
    contenders: dict[str, Callable[[], tuple[Tensor, int]]] = {"loop": lambda: (cell.loop(x), x.shape[1])}
    for structure in cell.structures:
        contenders[f"Deer, {structure}"] = lambda structure=structure: _solved(cell, x, Deer(structure=structure))
    width = torch.Size(cell.shape).numel()
    if cell.slope is None:
        contenders["DEER as published"] = lambda: deer(cell.flat, x, width, TOL)
    else:
        slope = cell.slope
        known = Deer(structure="diagonal", blocks=lambda z: _diagonals(slope, z, x))
        contenders["Deer, diagonal, blocks"] = lambda: _solved(cell, x, known)
        contenders["ParaRNN as published"] = lambda: pararnn(cell.cell, slope, x, width, TOL)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, tuple[Tensor, int]] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            began = time.process_time()
            with torch.no_grad():
                found[name] = run()
            times[name].append(time.process_time() - began)
    truth = found["loop"][0]
    size = truth.abs().max()
    gradients = _gradient_errors(cell, x) if x.shape[1] <= 4096 and cell.parameters else {}
    return [
        {
            "cell": cell.name,
            "length": x.shape[1],
            "contender": name,
            "steps": found[name][1],
            "repeats": repeats,
            "seconds": statistics.median(times[name]),
            "error": float((found[name][0].reshape(truth.shape) - truth).abs().max() / size),
            **gradients.get(name, {}),
        }
        for name in contenders
    ]


def _solved(cell: Recurrence, x: Tensor, solver: Deer) -> tuple[Tensor, int]:
    sol = solve(cell, torch.zeros(*x.shape[:2], *cell.shape, dtype=x.dtype), args=(x,), solver=solver, stop=STOP)
    return sol.z, int(sol.steps.max()) if bool(sol.converged.all()) else -1


def _diagonals(slope: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
    h = z.reshape(*x.shape[:2], -1)
    before = F.pad(slope(F.pad(h[:, :-1], (0, 0, 1, 0)).flatten(0, 1), x.flatten(0, 1)).view_as(h)[:, 1:], (0, 0, 1, 0))
    return torch.stack([torch.zeros_like(before), before])


def _gradient_errors(cell: Recurrence, x: Tensor) -> dict[str, dict[str, float]]:
    """Return error and seconds of forward and backward, beside backpropagation through the loop."""
    g = torch.randn(*x.shape[:2], *cell.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    runs = {"loop": lambda: cell.loop(x)}
    for structure in cell.structures:
        runs[f"Deer, {structure}"] = lambda structure=structure: (
            solve(cell, torch.zeros_like(g), args=(x,), solver=Deer(structure=structure), stop=STOP).z
        )
    told: dict[str, dict[str, float]] = {}
    truth: tuple[Tensor, ...] = ()
    for name, run in runs.items():
        began = time.process_time()
        grads = torch.autograd.grad((run() * g).sum(), cell.parameters)
        seconds = time.process_time() - began
        truth = truth or grads
        pairs = zip(grads, truth, strict=True)
        error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs)
        told[name] = {"gradient_seconds": seconds, "gradient_error": error}
    return told


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page by their names."""
    rows = [
        [
            entry["cell"],
            f"{entry['length']:,}",
            entry["contender"],
            "" if entry["contender"] == "loop" else str(entry["steps"]),
            f"{entry['seconds']:.3g}",
            f"{entry['error']:.0e}" if entry["contender"] != "loop" else "",
            f"{entry['gradient_error']:.0e}" if "gradient_error" in entry and entry["contender"] != "loop" else "",
        ]
        for entry in record["entries"]
    ]
    head = ["cell", "tokens", "", "Newton steps", "seconds", "error", "error of the gradient"]
    return {"tables": table(head, rows)}


def draw(record: dict[str, Any]) -> None:
    """Draw steps and seconds against length."""
    styles = {"loop": ":", "Deer, dense": "-", "Deer, diagonal": "--", "Deer, block": "-."}
    with steady():
        fig, (left, right) = panels(2, 2, (4.0, 3.0), 1.2)
        for color, name in zip(PALETTE, ("GRU", "LSTM", "M2RNN", "elementwise GRU"), strict=False):
            for contender, style in styles.items():
                some = [e for e in record["entries"] if e["cell"] == name and e["contender"] == contender]
                lengths, label = [e["length"] for e in some], f"{name}, {contender.removeprefix('Deer, ')}"
                if some and contender != "loop":
                    left.plot(lengths, [e["steps"] for e in some], style, color=color, marker="o", markersize=3)
                if some:
                    right.plot(lengths, [e["seconds"] for e in some], style, color=color, label=label)
        left.set(xscale="log", xlabel="tokens", ylabel="evaluated points", ylim=(0, None))
        right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
        fig.subplots_adjust(left=0.08, right=0.98, top=0.96, bottom=0.36, wspace=0.25)
        fig.legend(loc="lower center", ncols=4, fontsize=7)
        fig.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    if asked.record:
        torch.set_num_threads(1)
        entries = measured(tuple(length for length in LENGTHS if length <= asked.longest), asked.repeats)
        record = {"environment": environment(), "repeats": asked.repeats, "tolerance": TOL, "entries": entries}
        asked.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if asked.page:
        record = json.loads(asked.page.read_text(encoding="utf-8"))
        redraw(PAGE, blocks(record))
        draw(record)


if __name__ == "__main__":
    main()
