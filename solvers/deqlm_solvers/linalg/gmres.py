"""GMRES for many systems at once, each with its own Krylov space, length and stop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm_solvers.core.norms import lengths
from deqlm_solvers.linalg.small_systems import solve_general

__all__ = ["BatchedGMRES"]


class BatchedGMRES:
    """Solve A x = b per row by GMRES(m), one product with A at a time; the caller makes the products.

    A row's space is its own: it starts when the row is told to (`start`), grows by one vector per product (`extend`)
    and is read out at any time (`correction`), whatever the other rows do. Vectors are kept in the dtype of the system;
    the Hessenberg matrix, its rotations and all coefficients are float64.

    Memory is m + 2 vectors of the size of b.

    Args:
        size: m, largest dimension of a row's space, >= 1.
        like: (B, N), the shape, dtype and device of the systems.

    Attributes:
        count: (B, 1) int64, dimension of each row's space.
        exhausted: (B, 1) bool, rows whose space cannot grow: it is full, closed under A, or the last product was not
            finite.

    Reference:
        Y. Saad, M. H. Schultz (1986), GMRES, SIAM J. Sci. Stat. Comput. 7, algorithm 4. Deviates: two passes of
        classical Gram-Schmidt, which are one operation for all rows each, and orthogonal to rounding (L. Giraud,
        J. Langou, M. Rozloznik, J. van den Eshof (2005), Rounding error analysis of the classical Gram-Schmidt
        orthogonalization process, Numer. Math. 101); the residual of the rotations is only an estimate, `correction`
        computes it from the vectors.

    Examples:
        >>> import torch
        >>> b = torch.ones(1, 2)
        >>> space, scale = BatchedGMRES(2, b), torch.tensor([2.0, 4.0])
        >>> space.start(torch.ones(1, 1, dtype=torch.bool), b)
        >>> for _ in range(2):
        ...     space.extend(torch.ones(1, 1, dtype=torch.bool), scale * space.newest())
        >>> [round(x, 4) for x in space.correction(b)[0][0].tolist()]
        [0.5, 0.25]
    """

    def __init__(self, size: int, like: Tensor) -> None:
        rows, device = like.shape[0], like.device
        self.size = size
        # the slot behind the last one takes what rows that do not grow would write
        self._vectors = like.new_zeros(rows, size + 2, like.shape[1])
        self._hessenberg = torch.zeros(rows, size + 1, size, dtype=torch.float64, device=device)
        self._triangle = torch.zeros_like(self._hessenberg)
        self._eye = torch.eye(size + 1, dtype=torch.float64, device=device)
        self._rotations = self._eye.expand(rows, -1, -1).clone()
        self._slots = torch.arange(size + 1, device=device)[None]
        self._length = torch.zeros(rows, 1, dtype=torch.float64, device=device)
        self.count = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.exhausted = torch.zeros(rows, 1, dtype=torch.bool, device=device)

    def start(self, which: Tensor, b: Tensor) -> None:
        """Begin the space of rows ``which`` (B, 1) at their b, (B, N); a b that is zero or not finite exhausts it."""
        length = lengths(b)[:, None]
        usable = length.isfinite() & (length > 0)
        unit = torch.where(usable, b.double() / length, 0.0).to(b.dtype)
        self._vectors[:, 0] = torch.where(which, unit, self._vectors[:, 0])
        self._rotations = torch.where(which[..., None], self._eye, self._rotations)
        self._length = torch.where(which, torch.where(usable, length, 0.0), self._length)
        self.count = self.count.masked_fill(which, 0)
        self.exhausted = torch.where(which, ~usable, self.exhausted)

    def newest(self) -> Tensor:
        """Return the vector of each row, (B, N), whose product with A `extend` wants."""
        return self._vectors.gather(1, self._expand(self.count))[:, 0]

    def extend(self, which: Tensor, product: Tensor) -> None:
        """Add a dimension to the spaces of rows ``which`` (B, 1). product: A times `newest`, (B, N)."""
        finite = lengths(product)[:, None].isfinite()
        grows = which & finite & ~self.exhausted
        product, column, beta = self._orthogonalise(torch.where(finite, product, 0.0))
        self._vectors.scatter_(1, self._expand(torch.where(grows, self.count + 1, self.size + 1)), product[:, None])
        self._rotate(grows, column)
        self.count = self.count + grows
        self.exhausted |= which & (~finite | (beta <= 0) | (self.count >= self.size))

    def estimate(self) -> Tensor:
        """Return the norms of the residuals, (B, 1) float64, as the rotations have them."""
        return self._length * self._rotations[:, :, 0].gather(1, self.count).abs()

    def correction(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the x of smallest residual in each space and its residual b - A x, (B, N) both.

        The residual is that of the relation A V = V H between the vectors as they are, which loss of orthogonality
        does not touch.

        Args:
            b: what `start` got.
        """
        unused = self._slots[:, : self.size] >= self.count
        triangle = self._triangle[:, : self.size].masked_fill(unused[:, None] | unused[..., None], 0.0)
        triangle.diagonal(dim1=1, dim2=2).add_(unused)
        rhs = (self._length * self._rotations[:, : self.size, 0]).masked_fill(unused, 0.0)
        weights = solve_general(triangle, rhs)
        image = (self._hessenberg.masked_fill(unused[:, None], 0.0) * weights[:, None]).sum(2)
        x, ax = self._combine(F.pad(weights, (0, 1)), image)
        return x, b - ax

    def _orthogonalise(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return w made orthogonal to each row's space, of length one, its coefficients, and its length before."""
        basis, within = self._vectors[:, :-1], self._slots <= self.count
        size = lengths(w)[:, None]
        column = torch.zeros_like(self._rotations[:, 0])
        for _ in range(2):
            part = (basis * w[:, None]).sum(2).double().masked_fill(~within, 0.0)
            column = column + part
            w = w - self._combine(part, part)[0]
        beta = lengths(w)[:, None]
        # what is left of a vector that lay in the space is rounding
        beta = beta.masked_fill(beta <= 4 * torch.finfo(w.dtype).eps * size, 0.0)
        w = torch.where(beta > 0, w.double() / beta, 0.0).to(w.dtype)
        return w, torch.where(self._slots == self.count + 1, beta, column), beta

    def _rotate(self, grows: Tensor, column: Tensor) -> None:
        """Put a column (B, m + 1) into the Hessenberg matrices of rows ``grows`` and bring the triangles up to date."""
        place = (self._slots[:, : self.size] == self.count)[:, None] & grows[..., None]
        self._hessenberg = torch.where(place, column[..., None], self._hessenberg)
        turned = (self._rotations * column[:, None]).sum(2)
        here, below = self.count.clamp_max(self.size - 1), (self.count + 1).clamp_max(self.size)
        a, b = turned.gather(1, here), turned.gather(1, below)
        length = _hypotenuse(a, b)
        cos, sin = torch.where(length > 0, a / length, 1.0), torch.where(length > 0, b / length, 0.0)
        turned = torch.where(self._slots == here, length, torch.where(self._slots == below, 0.0, turned))
        self._triangle = torch.where(place, turned[..., None], self._triangle)
        at_here, at_below = (self._slots == here)[..., None], (self._slots == below)[..., None]
        upper, lower = self._row(here), self._row(below)
        rotated = torch.where(at_here, cos[..., None] * upper + sin[..., None] * lower, self._rotations)
        rotated = torch.where(at_below, cos[..., None] * lower - sin[..., None] * upper, rotated)
        self._rotations = torch.where(grows[..., None], rotated, self._rotations)

    def _row(self, index: Tensor) -> Tensor:
        return self._rotations.gather(1, index[..., None].expand(-1, 1, self.size + 1))

    def _combine(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return two sums of the vectors, (B, N) each, with weights (B, m + 1)."""
        # a product with one to three rows rounds by the place of a row in the batch, one with four does not
        weights = torch.stack((one, other, one, other), dim=1).to(self._vectors.dtype)
        sums = torch.bmm(weights, self._vectors[:, :-1])
        return sums[:, 0], sums[:, 1]

    def _expand(self, slot: Tensor) -> Tensor:
        return slot[..., None].expand(-1, 1, self._vectors.shape[2])


def _hypotenuse(a: Tensor, b: Tensor) -> Tensor:
    """Return the root of a^2 + b^2; torch.hypot rounds by the place of a number in its tensor."""
    a, b = a.abs(), b.abs()
    large = torch.maximum(a, b)
    share = torch.where(large > 0, torch.minimum(a, b) / large, 0.0)
    return large * (1 + share * share).sqrt()
