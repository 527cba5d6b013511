"""The example's claim, with finite differences as a third witness, and its command line."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import deqlm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def part(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return import_module("examples.rnn_jacobian.jacobian")


@pytest.mark.parametrize("seed", range(3))
def test_autograd_equals_the_closed_form(part, seed):
    torch.manual_seed(seed)
    layer = part.Layer(12)
    token = layer.draw()
    J, sol = part.through_the_solve(layer, token)
    assert sol.converged.all()
    torch.testing.assert_close(J, part.closed_form(layer, token, sol.z[:1].detach()), rtol=0, atol=1e-8)
    assert part.off_diagonal(J) > 1e-4
    explicit = part.explicit(layer, token)
    assert torch.equal(explicit, torch.diag(explicit.diagonal()))
    assert (explicit.diagonal() == explicit[0, 0]).all()  # one head, one decay


def test_finite_differences_agree(part):
    torch.manual_seed(2)
    layer = part.Layer(8)
    token = layer.draw()

    def after(h):
        start = torch.zeros(1, 1, 8, dtype=h.dtype)

        def f(z):
            return layer.f(z, h, token.u, token.window)

        with torch.no_grad():
            sol = deqlm.solve(f, start, solver="broyden", stop=part.EXACT, on_failure="raise")
            return layer.next_state(sol.z, h, token.u, token.window)[0]

    h, step = token.h.view(1, 8), 1e-5
    moves = step * torch.eye(8, dtype=h.dtype)[:, None]
    columns = [(after(h + move) - after(h - move)) / (2 * step) for move in moves]
    torch.testing.assert_close(part.through_the_solve(layer, token)[0], torch.stack(columns, dim=1), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_the_command_prints_its_table_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-W", "error", "-m", "examples.rnn_jacobian", "--width", "8", "--seeds", "5", "6"]
    done = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["5", "6"]
    assert all(float(row[2]) < 1e-8 for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"jacobian-5.svg", "jacobian-6.svg"}
