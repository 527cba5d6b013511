"""Doors for code that was written for other libraries: their names and return values, our solvers."""
