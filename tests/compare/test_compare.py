"""`compare`: true counts and residuals, nobody dropped, equal seeds equal counts."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deqlm.compare import Problem, Setting, compare
from deqlm.compare.recorder import Recorder, Trace, relative_residual
from deqlm_solvers import SOLVERS, Anderson, Solver, StepSolver, options, register_solver

FAST = {"repeats": 1, "progress": False}
TINY = "symmetric:rho=0.5,unknowns=8"


@pytest.fixture
def odd_solvers(registries):
    @register_solver("crashes")
    @options
    class Crashes(StepSolver):
        def init(self, z):
            return None

        def step(self, f, at, state):
            raise RuntimeError("no step today\nsecond line")

    @register_solver("absent")
    @options
    class Absent(Solver):
        honours = frozenset({"max_iter", "rtol"})

        def solve(self, f, z0, stop, frame):
            raise ImportError('absent needs nothing_such: pip install "deqlm[compare]"')

    @register_solver("liar")
    @options
    class Liar(Solver):
        honours = frozenset({"max_iter", "rtol"})

        def solve(self, f, z0, stop, frame):
            f(z0)
            truth = SOLVERS["anderson"]().solve(lambda z: 0 * z, z0, stop, frame)
            return truth.replace(z=z0 + 1)


def test_every_registered_solver_has_a_row():
    result = compare([TINY], **FAST)
    assert [e.solver for e in result.problems[0].entries] == list(SOLVERS)
    assert result.solvers == list(SOLVERS)
    for entry in result.problems[0].entries:
        assert entry.ran or entry.outcome in ("raised", "not installed"), entry


def test_ours_solve_the_easy_problem_and_the_numbers_are_true():
    (problem,) = compare([TINY], ["fixed_point", "anderson", "broyden"], repeats=2, progress=False).problems
    for entry in problem.entries:
        assert (entry.outcome, entry.solved, entry.claimed) == ("solved", 32, 32)
        assert entry.residual <= 1.05e-5
        assert entry.error is not None
        assert entry.error <= 1e-4
        assert entry.counts_agree
        assert entry.row_evaluations == 32 * entry.evaluations
        assert len(entry.times) == 2
        assert entry.overhead is not None
        assert entry.trace is not None
        assert entry.trace.evaluations[-1] == entry.evaluations
        assert entry.trace.residual[-1] <= 1.05e-5
    assert problem.entry("anderson").evaluations < problem.entry("fixed_point").evaluations


def test_same_seed_same_counts():
    def counts(seed):
        result = compare(["tanh", "hard_row"], ["anderson", "broyden"], seed=seed, memory=False, **FAST)
        return [(e.solver, e.evaluations, e.row_evaluations, e.residual) for p in result.problems for e in p.entries]

    assert counts(1) == counts(1) != counts(2)


def test_failing_missing_and_lying_solvers_are_shown(odd_solvers):
    result = compare([TINY], ["anderson", "crashes", "absent", "liar"], **FAST)
    (problem,) = result.problems
    assert [e.outcome for e in problem.entries] == ["solved", "raised", "not installed", "unsolved"]
    assert problem.entry("crashes").message == "RuntimeError: no step today"
    liar = problem.entry("liar")
    assert (liar.solved, liar.claimed, liar.evaluations, liar.counts_agree) == (0, 32, 1, True)
    text = str(result)
    for needle in ("RAISED", "NOT INSTALLED", "no step today", "nothing_such", "claims 32"):
        assert needle in text, text
    assert max(map(len, text.splitlines())) <= 120


def test_a_solver_that_does_not_solve_fails_visibly():
    result = compare(["two_cycle"], ["fixed_point"], memory=False, **FAST)
    entry = result["two_cycle"].entry("fixed_point")
    assert entry.outcome == "unsolved"
    assert entry.solved < 32
    assert entry.statuses.get("MAX_ITER")
    assert "FAILS (32 MAX_ITER)" in str(result)


def test_specs_dicts_and_objects_name_rows():
    given = ["anderson:memory=3,damping=0.5", {"name": "broyden", "memory": 4}, Anderson(memory=7)]
    result = compare([TINY], given, **FAST)
    assert result.solvers == ["anderson:memory=3,damping=0.5", "broyden:memory=4", "anderson:memory=7"]
    assert all(e.outcome == "solved" for e in result.problems[0].entries)


def test_float64_is_held_to_its_own_tolerance():
    (problem,) = compare([TINY], ["anderson"], dtype="float64", batch=3, **FAST).problems
    assert (problem.tol, problem.rows) == (1e-10, 3)
    assert problem.entries[0].residual <= 1.05e-10


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs(dtype):
    (problem,) = compare([TINY], ["fixed_point", "anderson"], dtype=dtype, **FAST).problems
    assert [e.outcome for e in problem.entries] == ["solved", "solved"]


def test_a_problem_that_cannot_be_built_keeps_its_block():
    def make():
        raise RuntimeError("no data")

    result = compare([make, TINY], ["anderson"], **FAST)
    assert result.problems[0].message == "RuntimeError: no data"
    assert result.problems[1].entries
    assert "not built: RuntimeError: no data" in str(result)


def test_interruption_leaves_what_was_done():
    @options
    class Stops(Problem):
        def build(self, setting: Setting):
            raise KeyboardInterrupt

    result = compare([TINY, Stops(), TINY], ["anderson"], **FAST)
    assert result.interrupted
    assert len(result.problems) == 2
    assert result.problems[0].entries[0].outcome == "solved"
    assert "interrupted" in str(result)


def test_the_record_is_strict_json_with_the_environment(tmp_path):
    result = compare(["rotation", TINY], ["fixed_point", "anderson"], seed=5, **FAST)
    written = {path.name for path in result.save(tmp_path, plots=False)}
    assert written == {"compare.json", "compare.txt"}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads((tmp_path / "compare.json").read_text(), parse_constant=refuse)
    environment = record["environment"]
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or environment["packages"]["torch"]
    assert {"python", "cpu", "cores", "threads", "platform", "commit", "argv", "device", "deqlm"} <= environment.keys()
    assert record["settings"]["seed"] == 5
    assert record["version"] == 1
    entry = record["problems"][1]["entries"][1]
    assert entry["solver"] == "anderson"
    assert entry["outcome"] == "solved"
    assert entry["seconds"] > 0
    assert len(entry["trace"]["residual"]) == len(entry["trace"]["seconds"]) == len(entry["trace"]["evaluations"])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"solvers": ["andersn"]}, KeyError, "did you mean 'anderson'"),
        ({"problems": ["symetric"]}, KeyError, "did you mean 'symmetric'"),
        ({"problems": [3]}, TypeError, "a problem must be"),
        ({"dtype": "float23"}, ValueError, "did you mean 'float32'"),
        ({"device": "cpuu"}, ValueError, "did you mean 'cpu'"),
        ({"repeats": 0}, ValueError, "repeats must be"),
        ({"batch": 0}, ValueError, "batch must be"),
        ({"threads": 0}, ValueError, "threads must be"),
        ({"solvers": ["anderson:memory=0"]}, ValueError, "memory must be"),
        ({"solvers": ["anderson:memry=1"]}, TypeError, "did you mean 'memory'"),
        ({"solvers": ["anderson", "anderson"]}, ValueError, "asked for twice"),
    ],
)
def test_bad_input_is_named_before_anything_runs(arguments, error, text):
    with pytest.raises(error, match=text):
        compare(**{"problems": [TINY], "solvers": ["anderson"], **arguments}, progress=False)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    compare([TINY], ["fixed_point"], threads=before + 1, memory=False, **FAST)
    assert torch.get_num_threads() == before


def test_recorder_sees_what_the_map_sees():
    recorder = Recorder(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
    for z in (torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), torch.nan), torch.full((2, 3), 2.0)):
        recorder(z)
    assert (recorder.evaluations, recorder.row_evaluations) == (4, 8)
    trace = recorder.trace()
    assert trace.evaluations == [1, 2, 4]
    assert trace.residual == pytest.approx([1.0, 1 / 3, 0.0])
    assert trace.seconds == sorted(trace.seconds)


def test_relative_residual_of_zero_and_of_nan():
    z = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    fz = torch.tensor([[0.0], [0.0], [torch.nan], [2.0]])
    assert relative_residual(z, fz).tolist() == [0.0, math.inf, math.inf, 0.5]


def test_a_trace_is_scaled_to_the_median_run():
    assert Trace([1, 2], [0.5, 1.0], [1.0, 0.1]).scaled(4.0).seconds == [2.0, 4.0]
