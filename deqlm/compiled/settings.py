"""How a solve is compiled."""

from __future__ import annotations

from typing import Any, Literal

from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import require

__all__ = ["Compile", "GivenCompile"]


@options
class Compile(Options):
    """Settings of `deqlm.compile` and of ``DEQ(compile=...)``.

    Args:
        on_refuse: what to do about a solve that cannot be one program: "error" (`NotCompiledError`, with the reason),
            or "eager" (solve as without compiling, and say why in one warning).
        dynamic: True compiles for every batch size and length at once; None for the first ones met, and once more, for
            all, when others come; False for each anew.
        loop: "inductor" makes machine code, which takes some ten seconds to a minute, once; "python" runs the captured
            map by torch's own operations, compiles nothing, and is for finding out what can be captured.
        progress: True draws a bar while it compiles, False never, None when stderr is a terminal.

    Raises:
        ValueError: a value that breaks its rule.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Tanh(), compile=Compile(loop="python"))
        >>> deq(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    on_refuse: Literal["error", "eager"] = "error"
    dynamic: bool | None = None
    loop: Literal["inductor", "python"] = "inductor"
    progress: bool | None = None

    def __post_init__(self) -> None:
        require(self.on_refuse in ("error", "eager"), "on_refuse", self.on_refuse, "'error' or 'eager'")
        require(self.dynamic in (None, True, False), "dynamic", self.dynamic, "True, False or None")
        require(self.loop in ("inductor", "python"), "loop", self.loop, "'inductor' or 'python'")
        require(self.progress in (None, True, False), "progress", self.progress, "True, False or None")

    @classmethod
    def of(cls, given: GivenCompile) -> Compile | None:
        """Return the settings of an option ``compile``: None where nothing is to be compiled.

        Raises:
            TypeError, ValueError: no settings.
        """
        if given is None or isinstance(given, bool):
            return cls() if given else None
        if isinstance(given, dict):
            return cls.from_dict(given)
        require(isinstance(given, cls), "compile", given, "True, False, a Compile, or a dict of its fields")
        return given  # type: ignore[return-value]


GivenCompile = bool | dict[str, Any] | Compile | None
