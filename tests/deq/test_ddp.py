"""Two processes train what one process trains."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from deq.ddp_worker import CASES, batch, build, step, work


@pytest.mark.slow
def test_gradients_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for method, failed in CASES:
        single = step(copy.deepcopy(build(method)), batch(failed), 2)
        for found in ranks:
            for got in found[method, failed]:
                for ours, truth in zip(got, single, strict=True):
                    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-9, msg=f"{method}, {failed}")
