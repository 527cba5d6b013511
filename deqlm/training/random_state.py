"""The state of the random number generators that a training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from deqlm.wrap.generators import every_accelerator, generator_states, set_generator_states

__all__ = ["get_random_state", "random_state_kept", "set_random_state"]


def get_random_state() -> dict[str, Any]:
    """Return the states of Python, numpy and torch (CPU and every accelerator), as tensors and plain data.

    Examples:
        >>> state = get_random_state()
        >>> first = torch.rand(3), random.random(), np.random.rand()
        >>> set_random_state(state)
        >>> again = torch.rand(3), random.random(), np.random.rand()
        >>> torch.equal(first[0], again[0]), first[1:] == again[1:]
        (True, True)
    """
    devices = every_accelerator()
    cpu, *others = generator_states(devices)
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": cpu,
        "cuda": [],
        **({devices[0].type: others} if devices else {}),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what `get_random_state` returned.

    Where the number of accelerators differs, those that both have are set.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    devices = every_accelerator()
    others = state.get(devices[0].type, []) if devices else []
    both = min(len(devices), len(others))
    set_generator_states([state["torch"], *others[:both]], devices[:both])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators as they were, whatever is drawn inside; an evaluation then does not move a training.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with random_state_kept():
        ...     _ = torch.rand(2)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
