"""What holds for every test: fixed seeds, one thread, poisoned memory, registries left as they were found."""

from __future__ import annotations

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTHONPATH" in os.environ:  # tests change directory and start processes
    entries = os.environ["PYTHONPATH"].split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)

import hypothesis
import numpy as np
import pytest
import torch

from deqlm_solvers import SOLVERS

torch.set_num_threads(1)

_EXACT = {"deadline": None, "print_blob": True}
hypothesis.settings.register_profile("dev", max_examples=30, **_EXACT)
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **_EXACT)
# that something fails is enough there, and the smallest example takes long
_PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
hypothesis.settings.register_profile(
    "mutation", max_examples=50, derandomize=True, database=None, phases=_PHASES, **_EXACT
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


class _TorchRandom:
    """Torch's generator as hypothesis wants it, so that an example fails again the way it failed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH_RANDOM = _TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(_TORCH_RANDOM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest):
    """Fill torch.empty with NaN on the CPU; CUDA would refuse too many kernels in deterministic mode."""
    if request.node.get_closest_marker("gpu") or request.node.get_closest_marker("bench"):
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def registries():
    """Forget what a test registers, so that two tests may use the same name."""
    import deqlm_solvers.adapters  # noqa: F401  (registers once; a first import inside the test would be forgotten)
    from deqlm import GRADIENTS
    from deqlm.comparison import PROBLEMS

    kept = [(table, dict(table)) for r in (SOLVERS, GRADIENTS, PROBLEMS) for table in (r._classes, r._aliases)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)
