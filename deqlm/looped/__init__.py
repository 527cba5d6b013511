"""Decoders of others made implicit: a middle part that is looped, and the cores of known looped models."""

from deqlm.looped.blocks import LoopedBlocks, loop
from deqlm.looped.cores import AttractorHead, Core, Sandwich, TwoLevel

__all__ = ["AttractorHead", "Core", "LoopedBlocks", "Sandwich", "TwoLevel", "loop"]
