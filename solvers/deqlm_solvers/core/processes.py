"""What several processes decide together, so that all of them evaluate f equally often."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes", "several_processes"]


def several_processes() -> bool:
    """Say whether this process is one of several that torch.distributed knows."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@dataclass(frozen=True, eq=False)
class Processes:
    """A group of processes that solve in step. Where there is one process alone, it decides by itself.

    Attributes:
        group: of torch.distributed, or a device mesh of one dimension; None is all processes.

    Raises:
        TypeError: what is no group.

    Examples:
        >>> Processes().total(torch.tensor([2, 3])).tolist(), Processes().any(False, torch.device("cpu"))
        ([2, 3], False)
    """

    group: Any = None

    def __post_init__(self) -> None:
        if self.group is None or hasattr(self.group, "get_group"):
            return
        there = dist.is_available()
        # those that are not in a group get a constant for it
        outside = there and self.group == dist.GroupMember.NON_GROUP_MEMBER
        if not outside and not (there and isinstance(self.group, dist.ProcessGroup)):
            raise TypeError(
                "process_group must be a group of torch.distributed, a device mesh of one dimension or None, got "
                f"{type(self.group).__name__}"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # a module that is copied stays in its group, and groups cannot be copied
        return copy.copy(self)

    def total(self, values: Tensor) -> Tensor:
        """Return the sums of ``values`` over the processes, on their device.

        Raises:
            RuntimeError: a process has ended, or does not ask within the time-out of the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return values
        group = self.group.get_group() if hasattr(self.group, "get_group") else self.group
        if dist.get_world_size(group) == 1:
            return values
        values = values.clone()
        try:
            dist.all_reduce(values, group=group)
        except RuntimeError as error:
            raise RuntimeError(
                "a process of the group has ended, or does not take part in this solve within the time-out of the "
                f"group, which collective=True needs; this is process {dist.get_rank()} of {dist.get_world_size()}: "
                f"{error}"
            ) from error
        return values

    def any(self, here: bool, device: torch.device) -> bool:
        """Say whether ``here`` is True in any process; reads ``device``, on which the processes talk."""
        return bool(self.total(torch.tensor([int(here)], device=device, dtype=torch.int64)).item())
