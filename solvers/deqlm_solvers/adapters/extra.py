"""Optional packages: imported when they are needed, named when they are missing."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__all__ = ["load_extra"]


def load_extra(module: str, extra: str, needed_by: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Args:
        module: dotted name, such as "scipy.optimize".
        extra: the extra of this distribution that installs it.
        needed_by: who asks, for the message.

    Raises:
        ImportError: the module cannot be imported; the message has the command that installs it.

    Examples:
        >>> load_extra("math", "compare", "an example").sqrt(4.0)
        2.0
    """
    package = module.partition(".")[0]
    try:
        # Some packages have invalid escapes in docstrings: an error when bytecode is made under warnings as errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(package)
            return import_module(module)
    except ImportError as error:
        raise ImportError(f'{needed_by} needs {package}: pip install "deqlm[{extra}]"') from error
