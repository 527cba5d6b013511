"""The command line: `deqlm env | solvers | gradients | compare`."""
