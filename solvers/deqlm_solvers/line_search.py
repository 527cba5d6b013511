"""Backtracking along a direction on the norm of the residual, every row on its own."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LineSearch"]


class LineSearch:
    """Lengths of steps along directions, one per row; f is evaluated at trial points by whoever drives.

    A trial of length t passes when ||r|| falls by the share 1e-4 t (1 - eta) of itself, eta the relative residual of
    the linear system that the direction solves. A trial that fails is followed by a shorter one, at the minimum of the
    parabola through what is known of ||r||^2, kept within a tenth and a half of the last length. Below ``SHORTEST`` the
    row gives up.

    Where ||r|| has a minimum that is no solution, every Newton direction ends, and one plain step away from it the next
    one leads back. So a row that fails walks: its first failure is followed by one plain step, each further one by
    twice as many, at most ``LONGEST``; these pass whatever they lead to, as long as that is finite.

    Args:
        like: (B, N), for the number of rows and the device.

    Attributes:
        length: (B, 1) float64, of each row's pending step.
        walk: (B, 1) int64, plain steps that a row still has to take.

    Reference:
        S. C. Eisenstat, H. F. Walker (1996), Choosing the forcing terms in an inexact Newton method, SIAM J. Sci.
        Comput. 17, algorithm INB; J. E. Dennis, R. B. Schnabel (1983), Numerical methods for unconstrained
        optimization and nonlinear equations, A6.3.1 (the parabola).

    Examples:
        >>> import torch
        >>> column = torch.ones(1, 1, dtype=torch.float64)
        >>> search = LineSearch(column)
        >>> search.start(column > 0, 1 * column, 0 * column)
        >>> passes, given_up = search.judge(column > 0, 2 * column)  # the residual grew
        >>> passes.item(), round(search.length.item(), 3)
        (False, 0.2)
    """

    SHORTEST = 1e-3
    LONGEST = 64

    def __init__(self, like: Tensor) -> None:
        blank = torch.zeros(like.shape[0], 1, dtype=torch.float64, device=like.device)
        self.length = blank + 1
        self.walk = torch.zeros_like(blank, dtype=torch.int64)
        self._next_walk = self.walk + 1
        self._norm = blank + torch.inf
        self._linear = blank
        self._plain = torch.ones_like(blank, dtype=torch.bool)

    def start(self, which: Tensor, norm: Tensor, linear: Tensor) -> None:
        """Begin a search at length 1 in rows ``which``; all are (B, 1).

        Args:
            which: the rows.
            norm: ||r|| at the point they start from.
            linear: eta of their direction, < 1.
        """
        self.length = self.length.masked_fill(which, 1.0)
        self._norm = torch.where(which, norm, self._norm)
        self._linear = torch.where(which, linear, self._linear)
        self._plain = self._plain & ~which

    def fail(self, which: Tensor) -> None:
        """Send rows ``which`` (B, 1), whose direction is of no use, on a walk."""
        self.walk = torch.where(which, self._next_walk, self.walk)
        self._next_walk = torch.where(which, 2 * self._next_walk, self._next_walk).clamp_max(self.LONGEST)

    def take_plain_step(self, which: Tensor) -> None:
        """Begin a plain step in rows ``which`` (B, 1)."""
        self.length = self.length.masked_fill(which, 1.0)
        self.walk = self.walk - which.long()
        self._plain = self._plain | which

    def judge(self, which: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Take the norms (B, 1) of rows ``which`` at their trial points, and shorten where they fail.

        Returns:
            Rows that pass, and rows that give up, (B, 1) bool each.
        """
        falls = norm <= (1 - 1e-4 * self.length * (1 - self._linear)) * self._norm
        passes = which & torch.where(self._plain, norm.isfinite(), falls)
        fails = which & ~passes
        slope = -2 * (1 - self._linear) * self.length
        lowest = -slope * self.length / (2 * ((norm / self._norm).square() - 1 - slope))
        shorter = torch.where(lowest.isfinite(), lowest, 0.0).clamp(0.1 * self.length, 0.5 * self.length)
        self.length = torch.where(fails, shorter, self.length)
        return passes, fails & (self.length < self.SHORTEST)
