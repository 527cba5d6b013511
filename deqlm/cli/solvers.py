"""``deqlm solvers``: what can solve."""

from __future__ import annotations

import argparse
from typing import Any

from deqlm.cli.listing import add_listing, list_registry
from deqlm_solvers import SOLVERS

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the subcommand."""
    add_listing(commands, "solvers", "list the registered solvers, their options and what they guarantee", run)


def run(arguments: argparse.Namespace) -> int:
    """Print the registry."""
    print(list_registry(SOLVERS, arguments.names))
    return 0
