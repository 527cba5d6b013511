"""Gradient methods beside the exact gradient of the fixed point."""
