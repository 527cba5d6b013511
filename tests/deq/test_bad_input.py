"""Bad input: each is right, or an error that names the argument, the value and the rule."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Solve, Stop, solve
from deqlm.testing.gradients.layers import solver_for

REGISTERED = [(deqlm.SOLVERS, name) for name in sorted(deqlm.SOLVERS)]
REGISTERED += [(deqlm.GRADIENTS, name) for name in sorted(deqlm.GRADIENTS)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: deqlm.Anderson(memry=3), TypeError, "'memry': did you mean 'memory'"),
        (lambda: deqlm.Phantom(stesp=3), TypeError, "'stesp': did you mean 'steps'"),
        (lambda: Stop(max_itr=3), TypeError, "'max_itr': did you mean 'max_iter'"),
        (lambda: deqlm.Implicit(second_ordr=True), TypeError, "'second_ordr': did you mean 'second_order'"),
        (lambda: DEQ(nn.Tanh(), solver={"name": "anderson", "memry": 3}), TypeError, "did you mean 'memory'"),
        (
            lambda: DEQ(nn.Tanh(), gradient={"name": "phantom", "taus": 3}),
            TypeError,
            "known: checkpoint, damping, same_value, steps",
        ),
        (lambda: DEQ(nn.Tanh(), stop={"rtl": 1e-3}), TypeError, "did you mean 'rtol'"),
        (lambda: DEQ(nn.Tanh(), solver="andersn"), KeyError, "unknown solver 'andersn': did you mean 'anderson'"),
        (lambda: DEQ(nn.Tanh(), gradient="phantm"), KeyError, "unknown gradient 'phantm': did you mean 'phantom'"),
        (lambda: DEQ(nn.Tanh(), solver={"memory": 3}), ValueError, "solver given as a dict needs the key 'name'"),
        (lambda: DEQ(nn.Tanh(), solver=3), TypeError, "solver must be a name, a dict with 'name', or an object"),
        (lambda: DEQ(nn.Tanh(), gradient=None), TypeError, "gradient must be a name"),
        (lambda: DEQ(nn.Tanh(), gradient=deqlm.Phantom), TypeError, r"gradient must be an object, write Phantom\(\)"),
        (lambda: DEQ(nn.Tanh(), stop=3), ValueError, "stop must be a Stop, such as"),
        (lambda: DEQ(nn.Tanh(), solvr="anderson"), TypeError, "solvr"),
        (lambda: DEQ(3), TypeError, "layer must be a module or a function, got int"),
        (lambda: DEQ(nn.Tanh(), start=3), TypeError, "start must be None, a tensor or a callable, got int"),
        (lambda: DEQ(nn.Tanh(), on_failure="warning"), ValueError, "on_failure must be 'warn', 'raise' or 'ignore'"),
        (lambda: DEQ(nn.Tanh(), failed_grad="zero"), ValueError, "failed_grad must be 'drop', 'keep' or 'raise'"),
        (lambda: DEQ(nn.Tanh(), batch_dims=-1), ValueError, "batch_dims must be a whole number >= 0, got -1"),
        (lambda: DEQ(nn.Tanh(), batch_dims=1.5), ValueError, r"batch_dims must be a whole number >= 0, got 1\.5"),
        (lambda: deqlm.Implicit(solve=3), ValueError, "solve must be a Solve"),
        (lambda: deqlm.Implicit(second_order=1), ValueError, "second_order must be True or False, got 1"),
    ],
)
def test_options_are_checked_at_construction(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("z0", "options", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), {}, ValueError, r"floating point or complex; use z0\.float\(\)"),
        (torch.zeros(3), {}, ValueError, "batch_dims must be given for a 1-d z0: 0 for one problem"),
        (torch.zeros(2, 3), {"batch_dims": 3}, ValueError, "batch_dims must be at most the dimensions of z0, 2, got 3"),
        (3.0, {}, TypeError, "the state must be a tensor or a tree of tensors, got a leaf float"),
        ({}, {}, ValueError, "z0 must be a tensor or a tree with at least one tensor"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], {}, ValueError, r"first dimensions are \(2,\), got \(3, 3\)"),
        (
            torch.zeros(2, 3),
            {"scale": torch.ones(3)},
            ValueError,
            r"scale must be a number or one value per row, \(2,\)",
        ),
        (torch.zeros(2, 3), {"scale": 10**400}, ValueError, "scale must be a number or one value per row, got 1000"),
        (torch.zeros(2, 3), {"token_mask": torch.ones(3, 3).bool()}, ValueError, "token_mask must be the batch shape"),
        (torch.zeros(2, 3), {"scale": torch.eye(2).to_sparse()}, ValueError, "scale must be a dense tensor"),
        (torch.zeros(2, 3), {"scale": torch.ones(2, device="meta")}, ValueError, "scale must be a tensor that holds"),
        (torch.zeros(2, 3), {"scale": torch.ones(2) * 1j}, ValueError, "scale must be real, got torch.complex64"),
        (torch.zeros(2, 3), {"on_failure": "no"}, ValueError, "on_failure must be"),
        (torch.zeros(2, 3), {"failed_grad": "no"}, ValueError, "failed_grad must be"),
    ],
)
def test_bad_starts(z0: object, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(lambda z: z, z0, **options)


@pytest.mark.parametrize("f", [None, 3, torch.ones(2)])
def test_a_map_that_is_none_is_named(f: object) -> None:
    with pytest.raises(TypeError, match="f must be a function or a module, got"):
        solve(f, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ((torch.ones(2, 3), torch.eye(2).to_sparse()), ValueError, "^x must be a dense tensor.* a further argument$"),
        ((torch.ones(2, 3), torch.ones(2, dtype=torch.int64)), ValueError, "^x must be floating .* further arguments"),
        ((torch.ones(2, 3), None), TypeError, "got a leaf NoneType"),
        (torch.ones(2, 3, dtype=torch.int64), ValueError, "^x must be floating point .* or an inject that embeds ids"),
    ],
)
def test_inputs_with_parts_that_are_no_unknowns(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DEQ(nn.Tanh(), inject="argument")(x)


def write_in_place(z: Tensor) -> Tensor:
    return z.mul_(0.5)


def boom(z: Tensor) -> Tensor:
    raise ArithmeticError("from inside f")


@pytest.mark.parametrize("gradient", sorted(deqlm.GRADIENTS))
@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda z: z[:, :2], ValueError, r"the shape of f\(z\) must be that of z, \(2, 3\), got \(2, 2\)"),
        (lambda z: z[:1], ValueError, r"the shape of f\(z\)"),
        (lambda z: z.double(), ValueError, r"the dtype of f\(z\) must be that of z, torch.float32"),
        (lambda z: z.to("meta"), ValueError, r"the device of f\(z\)"),
        (lambda z: (z, z), TypeError, "f must return the structure of z, a tensor, got"),
        (lambda z: None, TypeError, "f must return"),
        (lambda z: 3.0, TypeError, "f must return tensors, got float"),
        (write_in_place, ValueError, "f wrote into its argument in place"),
        (boom, ArithmeticError, "from inside f"),
    ],
)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_bad_maps(f, error: type[Exception], message: str, gradient: str, mode: str) -> None:
    solver = solver_for(gradient)
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with context(), pytest.raises(error, match=message):
        solve(f, torch.ones(2, 3), gradient=gradient, solver=solver)


def test_in_place_on_a_leaf_of_a_tree_is_found() -> None:
    with pytest.raises(ValueError, match="in place"):
        solve(lambda z: {"a": z["a"].mul_(0.5), "b": z["b"] * 0.5}, {"a": torch.ones(2, 3), "b": torch.ones(2, 1)})


def test_a_changed_structure_is_explained() -> None:
    with pytest.raises(TypeError, match="f must return the structure of z"):
        solve(lambda z: {"b": z["a"]}, {"a": torch.ones(2, 3)})


def test_zero_and_one_dimensional_states() -> None:
    assert solve(torch.cos, torch.zeros(())).z.shape == ()
    scalars = solve(torch.cos, torch.zeros(3), batch_dims=1)
    assert scalars.z.shape == scalars.status.shape == (3,)
    together = solve(torch.cos, torch.zeros(3), batch_dims=0)
    assert together.z.shape == (3,)
    assert together.status.shape == ()


def test_a_mixed_tree_keeps_the_dtype_of_each_leaf() -> None:
    z0 = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(2, dtype=torch.float64),
        "c": torch.zeros(2, 2, dtype=torch.complex64),
    }
    sol = solve(
        lambda z: {"a": 0.5 * z["a"] + 1, "b": 0.5 * z["b"] + 1, "c": 0.5j * z["c"] + 1}, z0, stop=Stop(rtol=1e-6)
    )
    assert {name: leaf.dtype for name, leaf in sol.z.items()} == {name: leaf.dtype for name, leaf in z0.items()}
    torch.testing.assert_close(sol.z["c"], torch.full((2, 2), 1 / (1 - 0.5j), dtype=torch.complex64), rtol=1e-5, atol=0)


def test_configs_are_not_changed() -> None:
    solver, gradient, stop = {"name": "anderson", "memory": 3}, {"name": "phantom", "steps": 2}, {"rtol": 1e-3}
    adjoint = {"name": "implicit", "solve": {"solver": {"name": "broyden"}, "stop": {"max_iter": 9}}}
    kept = json.dumps([solver, gradient, stop, adjoint])
    deq = DEQ(nn.Tanh(), solver=solver, gradient=gradient, stop=stop)
    assert deq.solve == Solve(deqlm.Anderson(memory=3), Stop(rtol=1e-3))
    assert deq.gradient == deqlm.Phantom(2)
    other = DEQ(nn.Tanh(), gradient=adjoint).gradient
    assert other == deqlm.Implicit(solve=Solve(deqlm.Broyden(), Stop(max_iter=9)))
    assert json.dumps([solver, gradient, stop, adjoint]) == kept


@pytest.mark.parametrize(("registry", "name"), REGISTERED, ids=[name for _, name in REGISTERED])
def test_every_registered_method_survives_a_round_trip_through_json(registry, name: str) -> None:
    made = registry.make(name)
    data = json.loads(json.dumps(made.to_dict()))
    assert data["name"] == name
    assert registry.make(data) == made
    assert type(made).from_dict(data) == made


@pytest.mark.parametrize(
    "made",
    [
        deqlm.Implicit(solve=Solve(deqlm.Broyden(memory=3), Stop(rtol=1e-9, trace=True)), second_order=True),
        deqlm.Phantom(7, 0.3),
        deqlm.Unrolled(checkpoint=True),
        deqlm.FixedPoint(damping=0.8, first_damping=1.0),
    ],
)
def test_options_survive_a_round_trip_through_json(made) -> None:
    assert type(made).from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_alias_of_implicit() -> None:
    assert DEQ(nn.Tanh(), gradient="ift").gradient == deqlm.Implicit()
    assert DEQ(nn.Tanh(), gradient={"name": "ift", "second_order": True}).gradient == deqlm.Implicit(second_order=True)
