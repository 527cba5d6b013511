"""Every registered gradient method is held to the contract; a new entry is tested without a line here."""

from __future__ import annotations

import pytest

from deqlm import GRADIENTS, Gradient, options, register_gradient
from deqlm.testing import check_gradient, gradient_checks
from deqlm.testing.check import Check
from deqlm.testing.gradients import contract
from deqlm.testing.gradients.layers import sharp
from gradients.maps import EXACT, NAMES


def cases() -> list:
    return [pytest.param(check, id=f"{name}-{label}") for name in GRADIENTS for label, check in gradient_checks(name)]


@pytest.mark.parametrize("check", cases())
def test_contract(check: Check) -> None:
    check()


@pytest.mark.usefixtures("registries")
def test_a_new_entry_is_tested_for_free() -> None:
    @register_gradient("two_steps")
    @options
    class TwoSteps(Gradient):
        def connect(self, f, z, adjoint):
            return f(f(z))

    mine = [case for case in cases() if case.id.startswith("two_steps-")]
    assert len(mine) == len(contract.ALWAYS)
    check_gradient(TwoSteps)
    check_gradient({"name": "two_steps"})


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_follows_from_exact(name: str) -> None:
    asked = {label for label, _ in gradient_checks(name)}
    assert ({each.__name__ for each in contract.EXACT} <= asked) == (name in EXACT)


@pytest.mark.parametrize("name", ["one_step", "phantom"])
def test_truncated_methods_fail_the_exactness_test_and_do_not_claim_it(name: str) -> None:
    assert name not in EXACT
    with pytest.raises(AssertionError, match="not close"):
        contract.EXACT[0](sharp(name))
