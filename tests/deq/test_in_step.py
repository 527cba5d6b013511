"""Stop(collective=True): processes end together, and find what one process finds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from deq.in_step_worker import BEST, FAILED, SETTINGS, TOLERANCE, WAIT, answers, batch, build, die, work
from deqlm import DEQ, Anderson, Chunked, FixedPoint, Frontier, Implicit, Shine, Solve, Status, Stop
from deqlm.layers import Attention
from deqlm_solvers.core.processes import Processes


@pytest.mark.parametrize(
    ("field", "value"),
    [("rtol", 0.0), ("test_every", "auto"), ("compact", "at_once"), ("share", 0.5), ("check_every", 0)],
)
def test_what_would_be_ignored_or_hang_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match="collective"):
        Stop(collective=True, **{field: value})
    with pytest.raises(ValueError, match="collective must be True or False"):
        Stop(collective=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "deer", "fallback", "scipy.krylov", "torchdeq.anderson"])
def test_solvers_that_evaluate_as_rows_need_are_refused(solver: str) -> None:
    with pytest.raises(ValueError, match=r"cannot honour Stop\(collective=True"):
        Solve(solver, Stop(collective=True))


@pytest.mark.parametrize("mode", [Chunked("auto"), Frontier(4)])
def test_modes_that_decide_by_rows_or_time_are_refused(mode: object) -> None:
    deq = DEQ(Attention(8, n_head=2), causal=True, solver="fixed_point", stop=Stop(collective=True), mode=mode)
    with torch.no_grad(), pytest.raises(ValueError, match="collective"):
        deq(torch.randn(1, 40, 8))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def with_another(alone: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One process that takes itself for one of two, the other of which is busy for so many more questions."""
    busy = [0]

    def answer(values: torch.Tensor, group: object = None) -> None:
        if busy[0] > 0:
            values += 1
        busy[0] -= 1

    monkeypatch.setattr(dist, "get_world_size", lambda *group: 2)
    monkeypatch.setattr(dist, "all_reduce", answer)
    return busy


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_rows_that_are_done_wait_unchanged(with_another: list[int], impl: str) -> None:
    deq, x = build("implicit"), batch("none")
    plain = TOLERANCE.replace(collective=False, compact=False)
    with torch.no_grad():
        want, alone = deq(x, with_stats=True, solver=Anderson(impl=impl), stop=plain)
        with_another[0] = waited = int(alone.steps.max()) + 9
        got, sol = deq(x, with_stats=True, solver=Anderson(impl=impl), stop=TOLERANCE)
    assert torch.equal(got, want)
    assert torch.equal(sol.steps, alone.steps)
    assert alone.cost.evaluations == int(alone.steps.max()) < waited
    # one question more says that nobody is busy, and one that no row passed beside others
    assert sol.cost.evaluations == waited + 1


def test_best_f_goes_by_the_rows_of_all(with_another: list[int]) -> None:
    deq, x = build("best_f"), batch("none")
    with torch.no_grad():
        alone = deq(x, with_stats=True, stop=BEST.replace(collective=False))[1]
        with_another[0] = int(alone.steps[0]) + 5
        sol = deq(x, with_stats=True)[1]
    assert int(sol.steps[0]) == int(alone.steps[0]) + 6
    assert bool((sol.relative <= alone.relative).all())


def test_one_process_decides_by_itself(alone: None) -> None:
    deq, x = build("implicit"), batch("none")
    with torch.no_grad():
        assert torch.equal(deq(x), deq(x, stop=TOLERANCE.replace(collective=False)))


def test_a_module_with_a_group_is_copied(alone: None) -> None:
    deq = DEQ(torch.nn.Linear(2, 2), process_group=dist.group.WORLD, stop=Stop(collective=True))
    assert copy.deepcopy(deq).process_group.group is dist.group.WORLD


def test_the_backward_solve_follows() -> None:
    chosen = Implicit().for_solve(Solve(FixedPoint(), Stop(collective=True)))
    assert chosen.solve.stop.collective  # type: ignore[union-attr]
    assert not Implicit().for_solve(Solve(FixedPoint(), Stop())).solve.stop.collective  # type: ignore[union-attr]
    assert Shine(refine=3).solves(Solve(FixedPoint(), Stop()))[0].solver.steps_evaluate


def test_a_process_that_is_gone_is_told(with_another: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(values: torch.Tensor, group: object = None) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(dist, "all_reduce", broken)
    with pytest.raises(RuntimeError, match=r"a process of the group has ended, or .* Connection closed"):
        Processes().any(True, torch.device("cpu"))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for setting in SETTINGS:
        for failed in FAILED:
            here = f"{setting}, {failed}"
            first, second = (rank[setting, failed] for rank in ranks)
            both = answers(build(setting), batch(failed), 1)
            assert first["evaluations"] == second["evaluations"], here
            for name in ("y", "plain"):
                got = torch.cat([first[name], second[name]])
                torch.testing.assert_close(got, both[name], rtol=1e-8, atol=1e-9, equal_nan=True, msg=here)
            for name in ("steps", "status"):
                assert torch.equal(torch.cat([first[name], second[name]]), both[name]), here
            for rank in (first, second):
                for ours, truth in zip(rank["gradients"], both["gradients"], strict=True):
                    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-9, msg=here)
            if failed == "none" and setting == "implicit":
                assert bool((both["status"] == int(Status.CONVERGED)).all())
                assert int(first["steps"].max()) != int(second["steps"].max())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other(tmp_path: Path) -> None:
    mp.start_processes(die, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    seconds, said = (tmp_path / "said.txt").read_text().split(" ", 1)
    assert float(seconds) < WAIT
    assert "a process of the group has ended, or does not take part" in said


@pytest.mark.parametrize("group", [3, "gloo", True])
def test_what_is_no_group_is_refused_at_birth(group: object) -> None:
    with pytest.raises(TypeError, match="process_group must be a group"):
        DEQ(torch.nn.Tanh(), process_group=group)
