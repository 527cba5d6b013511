"""Everything that knows tokens: modes, chunks, the converged prefix, caches."""
