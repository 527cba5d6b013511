"""`impl="triton"` where it cannot be: each reason is told, and "auto" goes on without a word."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Stop
from deqlm_solvers.core.native_rule import NativeRule, Update
from deqlm_solvers.loop.triton_backend import MOST_PAIRS, TritonBackend
from deqlm_solvers.triton_kernels import availability

SOLVERS = [FixedPoint, Anderson, Broyden]
HERE = torch.zeros(2, 3)


def half(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * z + 1


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch):
    """Forget what was found out of this machine, before and after; no interpreter."""
    monkeypatch.setattr(availability, "interpreted", lambda: False)
    for kept in (availability._missing, availability._without_driver):
        kept.cache_clear()
    yield
    for kept in (availability._missing, availability._without_driver):
        kept.cache_clear()


def another_triton(monkeypatch: pytest.MonkeyPatch, **modules) -> None:
    honest = importlib.import_module

    def load(name: str):
        found = modules.get(name.replace(".", "_"), honest)
        if isinstance(found, Exception):
            raise found
        return found(name) if found is honest else found

    monkeypatch.setattr(availability.importlib, "import_module", load)


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("solver", SOLVERS)
def test_on_a_cpu(solver, monkeypatch):
    another_triton(monkeypatch, triton=SimpleNamespace(__version__="3.7.1"))
    with pytest.raises(
        ValueError, match=r"impl='triton' is not possible here: .*the state is on cpu; TRITON_INTERPRET=1"
    ):
        Solve(solver(impl="triton"))(half, HERE)
    assert Solve(solver(impl="auto"))(half, HERE).converged.all()


@pytest.mark.usefixtures("asked_anew")
def test_without_triton(monkeypatch):
    another_triton(monkeypatch, triton=ImportError("No module named 'triton'"))
    with pytest.raises(ValueError, match=r"needs the package triton \(No module named 'triton'\); pip install"):
        Solve(FixedPoint(impl="triton"))(half, HERE)
    assert availability.why_not(torch.device("cuda")) == availability.why_not(torch.device("cpu"))


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("version", ["2.1.0", "3.5.1", "4.0.0"])
def test_another_version(version, monkeypatch):
    another_triton(monkeypatch, triton=SimpleNamespace(__version__=version))
    with pytest.raises(ValueError, match=rf"written for triton>=3.6,<4.0, and triton {version} is installed"):
        Solve(FixedPoint(impl="triton"))(half, HERE)


@pytest.mark.usefixtures("asked_anew")
def test_a_triton_without_a_backend(monkeypatch):
    class Driver:
        @property
        def active(self):
            raise RuntimeError("0 active drivers ([]). There should only be one.")

    runtime = SimpleNamespace(driver=Driver())
    another_triton(monkeypatch, triton=SimpleNamespace(__version__="3.9.0"), triton_runtime=runtime)
    why = availability.why_not(torch.device("cuda"))
    assert why == "triton has no backend for this device (0 active drivers ([]). There should only be one.)"


@pytest.mark.parametrize(
    ("method", "stop", "layout", "why"),
    [
        (Broyden(line_search="armijo"), Stop(), Layout(), "for a line search"),
        (FixedPoint(decay=0.5), Stop(), Layout(), "no Triton kernels"),
        (Broyden(memory=MOST_PAIRS + 1), Stop(), Layout(), f"hold {MOST_PAIRS} pairs, and the solver keeps 33"),
        (FixedPoint(), Stop(keep="best_f"), Layout(), "keep='best_f'"),
        (FixedPoint(), Stop(test_every="auto"), Layout(), "test_every='auto'"),
        (FixedPoint(), Stop(per="leaf"), Layout(leaves=((1,), (2,))), "per='leaf'"),
        (FixedPoint(), Stop(per="token"), Layout(leaves=((1, 1), (1, 2))), "tokens of one tensor"),
        (FixedPoint(), Stop(share=0.5), Layout(), "share=0.5"),
    ],
)
def test_what_it_does_not_know_is_declined(method, stop, layout, why):
    with torch.no_grad():
        assert why in TritonBackend.declines(method.replace(impl="triton"), stop, layout, HERE)


def test_with_grad_it_is_declined():
    assert "cannot be differentiated" in TritonBackend.declines(FixedPoint(impl="triton"), Stop(), Layout(), HERE)


def test_rows_whose_history_no_index_reaches_are_declined():
    method = SimpleNamespace(native_rule=lambda: NativeRule(Update.ANDERSON, pairs=11), impl="triton")
    long = torch.empty(1, 2**27, device="meta")
    with torch.no_grad():
        assert "the history of a row" in TritonBackend.declines(method, Stop(), Layout(), long)


def test_a_number_that_belongs_to_nobody_is_refused():
    with pytest.raises(ValueError, match="impl must be 'auto', 'torch', 'cpp' or 'triton', got 'cuda'"):
        FixedPoint(impl="cuda")  # type: ignore[arg-type]
