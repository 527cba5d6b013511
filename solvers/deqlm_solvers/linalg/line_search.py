"""Backtracking along a direction on the norm of the residual, every row on its own."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LineSearch"]


class LineSearch:
    """Lengths of steps along directions, one per row; f is evaluated at trial points by whoever drives.

    A trial of length t passes when ||r|| falls by the share 1e-4 t (1 - eta) of itself, eta the relative residual of
    the linear system that the direction solves. A trial that fails, a point where f is not finite among them, is
    followed by a shorter one, at the minimum of the parabola through what is known of ||r||^2, kept within a tenth and
    a half of the last length. Below ``SHORTEST`` the row gives up; while trials are wild, which is not finite or more
    than ``GROWTH`` times ||r||, below ``LEAST``.

    Where ||r|| has a minimum that is no solution, every Newton direction ends, and one plain step away from it the next
    one leads back. So a row that fails walks: its first failure is followed by one plain step, each further one by
    twice as many, at most ``LONGEST``. These pass unless they are wild, as on a map that expands, where plain steps
    explode. A wild one is shortened to where ||r|| has doubled, if it grows in proportion to the length; it exists
    wherever f is continuous. The steps after it have the same length. Below ``LEAST`` nothing is left to try.

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
        >>> search.judge(column > 0, column)[0].item()  # the start
        True
        >>> search.start(column > 0, 1 * column, 0 * column)
        >>> passes, given_up = search.judge(column > 0, 2 * column)  # the residual grew
        >>> passes.item(), round(search.length.item(), 3)
        (False, 0.2)
    """

    SHORTEST = 1e-3
    LEAST = 1e-12
    LONGEST = 64
    GROWTH = 10.0

    def __init__(self, like: Tensor) -> None:
        blank = torch.zeros(like.shape[0], 1, dtype=torch.float64, device=like.device)
        self.length = blank + 1
        self.walk = torch.zeros_like(blank, dtype=torch.int64)
        self._next_walk = self.walk + 1
        self._stride = blank + 1
        self._norm = blank + torch.inf
        self._linear = blank
        self._plain = torch.zeros_like(blank, dtype=torch.bool)
        self._first = ~self._plain

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

    def fail(self, which: Tensor, norm: Tensor) -> None:
        """Send rows ``which`` (B, 1), whose direction is of no use, on a walk from where ||r|| is ``norm`` (B, 1)."""
        self.walk = torch.where(which, self._next_walk, self.walk)
        self._next_walk = torch.where(which, 2 * self._next_walk, self._next_walk).clamp_max(self.LONGEST)
        self._stride = self._stride.masked_fill(which, 1.0)
        self._norm = torch.where(which, norm, self._norm)

    def take_plain_step(self, which: Tensor) -> None:
        """Begin a plain step in rows ``which`` (B, 1)."""
        self.length = torch.where(which, self._stride, self.length)
        self.walk = self.walk - which.long()
        self._plain = self._plain | which

    def final(self) -> Tensor:
        """Return the rows, (B,) bool, that have nothing else to try if their pending point turns out to be bad."""
        return (self._first | (self._plain & (self.length <= self.LEAST)))[:, 0]

    def judge(self, which: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Take the norms (B, 1) of rows ``which`` at their trial points, and shorten where they fail.

        Returns:
            Rows that pass, and rows that give up, (B, 1) bool each.
        """
        tame = norm <= self.GROWTH * self._norm
        falls = norm <= (1 - 1e-4 * self.length * (1 - self._linear)) * self._norm
        passes = which & (self._first | torch.where(self._plain, tame | (self.length <= self.LEAST), falls))
        self._first = self._first & ~which
        fails = which & ~passes
        self.length = torch.where(fails, self._shorter(norm / self._norm), self.length)
        self._stride = torch.where(self._plain, self.length, self._stride)
        ended = (self.length <= self.LEAST) | (tame & (self.length <= self.SHORTEST))
        return passes, fails & ~self._plain & ended

    def _shorter(self, growth: Tensor) -> Tensor:
        """Return the next length where ||r|| at the last one is ``growth`` (B, 1) times that at the start."""
        slope = -2 * (1 - self._linear) * self.length
        lowest = -slope * self.length / (2 * (growth.square() - 1 - slope))
        shorter = torch.where(lowest.isfinite(), lowest, 0.0).clamp(0.1 * self.length, 0.5 * self.length)
        doubled = torch.where(growth.isfinite(), self.length / (growth - 1), 0.1 * self.length)
        return torch.where(self._plain, doubled, shorter).clamp_min(self.LEAST)
