"""The Triton kernels of the package mamba-ssm, on CPU tensors, against the float64 recurrence: all they give back.

The package is needed as it builds without a GPU; see docs/guides/gpu_kernels.md.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton

from deqlm.ops import ssd
from deqlm.ops.ssd import kernel
from gpu.interpreter import checked
from ops.test_ssd import problem

found = importlib.util.find_spec("mamba_ssm")
if found is None:
    pytest.skip("no mamba-ssm", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CASES = {
    "plain": {"length": 24},
    "groups": {"length": 17, "groups": 4},
    "skip_per_feature": {"length": 9, "per_feature": True},
    "no_state": {"length": 33, "state": False},
    "one_token": {"length": 1},
    "shorter_than_a_chunk": {"length": 5},
    "one_group_wide": {"length": 20, "groups": 1, "width": 8, "size": 16},
}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Let the package's Python run without CUDA: its __init__ and one check ask for a device."""
    package = ModuleType("mamba_ssm")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4))
    honest = kernel.require
    monkeypatch.setattr(kernel, "require", lambda ok, name, *rest: None if name == "x" else honest(ok, name, *rest))


@pytest.fixture(autouse=True)
def one_configuration(monkeypatch: pytest.MonkeyPatch):
    """Run the first configuration of autotuned kernels: there is nothing to time."""
    tuner = triton.runtime.autotuner.Autotuner

    def run(self, *args, **kwargs):
        self.best_config = self.configs[0]
        chosen = self.best_config.all_kwargs()
        if self.best_config.pre_hook is not None:
            self.best_config.pre_hook({**dict(zip(self.arg_names, args, strict=False)), **kwargs, **chosen})
        return self.fn.run(*args, **kwargs, **chosen)

    monkeypatch.setattr(tuner, "run", run)


def results(arguments: dict, chunk_size: int | None, impl: str) -> list[torch.Tensor]:
    y, state = ssd.scan(**arguments, chunk_size=chunk_size, impl=impl)
    torch.manual_seed(1)
    weights = torch.randn(y.shape), torch.randn(state.shape)
    loss = (y.double() * weights[0]).sum() + (state.double() * weights[1]).sum()
    given = [t for t in arguments.values() if t is not None]
    return [y, state, *torch.autograd.grad(loss, given)]


def errors(arguments: dict, chunk_size: int) -> list[float]:
    wide = {name: None if t is None else t.detach().double().requires_grad_() for name, t in arguments.items()}
    truth = results(wide, None, "naive")
    with checked(hazards=False):
        got = results(arguments, chunk_size, "mamba_ssm")
    return [((a.double() - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in zip(got, truth, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_output_state_and_gradients_are_those_of_the_recurrence(name: str):
    arguments = problem(**CASES[name], dtype=torch.float32)
    assert max(errors(arguments, 16)) <= 3e-6


def test_bfloat16_inputs():
    arguments = problem(20, dtype=torch.float32)
    half = {n: t.detach().bfloat16().requires_grad_() for n, t in arguments.items() if n in "xBC"}
    assert max(errors(arguments | half, 16)) <= 2e-2
