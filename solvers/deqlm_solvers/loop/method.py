"""What the loop asks of an update rule; `StepSolver` is the class that has it all."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor

from deqlm_solvers.core.native_rule import NativeRule
from deqlm_solvers.core.solver import Evaluation

__all__ = ["Method"]


class Method(Protocol):
    """An update rule as the loop and its backends see it; see `StepSolver` for what each part means."""

    differentiates: ClassVar[bool]
    steps_evaluate: ClassVar[bool]
    asks_host: ClassVar[bool]

    def init(self, z: Tensor) -> Any: ...

    def step(self, f: Any, at: Evaluation, state: Any) -> tuple[Tensor, Any]: ...

    def native_rule(self) -> NativeRule | None: ...

    def picked(self, state: Any) -> tuple[Tensor, tuple[str, ...]] | None: ...

    def renew(self, z: Tensor, state: Any) -> Any: ...

    def final(self, state: Any) -> Tensor | None: ...

    def asks(self, at: Evaluation, state: Any) -> Tensor | None: ...

    def fitted(self, unknowns: int, max_iter: int) -> Method: ...
