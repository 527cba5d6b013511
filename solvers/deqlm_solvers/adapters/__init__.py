"""Solvers of other libraries in the same registry: oracles in tests, rows in comparisons.

Importing this package imports none of those libraries; a solve does.
"""

from deqlm_solvers.adapters.scipy_nonlin import ScipyAnderson, ScipyBroyden1, ScipyBroyden2, ScipyKrylov
from deqlm_solvers.adapters.scipy_root import ScipyHybr
from deqlm_solvers.adapters.torchdeq import TorchdeqAnderson, TorchdeqBroyden, TorchdeqFixedPoint

__all__ = [
    "ScipyAnderson",
    "ScipyBroyden1",
    "ScipyBroyden2",
    "ScipyHybr",
    "ScipyKrylov",
    "TorchdeqAnderson",
    "TorchdeqBroyden",
    "TorchdeqFixedPoint",
]
