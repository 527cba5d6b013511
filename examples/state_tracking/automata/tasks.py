"""The automata that the tables of 2025 and 2026 are made of, drawn as their source draws them."""

from __future__ import annotations

import numpy as np

from deqlm_solvers.core.checks import suggest
from examples.state_tracking.automata.contract import Contract
from examples.state_tracking.automata.traces import NAMES, traces

__all__ = ["CONTRACTS", "TABLE", "contract"]

FILES = "github.com/Benjamin-Walker/structured-linear-cdes, data_dir/fl_tasks/"
MODULUS = 5
DIGITS = tuple(map(str, range(MODULUS)))
PLUS, MINUS, TIMES, EQUALS, OPEN, CLOSE = range(MODULUS, MODULUS + 6)

Drawn = tuple[np.ndarray, np.ndarray]


def _parity(random: np.random.Generator, rows: int, length: int) -> Drawn:
    bits = random.integers(2, size=(rows, length))
    return bits, bits.sum(1) % 2


def _even_pairs(random: np.random.Generator, rows: int, length: int) -> Drawn:
    bits = random.integers(2, size=(rows, length))
    # pairs that differ are even in number where the ends are equal
    return bits, (bits[:, 0] != bits[:, -1]).astype(np.int64)


def _cycle_navigation(random: np.random.Generator, rows: int, length: int) -> Drawn:
    moves = random.integers(3, size=(rows, length))
    return moves, np.array([0, 1, -1])[moves].sum(1) % MODULUS


def _arithmetic(random: np.random.Generator, rows: int, length: int) -> Drawn:
    count = length // 2
    numbers = random.integers(MODULUS, size=(rows, count))
    operators = random.integers(PLUS, TIMES + 1, size=(rows, count - 1))
    ids = np.empty((rows, length), dtype=np.int64)
    ids[:, 0::2], ids[:, 1:-1:2], ids[:, -1] = numbers, operators, EQUALS
    total, product = np.zeros(rows, dtype=np.int64), numbers[:, 0]
    for operator, number in zip(operators.T, numbers.T[1:], strict=True):
        times = operator == TIMES
        total = np.where(times, total, total + product)
        product = np.where(times, product * number, np.where(operator == MINUS, -number, number)) % MODULUS
    return ids, (total + product) % MODULUS


def _with_brackets(random: np.random.Generator, rows: int, length: int) -> Drawn:
    ids, answers = np.empty((rows, length), dtype=np.int64), np.empty(rows, dtype=np.int64)
    for row in range(rows):
        tokens, answers[row] = _expression(random, length - 1)
        ids[row] = [*tokens, EQUALS]
    return ids, answers


def _expression(random: np.random.Generator, length: int) -> tuple[list[int], int]:
    """Return an expression of ``length`` tokens and its value; of four operators two are times, as in the source."""
    if length < 5:
        digit = int(random.integers(MODULUS))
        tokens = {1: [digit], 2: [MINUS, digit], 3: [OPEN, digit, CLOSE], 4: [OPEN, MINUS, digit, CLOSE]}[length]
        return tokens, -digit % MODULUS if MINUS in tokens else digit
    left = int(random.integers(1, length - 3))
    (first, a), (second, b) = _expression(random, left), _expression(random, length - 3 - left)
    operator = (PLUS, MINUS, TIMES, TIMES)[random.integers(4)]
    value = {PLUS: a + b, MINUS: a - b, TIMES: a * b}[operator] % MODULUS
    return [OPEN, *first, operator, *second, CLOSE], value


CONTRACTS = {
    found.name: found
    for found in (
        Contract(
            name="cycle_navigation",
            about="where on a cycle of five do steps of 0, +1 and -1 end",
            source=FILES + "cycle_nav.py",
            revision="0334e8a14cd1fe7bccd95b75135be55fad06d89e",
            fidelity="exact",
            inputs=("0", "+1", "-1"),
            answers=DIGITS,
            sample=_cycle_navigation,
        ),
        Contract(
            name="even_pairs",
            about="is the number of pairs ab and ba even",
            source=FILES + "even_pairs.py",
            revision="020790f1e7e4827c5d0bcf7249ac10209355a5e9",
            fidelity="exact",
            inputs=("a", "b"),
            answers=("even", "odd"),
            sample=_even_pairs,
        ),
        Contract(
            name="modular_arithmetic",
            about="what is an expression of digits, +, - and * without brackets, modulo 5; * binds tighter",
            source=FILES + "mod_arith_no_brack.py",
            revision="0334e8a14cd1fe7bccd95b75135be55fad06d89e",
            fidelity="exact",
            inputs=(*DIGITS, "+", "-", "*", "="),
            answers=DIGITS,
            sample=_arithmetic,
            tokens=lambda length: length + length % 2,
        ),
        Contract(
            name="parity",
            about="is the number of b even",
            source=FILES + "parity.py",
            revision="020790f1e7e4827c5d0bcf7249ac10209355a5e9",
            fidelity="exact",
            inputs=("a", "b"),
            answers=("even", "odd"),
            sample=_parity,
        ),
        Contract(
            name="modular_arithmetic_brackets",
            about="what is an expression with brackets, modulo 5; no finite automaton knows",
            source=FILES + "mod_arith_w_brack.py",
            revision="0334e8a14cd1fe7bccd95b75135be55fad06d89e",
            fidelity="exact",
            inputs=(*DIGITS, "+", "-", "*", "=", "(", ")"),
            answers=DIGITS,
            sample=_with_brackets,
            tokens=lambda length: length + 1,
        ),
        Contract(
            name="repl_traces",
            about="which token comes next in a session that swaps five variables and prints one now and then",
            source="arXiv 2602.14814, its text",
            revision="version 1",
            fidelity="reconstructed",
            inputs=NAMES,
            answers=NAMES,
            sample=traces,
            tokens=lambda length: length + -length % 3,
            label="names that are printed",
        ),
    )
}
"""The tasks by name."""

TABLE = ("cycle_navigation", "even_pairs", "modular_arithmetic", "parity")
"""The four whose mean the published tables show."""


def contract(name: str) -> Contract:
    """Return a task by name.

    Raises:
        KeyError: no such task; the nearest one is named.
    """
    if name not in CONTRACTS:
        raise KeyError(f"unknown task {name!r}: {suggest(name, CONTRACTS)}")
    return CONTRACTS[name]
