"""What the memory column counts."""

from __future__ import annotations

import numpy as np
import torch

from deqlm.comparison.memory import MemoryMeter, peak_memory


def test_counts_what_is_alive_at_once_and_not_what_is_gone():
    with (meter := MemoryMeter()):
        kept = torch.zeros(100)
        for _ in range(5):
            kept = kept + 1
    assert meter.peak == 800


def test_views_and_older_tensors_are_free():
    old = torch.zeros(100)
    with (meter := MemoryMeter()):
        view = old[:50].reshape(5, 10)
        view.add_(1)
        torch.zeros(25)
    assert meter.peak == 100


def test_the_inside_of_f_is_free_and_its_result_is_not():
    def f(z):
        big = torch.zeros(10_000)
        return z + big.sum()

    def run(g):
        z = start
        for _ in range(3):
            z = g(z)

    start = torch.zeros(100)
    assert peak_memory(run, f) == 800


def test_numpy_counts_without_python_objects():
    def run(g):
        history = [np.zeros(100_000)]
        for _ in range(4):
            z = torch.from_numpy(history[-1])
            history.append(g(z).numpy() + 0.0)

    peak = peak_memory(run, lambda z: z.clone())
    assert 5 * 800_000 <= peak <= 10 * 800_000


def test_a_long_run_is_ended_early():
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return z

    def run(g):
        while True:
            g(torch.zeros(1))

    peak_memory(run, f)
    assert calls == 4 + 128
