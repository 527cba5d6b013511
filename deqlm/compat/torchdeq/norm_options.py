"""The options of normalised weights, by torchdeq's two sets of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from deqlm_solvers.core.checks import number, require, suggest, whole

__all__ = ["NormOptions"]

OF_ARGS = {
    "norm_target_norm": "target_norm",
    "norm_clip": "clip",
    "norm_clip_value": "clip_value",
    "sn_n_power_iters": "n_power_iterations",
}
"""Names on a command line, and those of the keywords."""


@dataclass(frozen=True)
class NormOptions:
    """How weights are normalised: W = v * min(clip_value, target / norm(v)).

    Args:
        learn_scale: the target is a parameter, which begins so that the weight does not change (weight norm) or at
            ``target_norm`` (spectral norm); else it is ``target_norm``. On a command line: not ``norm_no_scale``.
        target_norm: the norm, > 0.
        clip: let the factor be at most ``clip_value``.
        clip_value: largest factor, > 0.
        n_power_iterations: of spectral norm, in each call in train(), >= 1.
        eps: smallest length of its vectors, > 0.
        names: parameters in place of the registered ones.
        dims: and their dimensions.

    Raises:
        ValueError: an option outside its range.
    """

    learn_scale: bool = True
    target_norm: float = 1.0
    clip: bool = False
    clip_value: float = 1.0
    n_power_iterations: int = 1
    eps: float = 1e-12
    names: str | Sequence[str] | None = None
    dims: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("learn_scale", "clip"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        for name in ("target_norm", "clip_value", "eps"):
            number(name, getattr(self, name), "> 0", lambda t: t > 0)
        whole("n_power_iterations", self.n_power_iterations, 1)

    @staticmethod
    def of_args(args: Any) -> dict[str, Any]:
        """Return what ``args`` holds, a dict, a Namespace or an object with attributes; None holds nothing."""
        return {} if args is None else dict(args) if isinstance(args, Mapping) else dict(vars(args))

    @classmethod
    def read(cls, args: Mapping[str, Any], options: Mapping[str, Any]) -> NormOptions:
        """Return the options of a command line, which may hold others, with keywords in their place.

        Raises:
            TypeError: an unknown keyword.
            ValueError: an option outside its range.
        """
        known = {each.name for each in fields(cls)}
        for key in options:
            if key not in {*known, *OF_ARGS, "norm_no_scale"}:
                raise TypeError(f"apply_norm got an unknown option {key!r}: {suggest(key, {*known, *OF_ARGS})}")
        values = _keywords({k: v for k, v in args.items() if k in {*OF_ARGS, "norm_no_scale"}})
        return cls(**{**values, **_keywords(options)})


def _keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {OF_ARGS.get(key, key): value for key, value in given.items() if key != "norm_no_scale"}
    if "norm_no_scale" in given:
        values["learn_scale"] = not given["norm_no_scale"]
    return values
