"""What training loops share; the loops themselves belong to the examples."""

from deqlm.training.checkpoint import (
    CheckpointError,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from deqlm.training.curriculum import Course, Curriculum, Stage
from deqlm.training.optimizer import adamw, decay_groups
from deqlm.training.penalty import jacobian_penalty
from deqlm.training.phases import Phase, Phases, bounded, free, warm_up
from deqlm.training.random_state import get_random_state, random_state_kept, set_random_state
from deqlm.training.schedule import Schedule

__all__ = [
    "CheckpointError",
    "Course",
    "Curriculum",
    "Phase",
    "Phases",
    "Schedule",
    "Stage",
    "adamw",
    "bounded",
    "checkpoints",
    "decay_groups",
    "free",
    "get_random_state",
    "jacobian_penalty",
    "load_checkpoint",
    "random_state_kept",
    "save_checkpoint",
    "set_random_state",
    "warm_up",
    "write_atomically",
]
