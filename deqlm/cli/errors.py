"""User mistakes: one line on stderr, status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from deqlm.comparison.spec import PluginError
from deqlm.reporting.blame import blame

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
    """Turn the errors that bad names and options raise, and all of the user's own code, into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = blame(error)
        if where:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        if isinstance(error, KeyError) and error.args:
            raise UserError(str(error.args[0])) from error
        if isinstance(error, TypeError | ValueError | ImportError | PluginError):
            raise UserError(str(error)) from error
        raise
