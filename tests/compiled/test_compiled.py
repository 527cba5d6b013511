"""A compiled solve is the eager one, and what cannot be one is refused; captured maps run by torch's operations."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ, Compile, Equilibrium, NotCompiledError, Stop

QUICK = {"loop": "python"}


class Cell(nn.Module):
    """tanh of an affine map, by rows or by tokens."""

    def __init__(self, width=6):
        super().__init__()
        self.affine = nn.Linear(width, width)
        with torch.no_grad():
            self.affine.weight.copy_(0.9 * torch.linalg.qr(self.affine.weight)[0])

    def forward(self, z):
        return torch.tanh(self.affine(z))


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return Cell()


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 24).reshape(4, 6).requires_grad_()


def outcome(deq, x, *args, **kwargs):
    y, sol = deq(x, *args, with_stats=True, **kwargs)
    leaves = [x, *deq.parameters()]
    return y, sol, torch.autograd.grad((y * y).sum(), leaves)


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "gradient", ["implicit", pytest.param("phantom", marks=SLOW), pytest.param("one_step", marks=SLOW)]
)
def test_value_gradient_and_report_are_those_of_the_eager_solve(cell, x, gradient):
    eager, compiled = DEQ(cell, gradient=gradient), DEQ(cell, gradient=gradient, compile=QUICK)
    for _ in range(2):
        y, sol, grads = outcome(eager, x)
        z, made, gained = outcome(compiled, x)
        assert_same([y, *grads], [z, *gained])
        assert torch.equal(sol.steps, made.steps)
        assert torch.equal(sol.status, made.status)
        assert sol.cost == made.cost
    if gradient == "implicit":
        assert torch.equal(sol.adjoint.steps, made.adjoint.steps)
        assert made.adjoint.cost.vjps == sol.adjoint.cost.vjps
    parts = {"loop", "adjoint"} if gradient == "implicit" else {"loop", "steps"}
    assert {made.part for made in compiled.compiler.report} == parts


@SLOW
def test_unrolled_steps_are_compiled_one_by_one(cell, x):
    settings = {"solver": "fixed_point", "gradient": "unrolled", "stop": Stop(max_iter=4, rtol=0)}
    y, _, grads = outcome(DEQ(cell, **settings), x)
    z, _, gained = outcome(DEQ(cell, **settings, compile=QUICK), x)
    assert_same([y, *grads], [z, *gained])


def test_settings_of_a_stop_are_no_part_of_a_program_and_shapes_compile_once(cell, x):
    deq = DEQ(cell, compile=QUICK, on_failure="ignore")
    with torch.no_grad():
        for stop in (Stop(rtol=1e-3), Stop(rtol=1e-5, max_iter=7), Stop(max_iter=3, rtol=0), Stop(patience=4)):
            assert torch.equal(deq(x, stop=stop), DEQ(cell, on_failure="ignore")(x, stop=stop))
        assert len(deq.compiler.report) == 1
        for rows in (2, 3, 5, 9):
            assert torch.equal(deq(x[:1].expand(rows, 6)), DEQ(cell)(x[:1].expand(rows, 6)))
    assert len(deq.compiler.report) == 2


@SLOW
def test_a_layer_that_was_changed_is_compiled_again(cell, x):
    deq = DEQ(cell, compile=QUICK)
    with torch.no_grad():
        deq(x)
        deq.layer.affine.weight.mul_(0.5)
        torch.testing.assert_close(deq(x), DEQ(cell)(x))
        deq.layer.affine = nn.Linear(6, 6, bias=False)
        deq.layer.affine.weight.mul_(0.5)
        torch.testing.assert_close(deq(x), DEQ(cell)(x))
        deq.layer = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())
        torch.testing.assert_close(deq(x), DEQ(deq.layer)(x))


@SLOW
def test_tokens_masks_and_arguments(x):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine = nn.Linear(3, 3)

        def forward(self, z, shift, *, scale=1.0):
            return torch.tanh(self.affine(z) + scale * z.cumsum(1) / (4 * torch.arange(1, 6)[:, None]) + shift)

    torch.manual_seed(0)
    layer, tokens = Tokens(), torch.randn(4, 5, 3, requires_grad=True)
    shift = torch.randn(4, 5, 3)
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3, [True] * 5])
    settings = {"causal": True, "stop": Stop(rtol=1e-5, per="token"), "solver": "broyden"}
    eager, compiled = DEQ(layer, **settings), DEQ(layer, **settings, compile=QUICK)
    y, sol, grads = outcome(eager, tokens, shift, token_mask=mask, scale=0.5)
    z, made, gained = outcome(compiled, tokens, shift, token_mask=mask, scale=0.5)
    assert_same([y, *grads], [z, *gained])
    assert torch.equal(sol.steps, made.steps)
    assert torch.equal(sol.token_steps, made.token_steps)


@SLOW
def test_a_row_that_fails_spoils_no_other(cell, x):
    spoilt = torch.cat([x[:1] * torch.nan, x[1:]]).detach().requires_grad_()
    settings = {"on_failure": "ignore"}
    y, sol, grads = outcome(DEQ(cell, **settings), spoilt)
    z, made, gained = outcome(DEQ(cell, **settings, compile=QUICK), spoilt)
    assert torch.equal(sol.status, made.status)
    assert_same([y[1:], grads[0][1:], *grads[1:]], [z[1:], gained[0][1:], *gained[1:]])


@SLOW
def test_an_adjoint_that_needs_help_gets_it(x):
    class Turns(nn.Module):
        def forward(self, z):
            return torch.cat([3 * z[:, 3:], -3 * z[:, :3]], 1)

    eager = DEQ(Turns(), on_failure="ignore", stop=Stop(max_iter=60))
    compiled = deqlm.compile(eager, loop="python")
    (g,) = torch.autograd.grad(eager(x).sum(), x)
    y = compiled(x)
    (h,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-4)


@SLOW
def test_states_of_half_precision(cell):
    half, x = copy.deepcopy(cell).bfloat16(), torch.linspace(-1, 1, 24).reshape(4, 6).bfloat16()
    y, sol = DEQ(half)(x, with_stats=True)
    z, made = DEQ(half, compile=QUICK)(x, with_stats=True)
    assert z.dtype == torch.bfloat16
    assert torch.equal(sol.steps, made.steps)
    torch.testing.assert_close(y, z)


@SLOW
def test_a_compiled_module_has_the_same_keys_and_can_be_copied_and_pickled(cell, x):
    plain, deq = DEQ(cell), DEQ(cell, compile=QUICK)
    assert deq.state_dict().keys() == plain.state_dict().keys()
    deq(x)
    for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
        assert other.compiler.report == []
        assert other.compiler.settings == Compile(loop="python")
    shared = deqlm.compile(plain, loop="python")
    assert shared.layer is plain.layer
    assert plain.compiler is None
    torch.testing.assert_close(shared(x), plain(x))


@SLOW
def test_maps_are_compiled_too(cell, x):
    made = deqlm.compile(lambda z, u: cell(z + u), loop="python", solver="fixed_point")
    y, sol = made(torch.zeros(4, 6), x, with_stats=True)
    settings = {"solver": "fixed_point", "stop": Stop(rtol="auto")}
    want = deqlm.solve(lambda z, u: cell(z + u), torch.zeros(4, 6), args=(x,), **settings)
    torch.testing.assert_close(y, want.z)
    assert torch.equal(sol.steps, want.steps)
    a, b = (torch.autograd.grad(z.sum(), [x, cell.affine.weight]) for z in (y, want.z))
    assert_same(a, b)
    # a function made anew for each call, as models have them in their forward
    equilibrium = Equilibrium(compile=QUICK)
    for shift in (x, x + 1, x + 2):
        z = equilibrium(lambda z, shift=shift: cell(z) + shift, torch.zeros(4, 6))
        torch.testing.assert_close(z, Equilibrium()(lambda z, shift=shift: cell(z) + shift, torch.zeros(4, 6)))
    assert len({made.part for made in equilibrium.compiler.report}) == len(equilibrium.compiler.report)


class Branching(Cell):
    def forward(self, z):
        return super().forward(z) if z.sum() > 0 else super().forward(2 * z)


class Counting(Cell):
    calls = 0

    def forward(self, z):
        self.calls += 1
        return super().forward(z)


def with_hook():
    cell = Cell()
    cell.affine.register_forward_hook(lambda *_: None)
    return cell


REFUSED = {
    "branch": (Branching, {}, "data-dependent|Data-dependent"),
    "state": (Counting, {}, "calls|side effect|mutat|Mutat|SideEffect"),
    "hook": (with_hook, {}, "affine has a hook"),
    "dropout": (lambda: nn.Sequential(Cell(), nn.Dropout(0.5)), {}, r"random numbers \(1\)"),
    "batch norm": (lambda: nn.Sequential(Cell(), nn.BatchNorm1d(6)), {}, r"buffers \(1\."),
    "solver": (Cell, {"solver": "newton"}, "'newton' has no compiled step"),
    "trace": (Cell, {"stop": Stop(trace=True)}, "trace"),
    "norm": (Cell, {"stop": Stop(norm="max")}, "norm='max'"),
    "gradient": (Cell, {"gradient": "shine", "solver": "broyden"}, "'shine' is not compiled"),
    "second order": (Cell, {"gradient": deqlm.Implicit(second_order=True)}, "second_order"),
}


@pytest.mark.parametrize(("make", "settings", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_compiled_is_refused_with_the_reason_or_solved_eagerly(make, settings, why, x):
    torch.manual_seed(0)
    layer = make()
    settings = {"on_failure": "ignore", **settings}
    with pytest.raises(NotCompiledError, match=why):
        DEQ(layer, **settings, compile=QUICK)(x)
    deq = DEQ(layer, **settings, compile={"loop": "python", "on_refuse": "eager"})
    with pytest.warns(UserWarning, match=why):
        y = deq(x)
    assert y.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deq(x)  # told once


def test_a_part_that_is_put_into_train_afterwards_is_seen(x):
    deq = DEQ(nn.Sequential(Cell(), nn.Dropout(0.5)).eval(), compile=QUICK, on_failure="ignore")
    deq.compiler.over(*_asked(deq, x))
    deq.layer[1].train()
    with pytest.raises(NotCompiledError, match=r"random numbers \(1\)"):
        deq(x)


def _asked(deq, x):
    return deq.on_rows(x, (), {})[0], deq.solve, deq.gradient


def test_a_call_like_one_before_goes_a_short_way_and_says_the_same(cell, x, monkeypatch):
    deq, stop = DEQ(cell, compile=QUICK), Stop(rtol=1e-5)
    asked = []
    again = deq.compiler.again
    monkeypatch.setattr(deq.compiler, "again", lambda *given: asked.append(again(*given)) or asked[-1])
    others = [x.detach() + 1, torch.randn(4, 6, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        for given in (x, *others):
            y, sol = deq(given, with_stats=True, stop=stop)
            z, eager = DEQ(cell)(given, with_stats=True, stop=stop)
            assert torch.equal(y, z)
            for name in ("steps", "status", "residual", "relative"):
                assert torch.equal(getattr(sol, name), getattr(eager, name)), name
            assert sol.cost == eager.cost
            assert torch.equal(deq.last.status, sol.status)
    assert [made is not None for made in asked] == [False, True, True]
    with torch.inference_mode():
        torch.testing.assert_close(deq(x, stop=stop), DEQ(cell)(x, stop=stop))
    assert asked[-1] is not None
    with torch.no_grad(), pytest.warns(deqlm.ConvergenceWarning):
        deq(others[0] * torch.nan, stop=stop)  # what fails is told on the long way
    assert asked[-1] is None


@SLOW
def test_a_layer_that_is_put_in_place_of_one_is_looked_at(x):
    deq = DEQ(nn.Sequential(Cell(), nn.Identity()), compile=QUICK, on_failure="ignore")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            deq.layer[1] = nn.Identity()
            for _ in range(2):
                deq(x)
            deq.layer[1] = nn.Dropout(0.5)
            assert deq.layer[1].training
            for _ in range(2):
                with pytest.raises(NotCompiledError, match="random numbers"):
                    deq(x)


def test_calls_that_look_at_evaluations_are_refused(cell, x):
    deq = DEQ(cell, compile=QUICK)
    with pytest.raises(NotCompiledError, match="on_evaluation"):
        deq(x, states=(1,))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(NotCompiledError, match="autocast"):
        deq(x)
    with pytest.raises(NotCompiledError, match="tree or complex"):
        DEQ(nn.Identity(), compile=QUICK)({"a": x})


def test_an_f_that_changes_shapes_says_so_as_it_does_eagerly(x):
    with pytest.raises(ValueError, match="the shape of f"):
        DEQ(nn.Linear(6, 5), compile=QUICK)(x)


@pytest.mark.parametrize(
    ("field", "value"), [("on_refuse", "maybe"), ("dynamic", 3), ("loop", "cuda"), ("progress", "yes")]
)
def test_settings_are_checked_at_birth(field, value):
    with pytest.raises(ValueError, match=field):
        Compile(**{field: value})
    with pytest.raises(ValueError, match="compile"):
        DEQ(nn.Tanh(), compile="yes")


def test_compile_takes_a_module_or_a_map():
    with pytest.raises(TypeError, match="model must be"):
        deqlm.compile(3)
    with pytest.raises(TypeError, match="'solver' is a setting of the module"):
        deqlm.compile(DEQ(nn.Tanh()), solver="broyden")
    with pytest.raises(ValueError, match="graph must be False with compile"):
        deqlm.compile(DEQ(nn.Tanh(), graph=True, stop=Stop(max_iter=3, rtol=0)))
