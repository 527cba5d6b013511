"""Compiled twins of layers, on the CPU and without grad; the torch operations of the layers are the reference."""
