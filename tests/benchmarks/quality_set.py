"""The quality set, which `deqlm compare --full` uses too."""

from deqlm.comparison.full.quality_maps import QualityProblem, all_problems, more_problems, problems

__all__ = ["QualityProblem", "all_problems", "more_problems", "problems"]
