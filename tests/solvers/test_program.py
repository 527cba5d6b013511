"""A loop that a compiled program runs ends as the eager one does, bit for bit where f is the same."""

import pytest
import torch

import deqlm_solvers
from deqlm_solvers import Layout, Solve, Stop
from deqlm_solvers.loop import program
from deqlm_solvers.loop.program import program_declines
from deqlm_solvers.native.build import Outcome
from deqlm_solvers.native.operators import load_operators

TOKENS = Layout(leaves=((4, 3),))


class InProgram:
    """A map whose loop asks the operator, as a compiled program does."""

    def __init__(self, f, grid=torch.float32):
        self.f, self.grid = f, grid

    def __call__(self, z):
        raise AssertionError("the loop of Python was taken")

    def program(self, z, drive):
        more = True
        while more:
            z = z.to(self.grid).float()
            z, go = torch.ops.deqlm.advance(drive, z, self.f(z))
            more = bool(go)
        return z


def contraction(z):
    weight = torch.linspace(-0.2, 0.2, z.shape[1] ** 2, dtype=z.dtype).reshape(z.shape[1], -1)
    return torch.tanh(z @ weight + 1)


def one_row_spoilt(z):
    fz = contraction(z)
    return torch.cat([fz[:1] * torch.nan, 3 * z[1:2] + 1, fz[2:]])


def mixing(z):
    return (
        0.4 * z.mean(0, keepdim=True).expand_as(z) + torch.where(torch.arange(5)[:, None] == 4, -1.02 * z, 0.4 * z) + 1
    )


STOPS = {
    "tolerance": Stop(rtol=1e-5),
    "budget": Stop(max_iter=7, rtol=0),
    "too few": Stop(max_iter=4, rtol=1e-6),
    "patience": Stop(rtol=1e-6, patience=2),
    "auto": Stop(rtol=1e-5, test_every="auto"),
    "rare": Stop(rtol=1e-5, test_every=3, check_every=2),
    "never": Stop(rtol=1e-5, check_every=0, max_iter=20),
    "token": Stop(rtol=1e-5, per="token"),
    "both": Stop(rtol=1e-6, atol=1e-3, norm="rms"),
}


@pytest.mark.parametrize("f", [contraction, one_row_spoilt, mixing], ids=lambda f: f.__name__)
@pytest.mark.parametrize("stop", STOPS.values(), ids=list(STOPS))
@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "broyden"])
def test_a_program_ends_as_the_eager_loop(solver, stop, f):
    assert not load_operators().why
    z0 = torch.linspace(-1, 1, 60).reshape(5, 12)
    eager = stop if stop.is_budget else stop.replace(compact=False)
    layout = TOKENS if stop.per == "token" else Layout()
    want, got = Solve(solver, eager)(f, z0, layout), Solve(solver, stop)(InProgram(f), z0, layout)
    for name in ("z", "residual", "relative", "steps", "status", "token_steps", "runaway"):
        a, b = getattr(want, name), getattr(got, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name
    assert got.cost == want.cost


def test_held_tokens_scales_and_half_precision():
    mask = torch.tensor([[True, True, False, False]] * 5)
    layout = Layout(leaves=((4, 3),), token_mask=mask)
    z0 = torch.linspace(-1, 1, 60).reshape(5, 12)
    stop = Stop(rtol=1e-4, per="token", compact=False)
    # a program holds what is masked itself
    held = InProgram(lambda z: torch.where(mask.repeat_interleave(3, 1), contraction(z), z))
    want, got = Solve("anderson", stop)(contraction, z0, layout), Solve("anderson", stop)(held, z0, layout)
    assert torch.equal(want.steps, got.steps)
    assert torch.equal(want.token_steps, got.token_steps)
    scaled = Layout(scale=torch.arange(5, dtype=torch.float64))
    plain = Stop(rtol=1e-4, compact=False)
    want, got = Solve(stop=plain)(contraction, z0, scaled), Solve(stop=plain)(InProgram(contraction), z0, scaled)
    assert torch.equal(want.z, got.z)
    assert torch.equal(want.steps, got.steps)
    half = z0.bfloat16()
    loose = Stop(rtol=0.05, compact=False)
    want = Solve(stop=loose)(contraction, half)
    got = Solve(stop=loose)(InProgram(lambda z: contraction(z.bfloat16()).float(), torch.bfloat16), half)
    assert got.z.dtype == torch.bfloat16
    assert torch.equal(want.steps, got.steps)


@pytest.mark.parametrize(
    ("solver", "stop", "why"),
    [
        ("newton", Stop(), "no compiled step"),
        (deqlm_solvers.Anderson(impl="torch"), Stop(), "impl='torch'"),
        ("anderson", Stop(trace=True), "trace"),
        ("anderson", Stop(compact="at_once"), "at_once"),
        ("anderson", Stop(keep="best_f"), "keep"),
        ("anderson", Stop(norm="max"), "norm"),
        ("anderson", Stop(share=0.5), "share"),
    ],
)
def test_what_a_program_declines_is_said(solver, stop, why):
    solver = Solve(solver, stop).solver
    assert why in program_declines(solver, stop, Layout(), torch.zeros(2, 3))
    assert not program_declines(Solve().solver, Stop(), Layout(), torch.zeros(2, 3))


def test_a_point_that_is_not_contiguous_is_an_error_and_no_wrong_answer():
    with pytest.raises(RuntimeError):
        Solve()(InProgram(lambda z: contraction(z).t().contiguous().t()), torch.zeros(5, 12))


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(program, "load_operators", lambda: Outcome(None, "no C++ compiler found"))
    assert program_declines(Solve().solver, Stop(), Layout(), torch.zeros(2, 3)) == "no C++ compiler found"
