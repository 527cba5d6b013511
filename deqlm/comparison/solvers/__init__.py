"""Solvers side by side: what each needed, and what it reached."""
