"""What holds for kernels that run in Triton's interpreter, in a process of its own: see test_interpreted.py."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    from gpu.interpreter import install

    install()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Let ``impl="auto"`` take the kernels first, as on a GPU, and torch operations where they decline."""
    from deqlm_solvers.loop import loop
    from deqlm_solvers.loop.triton_backend import TritonBackend

    class First(TritonBackend):
        @classmethod
        def declines(cls, method, stop, layout, z):
            return super().declines(method.replace(impl="triton"), stop, layout, z)

    monkeypatch.setattr(loop, "ENGINES", {"triton": First})
