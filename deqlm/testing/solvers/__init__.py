"""The promises of solvers."""
