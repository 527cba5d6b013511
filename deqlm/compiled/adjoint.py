"""f and its backward as two functions, made once by AOT autograd, and the loop of the adjoint around the second.

Autograd never sees a loop: the gradients that it takes through `torch.while_loop` are silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Derived", "Made", "derive"]

Made = Callable[[Sequence[Any]], Any]
"""A compiled function of a list of inputs."""


@dataclass(frozen=True, eq=False)
class Derived:
    """What an evaluation of f became.

    Attributes:
        evaluate: inputs -> [f(z), saved...].
        pull: [saved..., w] -> gradients of all inputs, None where one has none.
        loop: [drive, g, w, saved...] -> the last point of the loop w = J^T w + g.
        point: which input is z.
    """

    evaluate: Made
    pull: Made
    loop: Made
    point: int


def derive(graph: fx.GraphModule, inputs: list[Any], point: int, make: Callable[..., Made]) -> Derived:
    """Return f, its backward and the adjoint's loop, compiled.

    Args:
        graph: one evaluation of f, its inputs as flat placeholders, f(z) its only output.
        inputs: what stands for them, as torch's compiler hands them on.
        point: which one is z, a dense tensor that requires grad.
        make: compiles a functional graph for inputs.
    """
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._functorch.partitioners import default_partition
    from torch._guards import detect_fake_mode
    from torch._inductor.decomposition import select_decomp_table

    joint: Any = aot_export_joint_simple(
        lambda *args: tuple(graph(*args)), tuple(inputs), trace_joint=True, decompositions=select_decomp_table()
    )
    # whatever an adjoint's step needs is saved: it takes the step many times
    forward, backward = default_partition(joint, inputs, num_fwd_outputs=1)
    first, *saved = _outputs(forward)
    places = {node.name: i for i, node in enumerate(saved)}
    order = [places.get(node.name, -1) for node in backward.graph.find_nodes(op="placeholder")]

    def pull(*given: Any) -> Any:
        *values, w = given
        return backward(*(w if place < 0 else values[place] for place in order))

    def loop(drive: Tensor, g: Tensor, w: Tensor, *values: Any) -> tuple[Tensor]:
        return (_loop(lambda w, values: pull(*values, w)[point], drive, g, w, values),)

    mode: Any = detect_fake_mode(inputs)
    given, fakes = (_values(nodes) for nodes in (forward.graph.find_nodes(op="placeholder"), saved))
    with mode:
        # two, since what is one tensor to the tracer is one input
        g, w = (torch.empty_like(first.meta["val"], memory_format=torch.contiguous_format) for _ in range(2))
        drive = torch.zeros(7, dtype=torch.int64, device="cpu")
    return Derived(
        evaluate=make(forward, given),
        pull=make(_traced(pull, mode, [*fakes, w]), [*fakes, w]),
        loop=make(_traced(loop, mode, [drive, g, w, *fakes]), [drive, g, w, *fakes]),
        point=point,
    )


def _outputs(graph: fx.GraphModule) -> list[fx.Node]:
    (output,) = graph.graph.find_nodes(op="output")
    return list(output.args[0])


def _values(nodes: list[fx.Node]) -> list[Any]:
    return [node.meta["val"] for node in nodes]


def _loop(product: Callable[..., Tensor | None], drive: Tensor, g: Tensor, w: Tensor, values: Any) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop_op

    def goes_on(w: Tensor, more: Tensor, *_: Any) -> Tensor:
        return more > 0

    def once(w: Tensor, more: Tensor, drive: Tensor, g: Tensor, *values: Any) -> tuple[Tensor, Tensor]:
        pulled = product(w, values)
        fw = g.clone() if pulled is None else (pulled + g).contiguous()
        w, more = torch.ops.deqlm.advance(drive, w, fw)
        return w, more

    # what a step reads must be told, lest it is taken for a constant
    carried: Any = (w, drive.new_ones(()))
    return while_loop_op(goes_on, once, carried, (drive, g, *values))[0]


def _traced(function: Callable[..., Any], mode: Any, inputs: list[Any]) -> fx.GraphModule:
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    with mode, torch.no_grad():
        return make_fx(function, decomposition_table=select_decomp_table())(*inputs)
