"""User mistakes: one line on stderr, status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from deqlm.comparison.spec import PluginError

__all__ = ["Parser", "UserError", "user_input"]


class UserError(Exception):
    """A mistake of the user; the message is all she needs."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and leave with status 2."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


@contextmanager
def user_input() -> Iterator[None]:
    """Turn the errors that bad names and options raise into `UserError`."""
    try:
        yield
    except KeyError as error:
        raise UserError(str(error.args[0])) from error
    except (TypeError, ValueError, ImportError, PluginError) as error:
        raise UserError(str(error)) from error
