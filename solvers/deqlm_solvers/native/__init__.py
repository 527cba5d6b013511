"""The compiled step on the CPU: everything that a solve does between two evaluations of f, in one compiled call."""
