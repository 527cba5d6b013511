"""Solvers of the user's own, functions of torchdeq's signature, as solvers of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from deqlm.compat.torchdeq.solvers import OWN, Rule, get_solver
from deqlm_solvers.adapters.torchdeq import Torchdeq

__all__ = ["Registered", "registered_rule"]


def registered_rule(name: str, options: Mapping[str, Any]) -> Rule | None:
    """Return the solver of a name that `register_solver` made known; None for those of torchdeq.

    What such a function returns is verified by one more evaluation, as of any peer.
    """
    return None if name in OWN else Rule(Registered(get_solver(name), dict(options)))


class Registered(Torchdeq):
    """A function of torchdeq's signature, called on rows (B, N).

    Args:
        function: the solver.
        keywords: what it is given beside ``max_iter``, ``tol`` and ``stop_mode``.
    """

    name = "registered"
    honours: ClassVar[frozenset[str]] = Torchdeq.honours | {"compact"}  # no row ever leaves
    LEAST: ClassVar[int] = 1
    BEFORE: ClassVar[int] = 0

    def __init__(self, function: Callable[..., Any], keywords: dict[str, Any]) -> None:
        self.function, self.keywords = function, keywords

    def peer(self) -> Callable[..., Any]:
        return self.function

    def arguments(self) -> dict[str, Any]:
        return self.keywords
