"""A Mamba2 mixer that must forget: its step sizes have a floor, so that nothing old is left beside the state z.

A layer that is trained on 40 tokens and remembers all of them has never seen a memory of 200 tokens. One that forgets
within some twenty sees the same at token 40 as at token 4000, and the state travels through the fixed point alone.
"""

from __future__ import annotations

import math
from typing import Any

from deqlm.layers import Mamba2
from deqlm.models.options import MIXERS, MixerOptions
from deqlm_solvers import options
from deqlm_solvers.core.checks import number

__all__ = ["ForgettingMamba2Options"]


@MIXERS.register("forgetting_mamba2")
@options
class ForgettingMamba2Options(MixerOptions):
    """Sizes of a `deqlm.layers.Mamba2` whose step sizes are at least ``floor``.

    Args:
        d_state: N.
        headdim: P.
        floor: least step size, > 0; a head whose decay rate is A keeps exp(-A floor) of its state per token at most.

    Raises:
        ValueError: a floor that is not positive.
    """

    d_state: int = 16
    headdim: int = 32
    floor: float = 0.3

    def __post_init__(self) -> None:
        number("floor", self.floor, "> 0 and finite", lambda floor: 0 < floor < math.inf)

    def make(self, d_model: int, **more: Any) -> Mamba2:
        return Mamba2(d_model, d_state=self.d_state, headdim=self.headdim, dt_limit=(self.floor, math.inf), **more)
