"""Whether f gives the same answer twice."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers import Map

__all__ = ["CHANGES", "changes"]

CHANGES = "f(z) changes from call to call (dropout in train()?): call .eval(), or nothing can converge"
"""What the reader of a table is told of such an f."""


def changes(f: Map, z0: Tensor, tol: float) -> bool:
    """Return whether two evaluations of ``f`` at one point differ, in any row, by more than a tenth of ``tol``.

    It looks at ``z0`` and at f(z0), since noise that is multiplied with z cannot be seen at a start of zeros. Smaller
    differences are what atomic sums of some devices make, and stop nobody.

    Args:
        f: the map on rows, (B, N) -> (B, N).
        z0: start, (B, N).
        tol: relative tolerance that the solvers are asked for.

    Examples:
        >>> z0 = torch.ones(2, 64)
        >>> changes(torch.cos, z0, 1e-5), changes(torch.nn.functional.dropout, z0, 1e-5)
        (False, True)
    """
    z = z0
    with torch.no_grad():
        for _ in range(2):
            once, again = f(z), f(z)
            gap = torch.linalg.vector_norm(once.double() - again.double(), dim=1)
            if bool((gap > 0.1 * tol * torch.linalg.vector_norm(once.double(), dim=1)).any()):
                return True
            z = once
    return False
