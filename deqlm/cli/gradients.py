"""``deqlm gradients``: how a solved point is tied to autograd."""

from __future__ import annotations

import argparse
from typing import Any

from deqlm import GRADIENTS
from deqlm.cli.listing import add_listing, list_registry

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the subcommand."""
    add_listing(commands, "gradients", "list the registered gradient methods and their options", run)


def run(arguments: argparse.Namespace) -> int:
    """Print the registry."""
    print(list_registry(GRADIENTS, arguments.names))
    return 0
