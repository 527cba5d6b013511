"""The automata of the published tables, and what stands beside the implicit layer there."""
