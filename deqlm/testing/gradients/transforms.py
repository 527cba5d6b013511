"""The transforms of torch.func: what they make of a gradient method is right, or refused with the reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from deqlm.gradients.base import Gradient
from deqlm.testing.check import expect
from deqlm.testing.gradients.layers import F64, TanhLayer, sharp, wrap

__all__ = ["transforms_are_right_or_refused"]

Function = Callable[[Tensor], Tensor]
REASON = re.compile(r"torch\.func|forward mode|second derivative")


def transforms_are_right_or_refused(gradient: Gradient) -> None:
    """What grad, vmap, jvp, jacrev, jacfwd and hessian of torch.func make of a call is what autograd does, or refused.

    Of methods with exact = True, the Hessian is that of many iterations.
    """
    gradient = sharp(gradient)
    layer = TanhLayer(3, size=0.3)
    x, v = torch.randn(2, 2, 3, dtype=F64)
    deq = wrap(layer, gradient)

    def row(x: Tensor) -> Tensor:
        return deq(x[None])[0]

    jacobian = functional.jacobian(deq, x)
    first = 2 * torch.einsum("bn,bncm->cm", deq(x).detach(), jacobian)
    cases: dict[str, tuple[Callable[[], Tensor], Tensor | None]] = {
        "grad": (lambda: grad(_curved(deq))(x), first),
        "vmap": (lambda: vmap(row)(x), deq(x).detach()),
        "vmap of grad": (lambda: vmap(grad(_curved(row)))(x), first),
        "jvp": (lambda: jvp(deq, (x,), (v,))[1], (jacobian * v).sum((2, 3))),
        "jacrev": (lambda: jacrev(deq)(x), jacobian),
        "jacfwd": (lambda: jacfwd(deq)(x), jacobian),
        "hessian": (lambda: hessian(_curved(deq))(x), _hessian(gradient, layer, deq, x)),
    }
    for name, (transformed, want) in cases.items():
        _expect_right_or_refused(name, transformed, want)


def _expect_right_or_refused(name: str, transformed: Callable[[], Tensor], want: Tensor | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, where it loads its forward mode
        try:
            got = transformed()
        except RuntimeError as error:
            expect(REASON.search(str(error)), "{} raises what says nothing of it: {}", name, error)
            return
    expect(want is not None, "{} gives a number where autograd refuses one", name)
    torch.testing.assert_close(got.detach(), want, rtol=1e-7, atol=1e-8, msg=lambda told: f"{name}: {told}")


def _curved(f: Function) -> Function:
    return lambda x: f(x).square().sum()


def _hessian(gradient: Gradient, layer: TanhLayer, deq: Function, x: Tensor) -> Tensor | None:
    """Return the second derivative that the method claims, or None."""

    def iterated(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(60):
            z = layer(z, x)
        return z

    try:
        return functional.hessian(_curved(iterated if gradient.exact else deq), x)  # type: ignore[return-value]
    except RuntimeError:
        return None
