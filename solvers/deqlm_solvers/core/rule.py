"""Stopping rules of one's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require
from deqlm_solvers.core.options import Options, options

__all__ = ["ReadOut", "Rule"]


class Rule(Options, ABC):
    """What a point must show to pass, in place of the tolerance: ``Stop(criterion=...)``.

    A row ends CONVERGED at its first point with a ratio of at most 1, else it returns the point with the smallest one.
    Residuals are measured and reported as ever, and a row whose state only grows does not pass. What a rule says of a
    row may depend on nothing but that row.

    Examples:
        >>> import deqlm, torch
        >>> @deqlm.options
        ... class Nearly(deqlm.Rule):
        ...     tol: float = 0.1
        ...     def ratio(self, z, fz):
        ...         return (fz - z).abs().flatten(1).amax(1) / self.tol
        >>> sol = deqlm.solve(torch.cos, torch.zeros(2, 3), stop=deqlm.Stop(criterion=Nearly()))
        >>> sol.converged.tolist()
        [True, True]
    """

    @abstractmethod
    def ratio(self, z: Any, fz: Any) -> Tensor:
        """Return (B,), at most 1 where a row passes at ``z``, and smaller where it is better.

        Args:
            z: the points, (B, ...) with the shape of a row behind it, float32 or wider, without a graph; a tuple of
                them where the state has several leaves.
            fz: f(z), likewise.
        """


@options(kw_only=False)
class ReadOut(Rule):
    """A row passes when what is read out of it no longer changes from z to f(z), in every position.

    For states whose numbers may go on moving while the answer stands: recurrent-depth language models, classifiers.

    Args:
        head: state (B, ...) to logits (B, ..., V); called at z and f(z) of every tested evaluation, without grad.
        measure: "kl", the divergence KL(p(f(z)) || p(z)); "entropy", the change of the entropy of p; "argmax", whether
            the largest logit stays the largest one.
        tol: largest divergence or change in nats, > 0; None is 5e-4, and must be left for "argmax".

    Raises:
        TypeError, ValueError: a head that cannot be called, an unknown measure, or a tolerance that is out of range or
            would be ignored.

    Reference:
        J. Geiping et al. (2025), Scaling up test-time compute with latent reasoning, section 7 (exit by KL divergence).

    Examples:
        >>> import deqlm, torch
        >>> stop = deqlm.Stop(criterion=deqlm.ReadOut(torch.nn.Linear(4, 3), "argmax"))
        >>> deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros(2, 4), stop=stop).converged.tolist()
        [True, True]
    """

    head: Callable[[Any], Tensor]
    measure: Literal["kl", "entropy", "argmax"] = "kl"
    tol: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.head):
            raise TypeError(f"head must be a function or a module, got {type(self.head).__name__}")
        require(self.measure in ("kl", "entropy", "argmax"), "measure", self.measure, "'kl', 'entropy' or 'argmax'")
        if self.measure == "argmax":
            require(self.tol is None, "tol", self.tol, "None with measure='argmax', which is equal or not")
        elif self.tol is not None:
            number("tol", self.tol, "> 0", lambda t: 0 < t < float("inf"))

    def ratio(self, z: Any, fz: Any) -> Tensor:
        before, after = self.head(z), self.head(fz)
        if self.measure == "argmax":
            return 2.0 * _worst((before.argmax(-1) != after.argmax(-1)).double())
        p, q = after.double().log_softmax(-1), before.double().log_softmax(-1)
        if self.measure == "kl":
            change = (p.exp() * (p - q)).sum(-1)
        else:
            change = (torch.special.entr(p.exp()).sum(-1) - torch.special.entr(q.exp()).sum(-1)).abs()
        return _worst(change) / (5e-4 if self.tol is None else self.tol)


def _worst(t: Tensor) -> Tensor:
    """Return the largest of all positions, (B,)."""
    return t.reshape(t.shape[0], -1).amax(1) if t.numel() else t.new_zeros(t.shape[0])
