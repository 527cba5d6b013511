"""Mamba2's state-space-dual scan: one operation, several realisations."""

from deqlm.ops.ssd.naive import naive
from deqlm.ops.ssd.scan import IMPLS, Impl, pick, scan
from deqlm.ops.ssd.step import step

__all__ = ["IMPLS", "Impl", "naive", "pick", "scan", "step"]
