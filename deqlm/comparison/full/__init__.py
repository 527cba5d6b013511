"""The full comparison: speed, backward, quality and memory against the peers, and the page that shows it."""

from deqlm.comparison.full.run import PARTS, Extent, run_full

__all__ = ["PARTS", "Extent", "run_full"]
