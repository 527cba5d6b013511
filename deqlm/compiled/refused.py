"""What cannot be compiled, said before or after the compiler has looked at it."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from deqlm.wrap.replay import Replay

__all__ = ["NotCompiledError", "by_compiler", "drawn", "hooked", "modes_of", "reason_of", "what_moves"]

RANDOM = {
    *(
        "rand",
        "randn",
        "rand_like",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "normal",
        "normal_",
        "uniform_",
    ),
    *("bernoulli", "bernoulli_", "multinomial", "poisson", "gumbel_softmax", "rrelu", "random_", "exponential_"),
    *("cauchy_", "geometric_", "log_normal_"),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotCompiledError(RuntimeError):
    """A solve that cannot be made one program; the message names what stands against it, and what to do."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this solve cannot be compiled: {why}; leave compile off, or give on_refuse='eager'")
        self.why = why


def hooked(module: nn.Module | None) -> str:
    """Return which part of ``module`` has a hook, in words; empty where none has."""
    for name, part in () if module is None else module.named_modules():
        if any(getattr(part, kind) for kind in HOOKS):
            return f"{name or 'the layer'} has a hook, which would run once and not at every evaluation"
    return ""


def modes_of(module: nn.Module) -> tuple[Any, ...] | None:
    """Return the parts of ``module`` by type, and which are in train(), in order; None where one has a hook."""
    modes: list[Any] = []
    for part in module.modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return None
        modes += (part.training, type(part))
    return tuple(modes)


def what_moves(replay: Replay) -> str:
    """Return what an evaluation changes, in words: random numbers that it draws, or buffers; empty for nothing."""
    if replay.noisy:
        noisy = [name or type(part).__name__ for name, part in _modules(replay) if part.training and _draws(part)]
        return f"f draws random numbers{_of(noisy)}: call eval(), or set the dropout to 0"
    if replay.buffers:
        named = {id(part): name for name, part in _modules(replay)}
        names = [f"{named.get(id(buffer.owner), '')}.{buffer.name}".lstrip(".") for buffer in replay.buffers]
        return f"f moves buffers{_of(names)}: call eval()"
    return ""


def drawn(graph: fx.GraphModule) -> str:
    """Return the function in a captured graph that draws random numbers; empty where none does."""
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if node.op in ("call_function", "call_method") and (name in RANDOM or _drops(name, node)):
                return name
    return ""


def _drops(name: str, node: fx.Node) -> bool:
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0))
    if "dropout" not in name:
        return False
    rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    training = node.kwargs.get("training", node.kwargs.get("train", node.args[2] if len(node.args) > 2 else True))
    return bool(training) and bool(rate != 0)


def by_compiler(error: BaseException) -> bool:
    """Say whether torch's compiler raised ``error``, of code that it cannot take; asked without loading it."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))


def reason_of(error: BaseException) -> str:
    """Return the compiler's own reason in one line, with the line of the user's code where it tells one."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return (
            "it was compiled for as many kinds of inputs as torch._dynamo.config.recompile_limit allows; give a number "
            "that changes from call to call as a tensor"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:")]
    where = [line for line in lines if line.startswith('File "')]
    lines = [line for line in lines if not line.startswith("backend=")]
    first = lines[0] if lines else type(error).__name__
    text = first if not told else f"{first}: {told[-1]}"
    return f"{text.rstrip('.')} ({where[-1]})" if where else text.rstrip(".")


def _modules(replay: Replay) -> list[tuple[str, nn.Module]]:
    return [] if replay.module is None else list(replay.module.named_modules())


def _draws(part: nn.Module) -> bool:
    rate: Any = getattr(part, "p", getattr(part, "dropout", 0.0))
    return isinstance(part, nn.modules.dropout._DropoutNd) or (type(rate) is float and rate > 0)


def _of(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
