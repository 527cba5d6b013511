"""Data for state tracking: word problems of groups and monoids, drawn on the fly or read from files."""

from examples.state_tracking.data.algebra import (
    Algebra,
    adjoin_identity,
    alternating,
    aperiodic,
    cyclic,
    direct_product,
    flip_flop,
    symmetric,
)
from examples.state_tracking.data.files import bin_name, problem_of, read_bin, read_csv, write_bin, write_csv
from examples.state_tracking.data.problem import WordProblem, Words, word_problem
from examples.state_tracking.data.stream import Stream
from examples.state_tracking.data.vocabulary import Vocabulary

__all__ = [
    "Algebra",
    "Stream",
    "Vocabulary",
    "WordProblem",
    "Words",
    "adjoin_identity",
    "alternating",
    "aperiodic",
    "bin_name",
    "cyclic",
    "direct_product",
    "flip_flop",
    "problem_of",
    "read_bin",
    "read_csv",
    "symmetric",
    "word_problem",
    "write_bin",
    "write_csv",
]
