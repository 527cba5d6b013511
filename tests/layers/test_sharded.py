"""Two processes that share the parameters find what one process finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from layers.sharded_worker import CASES, Model, batch, work


@pytest.mark.slow
def test_sharded_parameters_change_nothing(tmp_path: Path) -> None:
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    for case, (_, held) in CASES.items():
        alone = Model(held)
        y = alone(batch())
        y.square().sum().backward()
        for rank in (0, 1):
            value, gradients = torch.load(tmp_path / f"rank{rank}.pt")[case]
            torch.testing.assert_close(value, y[2 * rank : 2 * rank + 2], rtol=1e-12, atol=1e-13, msg=case)
            for name, p in alone.named_parameters():
                torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-12, msg=f"{case}: {name}")
