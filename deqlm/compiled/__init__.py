"""A solve as one compiled program: the loop, f in it, and the adjoint, without an interpreter between evaluations."""
