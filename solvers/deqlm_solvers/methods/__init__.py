"""The update rules and whole methods that are registered as solvers."""
