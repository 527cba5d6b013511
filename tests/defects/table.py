"""Every known defect of a peer, in one table."""

from __future__ import annotations

from defects.numbered import NUMBERED
from defects.verified import VERIFIED

__all__ = ["DEFECTS"]

DEFECTS = (*NUMBERED, *VERIFIED)
