"""Finite groups and monoids as Cayley tables, and running products by table lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import permutations
from math import factorial

import numpy as np

from deqlm_solvers.core.checks import require, whole

MAX_ORDER = 1000


@dataclass(frozen=True, eq=False)
class Algebra:
    """A finite monoid, or a group: elements 0..n-1 and their products.

    Args:
        name: what the parser calls it, such as "A5".
        elements: names of the elements; element 0 is the identity.
        table: ``table[a, b]`` is the product a·b, (n, n) int64.

    Raises:
        ValueError: the table is not square, leaves the elements, or element 0 is not the identity.
    """

    name: str
    elements: tuple[str, ...]
    table: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.elements)
        require(self.table.shape == (n, n), "table", self.table.shape, f"({n}, {n}), one row per element")
        closed = np.issubdtype(self.table.dtype, np.integer) and n > 0
        closed = closed and self.table.min() >= 0 and self.table.max() < n
        shown = self.table.tolist() if n < 9 else "others"
        require(closed, f"products of {self.name}", shown, f"whole numbers in 0..{n - 1}")
        unit = np.array_equal(self.table[0], np.arange(n)) and np.array_equal(self.table[:, 0], np.arange(n))
        require(unit, f"element 0 of {self.name}", self.elements[0], "the identity")
        object.__setattr__(self, "table", np.ascontiguousarray(self.table, dtype=np.int64))
        self.table.flags.writeable = False

    def __len__(self) -> int:
        return len(self.elements)

    def __repr__(self) -> str:
        return f"Algebra({self.name}, {len(self)} elements)"

    @cached_property
    def is_group(self) -> bool:
        """Whether every element has an inverse."""
        return bool((self.table == 0).any(1).all() and (self.table == 0).any(0).all())

    def generators(self, count: int) -> np.ndarray:
        """Return ``count`` elements of a group that generate it, the identity not among them; always the same ones.

        Drawn evenly among the sets of this size that do.

        Raises:
            ValueError: a count out of range, or so small that a hundred sets were drawn in vain.
        """
        require(self.is_group, self.name, "a monoid", "a group to have generators")
        ok = isinstance(count, int) and 1 <= count < len(self)
        require(ok, f"generators of {self.name}", count, f"a whole number in 1..{len(self) - 1}")
        random = np.random.default_rng([len(self), count])
        for _ in range(100):
            chosen = np.sort(random.choice(np.arange(1, len(self)), count, replace=False))
            if self._closure(chosen) == len(self):
                return chosen
        raise ValueError(f"generators of {self.name} must be more than {count}, which generate a part of it only")

    def _closure(self, chosen: np.ndarray) -> int:
        """Return how many elements the products of ``chosen`` are."""
        reached = np.zeros(len(self), dtype=bool)
        reached[0], size = True, 0
        while size < reached.sum():
            size = int(reached.sum())
            reached[self.table[np.ix_(reached, chosen)].ravel()] = True
        return size

    def is_associative(self) -> bool:
        """Test (a·b)·c = a·(b·c) for all triples, one a at a time: n³ lookups, n² memory."""
        return all(np.array_equal(self.table[row], row[self.table]) for row in self.table)

    def inverse(self, a: np.ndarray) -> np.ndarray:
        """Return the inverses of elements of a group.

        Raises:
            ValueError: a monoid that is no group.
        """
        require(self.is_group, self.name, "a monoid", "a group to have inverses")
        return (self.table == 0).argmax(axis=1)[a]

    def times(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the products a·b elementwise; int64 arrays of one shape."""
        return self.table.ravel().take(a * len(self) + b)

    def running(self, x: np.ndarray) -> np.ndarray:
        """Return the running products x_0, x_0·x_1, (x_0·x_1)·x_2, ... along the last dimension.

        Neighbours are multiplied in pairs and the sequence of pairs, half as long, is solved the same way: about two
        lookups per element in log2(L) vectorised steps. Right because the product is associative.

        Args:
            x: elements, (..., L) int64.

        Returns:
            (..., L) int64; position j holds the product of positions 0..j.
        """
        if x.shape[-1] < 2:
            return x.copy()
        odd = x[..., 1::2]
        later = x[..., 2::2]
        pairs = self.running(self.times(x[..., : 2 * odd.shape[-1] : 2], odd))
        out = np.empty_like(x)
        out[..., 0] = x[..., 0]
        out[..., 1::2] = pairs
        out[..., 2::2] = self.times(pairs[..., : later.shape[-1]], later)
        return out


@lru_cache(maxsize=64)
def cyclic(n: int) -> Algebra:
    """Return Z_n: addition modulo n."""
    _check_order("Z", n, n)
    numbers = np.arange(n)
    return Algebra(f"Z{n}", tuple(map(str, range(n))), (numbers[:, None] + numbers) % n)


@lru_cache(maxsize=16)
def symmetric(n: int) -> Algebra:
    """Return S_n: permutations of n things in lexicographic order, (a·b)(i) = a(b(i)).

    An element's name lists the images of 1..n: "213" swaps the first two.
    """
    _check_order("S", n, factorial(min(n, 20)))
    return _permutation_group(f"S{n}", np.array(list(permutations(range(n)))))


@lru_cache(maxsize=16)
def alternating(n: int) -> Algebra:
    """Return A_n: the even permutations, in the order that they have in S_n."""
    _check_order("A", n, max(1, factorial(min(n, 20)) // 2))
    images = np.array(list(permutations(range(n))))
    inversions = sum((images[:, i] > images[:, j]).astype(int) for i in range(n) for j in range(i + 1, n))
    return _permutation_group(f"A{n}", images[np.broadcast_to(inversions, len(images)) % 2 == 0])


def _check_order(kind: str, n: int, order: int) -> None:
    whole(f"n of {kind}_n", n, 1)
    rule = f"small enough for a group of at most {MAX_ORDER} elements"
    require(order <= MAX_ORDER, f"n of {kind}_n", n, rule)


def _permutation_group(name: str, images: np.ndarray) -> Algebra:
    n = images.shape[1]
    digits = n ** np.arange(n)[::-1]
    products = images[:, images] @ digits  # (a, b): the number whose digits are the images of a after b
    table = np.searchsorted(images @ digits, products)
    return Algebra(name, tuple("".join(str(i + 1) for i in row) for row in images), table)


def adjoin_identity(name: str, elements: Sequence[str], table: Sequence[Sequence[int]], unit: str = "E") -> Algebra:
    """Return the monoid of a semigroup with a new identity as element 0.

    Args:
        name: of the monoid.
        elements: names of the semigroup's elements.
        table: products of the semigroup, numbered from 0 without the identity.
        unit: name of the identity.

    Raises:
        ValueError: the product is not associative.
    """
    inner = np.asarray(table, dtype=np.int64) + 1
    n = len(elements) + 1
    whole_table = np.empty((n, n), dtype=np.int64)
    whole_table[0], whole_table[:, 0] = np.arange(n), np.arange(n)
    require(inner.shape == (n - 1, n - 1), "table", inner.shape, f"({n - 1}, {n - 1}), one row per element")
    whole_table[1:, 1:] = inner
    monoid = Algebra(name, (unit, *elements), whole_table)
    require(monoid.is_associative(), "table", table, "associative")
    return monoid


@lru_cache(maxsize=1)
def aperiodic() -> Algebra:
    """Return the monoid M of the authors' data: E the identity, X absorbing, B·A = A, B·B = B, A·A = A·B = X.

    A·B is X as their table has it, although its description ("no aa") would let A·B live.
    """
    A, B, X = 0, 1, 2
    return adjoin_identity("M", "ABX", [[X, X, X], [A, B, X], [X, X, X]])


@lru_cache(maxsize=1)
def flip_flop() -> Algebra:
    """Return the monoid F of one bit that is kept (E), set (S) or reset (R): the later write wins."""
    S, R = 0, 1
    return adjoin_identity("F", "SR", [[S, R], [S, R]])


def direct_product(factors: Sequence[Algebra]) -> Algebra:
    """Return the direct product; the first factor is the slowest digit of an element's number.

    Raises:
        ValueError: no factor, or a table too large to hold.
    """
    require(len(factors) > 0, "factors", factors, "at least one")
    return reduce(_pair, factors)


def _pair(left: Algebra, right: Algebra) -> Algebra:
    n, m = len(left), len(right)
    name = f"{left.name}x{right.name}"
    require(n * m <= 5 * MAX_ORDER, f"order of {name}", n * m, f"at most {5 * MAX_ORDER}")
    table = left.table[:, None, :, None] * m + right.table[None, :, None, :]
    elements = tuple(f"{a},{b}" for a in left.elements for b in right.elements)
    return Algebra(name, elements, table.reshape(n * m, n * m))
