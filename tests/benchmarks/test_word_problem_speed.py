"""Tokens per second of the word problems: `pytest -m bench -s tests/benchmarks/test_word_problem_speed.py`.

The other side is the logic of the authors' script, written anew in Python: one draw per position, elements as names,
products and token numbers found by ``list.index``. Wall times are printed, never asserted.
"""

from __future__ import annotations

import random
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.bench


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])
    return import_module("examples.state_tracking.data")


def position_by_position(problem, batch, length):
    """Draw and multiply like the authors' loop; returns lists of token numbers."""
    group, monoid = problem.factors
    algebra = problem.algebra
    elements, table = list(algebra.elements), algebra.table.tolist()

    def times(a, b):
        return elements[table[elements.index(a)][elements.index(b)]]

    inputs, targets = [], []
    for _ in range(batch):
        x, y = [], []
        product = elements[0]
        for _ in range(length):
            g = random.choice(group.elements) if random.random() > problem.p else group.elements[0]
            element = f"{g},{random.choice(monoid.elements)}"
            product = times(product, element)
            x.append(elements.index(element))
            y.append(elements.index(product))
        inputs.append(x)
        targets.append(y)
    return inputs, targets


def rate(draw, tokens, repeats):
    """Return the best tokens per second of ``repeats`` draws."""
    seconds = []
    for k in range(repeats):
        start = time.perf_counter()
        draw(k)
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_against_the_authors_loop(data, p):
    problem = data.word_problem("A5xM", p=p)
    x, y = position_by_position(problem, 4, 64)
    assert torch.equal(problem.targets(torch.tensor(x)), torch.tensor(y))
    slow = rate(lambda _: position_by_position(problem, 16, 256), 16 * 256, 5)
    print(f"\nA5xM p={p} L=256: loop {slow:,.0f} tokens/s")
    for batch, length in [(512, 256), (64, 256), (64, 16)]:
        fast = rate(lambda k, b=batch, n=length: problem.draw(b, n, step=k), batch * length, 30)
        print(f"  drawn {batch} x {length}: {fast:,.0f} tokens/s, {fast / slow:.0f} times the loop")
