"""Solves from zero beside solves from the solution of the map before."""
