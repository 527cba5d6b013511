"""What training loops share; the loops themselves belong to the examples."""

from deqlm.training.phases import Phase, Phases, bounded, free, warm_up

__all__ = ["Phase", "Phases", "bounded", "free", "warm_up"]
