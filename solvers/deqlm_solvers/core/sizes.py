"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import os

import torch

from deqlm_solvers.core.checks import require

__all__ = ["installed_bytes", "read_bytes", "show_bytes"]

UNITS = {
    "B": 1,
    "kB": 1000,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)},
    **{f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)},
}


def show_bytes(size: float) -> str:
    """Return a size in words, in powers of 1024.

    Examples:
        >>> show_bytes(1536), show_bytes(3 * 2**30)
        ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def read_bytes(name: str, value: int | str) -> int:
    """Return a number of bytes given as such or as a text.

    Raises:
        ValueError: anything else; ``name`` is the argument in the message.

    Examples:
        >>> read_bytes("memory_cap", "1.5 GiB"), read_bytes("memory_cap", "2MB")
        (1610612736, 2000000)
    """
    rule = "a whole number of bytes > 0, or a text such as '2GiB' or '500MB'"
    if isinstance(value, str):
        text = value.strip()
        unit = text.lstrip("0123456789.").strip()
        digits = text.removesuffix(unit).strip() if unit else text
        require(unit in UNITS and digits.count(".") <= 1 and digits.strip(".") != "", name, value, rule)
        value = int(float(digits) * UNITS[unit])
    require(isinstance(value, int) and not isinstance(value, bool) and value > 0, name, value, rule)
    return value


def installed_bytes(device: torch.device) -> int | None:
    """Return the memory that a device has, used or not; None where that cannot be told.

    Examples:
        >>> installed_bytes(torch.device("meta")) is None
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
