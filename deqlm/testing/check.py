"""A promise as a check: a function of no argument that returns, or says which promise broke and what was seen."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

from deqlm_solvers import ConvergenceWarning

__all__ = ["Check", "Named", "bind", "expect", "run_all"]

T = TypeVar("T")

Check = Callable[[], None]
"""Returns where the promise holds, raises AssertionError where it does not."""

Named = tuple[str, Check]
"""A check behind its name."""


def expect(ok: object, seen: str, *values: object) -> None:
    """Raise ``AssertionError(seen)`` with ``values`` put into its ``{}`` unless ``ok``; python -O leaves it in.

    Examples:
        >>> expect(False, "{} calls for max_iter={}", 3, 2)
        Traceback (most recent call last):
        AssertionError: 3 calls for max_iter=2
    """
    if not ok:
        raise AssertionError(seen.format(*values))


def bind(promise: Callable[[T], None], subject: T, label: str, name: str) -> Named:
    """Return ``name`` and a check that holds ``subject`` to ``promise``, a function whose docstring says what it asks.

    Whatever a check raises is a broken promise, but for ImportError: a package that ``subject`` needs is missing.

    Args:
        promise: raises where it is broken.
        subject: what is held to it.
        label: the subject in words, for the message.
        name: of the check.
    """
    asks = " ".join((inspect.getdoc(promise) or name).split())

    def check() -> None:
        try:
            with steady():
                promise(subject)
        except ImportError:
            raise
        except Exception as error:
            told = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{label} breaks {name!r}\n  asked: {asks}\n  seen: {told}") from error

    check.__name__ = check.__qualname__ = name
    check.__doc__ = asks
    return name, check


def run_all(checks: Iterable[Named]) -> None:
    """Run checks in order; the first that fails ends it."""
    for _, check in checks:
        check()


@contextmanager
def steady() -> Iterator[None]:
    """Give a check the same random numbers, device, dtype and grad mode wherever it runs; put back what was there.

    A solve that does not converge raises, whatever the caller's filters say of `ConvergenceWarning`.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", ConvergenceWarning)
            torch.default_generator.manual_seed(0)
            with nullcontext() if device.type == "cpu" else torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)
