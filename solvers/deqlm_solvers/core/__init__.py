"""Contracts and records: options, stopping rule, statuses, solution, layout of rows, solver. Knows torch only."""
