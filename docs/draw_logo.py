"""Draw the logo and the favicon, a path that spirals into its fixed point: `python docs/draw_logo.py`."""

from __future__ import annotations

import math
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
SIZE, FAR, NEAR = 64.0, 27.0, 11.0
TURNS, POINTS = 1.6, 72
"""Turns about the fixed point on the way from ``FAR`` to ``NEAR``, and points that are drawn of it."""


def path() -> list[tuple[float, float]]:
    """Return points of a logarithmic spiral, which the iterates of a turning contraction lie on."""
    points = []
    for k in range(POINTS + 1):
        share = k / POINTS
        radius, angle = FAR * (NEAR / FAR) ** share, 0.7 + 2 * math.pi * TURNS * share
        points.append((SIZE / 2 + radius * math.cos(angle), SIZE / 2 - radius * math.sin(angle)))
    return points


def drawing(color: str, rest: str) -> str:
    """Return the SVG: where it began, the path, and the point at rest."""
    (x, y), *_ = points = path()
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    way = f'fill="none" stroke="{color}" stroke-width="4.5" stroke-linecap="round" stroke-linejoin="round"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE:.0f} {SIZE:.0f}">
  <title>deqlm</title>
  <polyline points="{line}" {way}/>
  <circle cx="{x:.1f}" cy="{y:.1f}" r="4.8" fill="{color}"/>
  <circle cx="{SIZE / 2:.0f}" cy="{SIZE / 2:.0f}" r="6.5" fill="{rest}"/>
</svg>
"""


if __name__ == "__main__":
    (ASSETS / "logo.svg").write_text(drawing("#ffffff", "#ffb454"))
    (ASSETS / "favicon.svg").write_text(drawing("#4051b5", "#d55e00"))
