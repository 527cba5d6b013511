"""What every comparison can be told: a field an option, for Python, for the command line and for the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, Unpack

import torch

from deqlm_solvers.core.checks import require, suggest, whole

__all__ = ["TOLERANCES", "Settings", "SettingsOptions", "parse_device", "parse_dtype"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative tolerance asked for, per dtype; a few units in the last place for the half precisions."""

QUICK_REPEATS = 2
"""Most timed runs of a quick comparison."""


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return one of the dtypes a comparison can run in.

    Raises:
        ValueError: any other; the message names the nearest one.

    Examples:
        >>> parse_dtype("float64")
        torch.float64
    """
    known = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
    text = str(name).removeprefix("torch.")
    if text not in known:
        raise ValueError(f"unknown dtype {text!r}: {suggest(text, known)}")
    return known[text]


def parse_device(name: str | torch.device) -> torch.device:
    """Return a device that this machine has.

    Raises:
        ValueError: no such kind of device, or none of it here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {str(name)!r}: {suggest(str(name), ('cpu', 'cuda', 'mps'))}") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, True) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {str(name)!r} is not available here; `deqlm env` lists what is")
    return device


def option(text: str, **more: Any) -> dict[str, Any]:
    """Return the metadata of a field of `Settings`.

    Args:
        text: what the command line's help says of it.
        **more: ``metavar``: how the help calls its value. ``flag``: on the command line it takes none and means True.
            ``parse``: what makes a value of what was given. ``fixed``: published problems say it themselves.
            ``recorded``: False keeps it out of the record.
    """
    return {"help": text, **more}


class SettingsOptions(TypedDict, total=False):
    """The keywords of every comparison, which are the fields of `Settings`."""

    dtype: str | torch.dtype
    batch: int | None
    seed: int
    repeats: int
    threads: int | None
    device: str | torch.device
    quick: bool
    progress: bool | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that comparisons share. One more is one field here, and one keyword in `SettingsOptions`.

    Attributes:
        dtype: of the state: float32 (tolerance 1e-5), float64 (1e-10), float16 (5e-3) or bfloat16 (3e-2).
        batch: rows B, >= 1; None takes each problem's own number.
        seed: of everything random, a whole number in [0, 2**63).
        repeats: timed runs, >= 1, of which the median counts.
        threads: threads of torch for the run; one by default, because more make small problems slower and counts depend
            on the machine. None leaves torch's setting. numpy's threads follow OMP_NUM_THREADS at start.
        device: where the state lives.
        quick: fewer problems where none are named, and at most 2 repeats.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Raises:
        ValueError: a dtype without a tolerance, or a number outside its range.

    Examples:
        >>> from deqlm.comparison import PROBLEMS, Settings
        >>> PROBLEMS["rotation"]().build(Settings(batch=3)).z0.shape
        torch.Size([3, 64])
    """

    dtype: torch.dtype = field(
        default=torch.float32,
        metadata=option("float32 (default), float64, float16 or bfloat16", fixed=True, parse=parse_dtype),
    )
    batch: int | None = field(
        default=None, metadata=option("rows of every problem (default: its own number)", fixed=True, metavar="B")
    )
    seed: int = field(
        default=0, metadata=option("seed of everything random; same seed, same counts (default 0)", fixed=True)
    )
    repeats: int = field(
        default=5, metadata=option("timed runs, interleaved; the median counts (default 5)", fixed=True, metavar="N")
    )
    threads: int | None = field(default=1, metadata=option("threads of torch (default 1)", metavar="N"))
    device: torch.device = field(
        default=torch.device("cpu"), metadata=option("cpu (default), cuda, cuda:1, ...", fixed=True, parse=parse_device)
    )
    quick: bool = field(
        default=False,
        metadata=option(
            "fewer problems where none are named, at most 2 repeats", fixed=True, flag=True, recorded=False
        ),
    )
    progress: bool | None = field(
        default=None,
        metadata=option("draw the progress bar even when stderr is not a terminal", flag=True, recorded=False),
    )

    def __post_init__(self) -> None:
        known = ", ".join(str(d).removeprefix("torch.") for d in TOLERANCES)
        require(self.dtype in TOLERANCES, "dtype", self.dtype, f"one of {known}")
        seeded = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        require(seeded, "seed", self.seed, "a whole number in [0, 2**63)")
        require(isinstance(self.quick, bool), "quick", self.quick, "True or False")
        require(
            self.progress is None or isinstance(self.progress, bool), "progress", self.progress, "True, False or None"
        )
        whole("repeats", self.repeats, 1)
        for name, value in (("batch", self.batch), ("threads", self.threads)):
            if value is not None:
                whole(name, value, 1)

    @classmethod
    def of(cls, **given: Unpack[SettingsOptions]) -> Settings:
        """Return the settings of keywords as the comparisons take them: a dtype and a device may be text.

        Raises:
            TypeError: an unknown keyword; the message names the nearest one.
            ValueError: a bad value.
        """
        known = {each.name: each.metadata for each in fields(cls)}
        for name in given:
            if name not in known:
                raise TypeError(f"unknown option {name!r}: {suggest(name, known)}")
        return cls(**{name: known[name].get("parse", lambda v: v)(value) for name, value in given.items()})

    @classmethod
    def fixed(cls, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that have no meaning where published problems say them themselves."""
        return [each.name for each in fields(cls) if each.metadata.get("fixed") and each.name in names]

    @property
    def runs(self) -> int:
        """Timed runs, of which a quick comparison makes few."""
        return min(self.repeats, QUICK_REPEATS) if self.quick else self.repeats

    @property
    def tol(self) -> float:
        """Relative tolerance for this dtype."""
        return TOLERANCES[self.dtype]

    @property
    def accepted(self) -> float:
        """Largest true relative residual of a solved row: 1.05 tol; in half precision plus the rounding of f(z)."""
        half = self.dtype in (torch.float16, torch.bfloat16)
        return 1.05 * self.tol + (torch.finfo(self.dtype).eps / 2 if half else 0.0)

    def generator(self) -> torch.Generator:
        """Return a fresh generator on the CPU, seeded with ``seed``."""
        return torch.Generator().manual_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record says of the settings, as plain data."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("recorded", True)}
        said.update(dtype=str(self.dtype).removeprefix("torch."), device=str(self.device), repeats=self.runs)
        return said
