"""The training loop that state tracking, CatbAbI and the text tutorial share."""

from examples.loop.guard import Guard
from examples.loop.options import LoopOptions
from examples.loop.task import IGNORED, Batch, Task, accuracy
from examples.loop.train import Run, TrainingError, train

__all__ = ["IGNORED", "Batch", "Guard", "LoopOptions", "Run", "Task", "TrainingError", "accuracy", "train"]
