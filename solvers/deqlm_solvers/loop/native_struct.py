"""The struct in which the compiled step and Python share a solve."""

from __future__ import annotations

import ctypes

__all__ = ["GIVEN", "NativeSolve"]

_NUMBERS = (
    *("rows", "unknowns", "pairs", "rule", "line_search", "automatic", "budget", "max_iter", "patience", "token"),
    *("groups", "runs", "threads"),
)
_REALS = (
    *("rtol", "atol", "divergence", "damping", "first_damping", "ridge", "least_pivot", "growth", "plain_rate"),
    *("eps", "share_left"),
)
GIVEN = ("run_end", "run_group", "group_root", "mask", "weights", "scale", "unit", "first", "best_z")
_MADE = ("token_steps", "workspace")
_OWN = ("row", "restart_z", "restart_r", "ring_s", "ring_y", "direction", "scratch", "gram", "gram2", "systems", "sums")


class NativeSolve(ctypes.Structure):
    """The struct ``Solve`` of state.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_double) for name in _REALS),
        *((name, ctypes.c_void_p) for name in (*GIVEN, *_MADE, *_OWN, "index")),
        *((name, ctypes.c_int64) for name in ("present", "next", "active", "remaining")),
    ]
