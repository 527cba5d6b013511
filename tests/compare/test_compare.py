"""`compare`: true counts and residuals, nobody dropped, equal seeds equal counts."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deqlm.comparison import PROBLEMS, Problem, Settings, compare
from deqlm.comparison.noise import changes
from deqlm.comparison.recorder import Recorder, Trace, relative_residual
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
    assert problem.entry("crashes").message.endswith("in step: RuntimeError: no step today")
    liar = problem.entry("liar")
    assert (liar.solved, liar.claimed, liar.evaluations, liar.counts_agree) == (0, 32, 1, True)
    text = result.table(120)
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


def test_the_first_jacobian_of_hybr_is_no_weakness():
    result = compare(["tanh:rho=0.5,unknowns=8", "two_cycle"], ["scipy.hybr"], memory=False, **FAST)
    remark = "needs B*N+1 = 2049 evaluations for its first Jacobian, 200 are allowed"
    assert [e.remark for p in result.problems for e in p.entries][1] == remark
    assert f"scipy.hybr {remark}" in result.table(120)
    (small,) = compare(["two_cycle:unknowns=2"], ["scipy.hybr"], batch=2, memory=False, **FAST).problems
    assert small.entries[0].remark == ""


def test_every_solver_is_warmed_up_before_it_is_recorded(registries):
    seen = []

    @register_solver("notes_budgets")
    @options
    class NotesBudgets(Solver):
        honours = frozenset({"max_iter", "rtol"})

        def solve(self, f, z0, stop, frame):
            seen.append(stop.max_iter)
            return SOLVERS["fixed_point"]().solve(f, z0, stop, frame)

    (problem,) = compare([TINY], ["notes_budgets"], memory=False, **FAST).problems
    assert seen == [10, 200, 200]
    assert problem.entries[0].evaluations > 10
    assert problem.entries[0].trace.evaluations[0] == 1


def test_a_noisy_map_is_noted_in_the_table_and_in_the_record():
    def noisy(dtype):
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, dtype=dtype)
        return layer.train(), torch.zeros(2, 3, 8, dtype=dtype)

    def quiet(dtype):
        layer, z0 = noisy(dtype)
        return layer.eval(), z0

    result = compare([noisy, quiet], "anderson", memory=False, **FAST)
    note = "f(z) changes from call to call (dropout in train()?): call .eval(), or nothing can converge"
    assert [problem.note for problem in result.problems] == [note, ""]
    assert f"  note: {note}\n" in result.table(120)
    assert result.to_dict()["problems"][0]["note"] == note


def test_noise_that_a_start_of_zeros_hides_is_seen():
    z0 = torch.zeros(2, 64)
    assert changes(lambda z: torch.nn.functional.dropout(z) + 1, z0, 1e-5)
    assert not changes(lambda z: z + 1e-7 * torch.rand_like(z) + 1, z0, 1e-5)
    assert not changes(lambda z: z + torch.nan, z0, 1e-5)


def test_tokens_are_counted_where_a_problem_has_them():
    result = compare(["parity:length=8", TINY], "fixed_point", batch=2, **FAST)
    chain, plain = (problem.entries[0] for problem in result.problems)
    assert chain.token_evaluations == 8 * chain.row_evaluations == 8 * 2 * 8
    assert plain.token_evaluations == 0
    blocks = result.blocks(120)
    assert "token-evals" in blocks[0]
    assert "token-evals" not in blocks[1]
    assert result.to_dict()["problems"][0]["tokens"] == 8
    assert result.to_dict()["problems"][0]["entries"][0]["token_evaluations"] == chain.token_evaluations


def test_the_legend_says_what_counts_as_solved():
    text = " ".join(str(compare(TINY, "anderson", memory=False, **FAST)).split())
    assert "within 1.05 tolerance" in text
    assert "in brackets the solver's own word per row" in text


def test_a_lone_name_problem_or_solver_is_taken():
    result = compare("symmetric:rho=0.5,unknowns=8,tanh:unknowns=4", "anderson:memory=3", **FAST)
    assert [p.label for p in result.problems] == [TINY, "tanh:rho=0.9,unknowns=4"]
    for solver in ({"name": "anderson", "memory": 3}, Anderson(memory=3)):
        assert compare(PROBLEMS["symmetric"](rho=0.5), solver, memory=False, **FAST).solvers == ["anderson:memory=3"]


def test_a_label_that_is_not_there_names_the_nearest():
    result = compare(TINY, "anderson:memory=3", memory=False, **FAST)
    with pytest.raises(KeyError, match=f"did you mean '{TINY}'"):
        result["symmetric"]
    with pytest.raises(KeyError, match="did you mean 'anderson:memory=3'"):
        result[TINY].entry("anderson:memry=3")


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
    assert result.problems[0].message.endswith("in make: RuntimeError: no data")
    assert result.problems[1].entries
    assert "in make: RuntimeError: no data" in str(result)


def test_interruption_leaves_what_was_done():
    @options
    class Stops(Problem):
        def build(self, settings: Settings):
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
        ({"seed": "x"}, ValueError, "seed must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be a whole number"),
        ({"batch": "x"}, ValueError, "batch must be a whole number"),
        ({"repeats": True}, ValueError, "repeats must be a whole number"),
        ({"solvers": [Anderson]}, TypeError, r"write Anderson\(\), got the class"),
        ({"solvers": ["scipy.hybr:factor=big"]}, ValueError, "factor must be .*, got 'big'"),
        ({"solvers": ["torchdeq.anderson:lam=big"]}, ValueError, "lam must be .*, got 'big'"),
        ({"solvers": ["scipy.hybr:band=3"]}, ValueError, "band must be .*, got 3"),
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
