"""One call that solves: its settings, its map, and what it returns."""
