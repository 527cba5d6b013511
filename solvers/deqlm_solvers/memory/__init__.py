"""How many bytes a solver holds: measured, and told before it runs."""
