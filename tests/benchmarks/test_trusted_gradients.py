"""The page "Gradients you can trust" holds what its record holds, and the record what is true."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor, nn

import deqlm
from benchmarks.trusted_gradients import DOCS, LOOPS, OURS, PAGE, STOP, Map, blocks, error, truth

F64 = torch.float64
RECORD = DOCS / "records" / "trusted_gradients.json"
BIASED = ("one step", "one_step", "4 steps")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def inputs() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)


def test_the_table_of_the_page_is_that_of_the_record():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert blocks(record)["trusted"] in PAGE.read_text(encoding="utf-8")
    assert [entry["way"] for entry in record["ways"]] == [*LOOPS, *(f"deqlm, {name}" for name in OURS)]


def test_what_the_record_says_of_ours_is_right_or_biased_by_name():
    for entry in json.loads(RECORD.read_text(encoding="utf-8"))["ways"]:
        if entry["way"].startswith("deqlm") and not any(word in entry["way"] for word in BIASED):
            assert max(entry["errors"]) < 1e-6, entry


@pytest.mark.parametrize(
    "name", [name for name in LOOPS if name not in ("autograd through while_loop", "autograd through scan")]
)
def test_loops_in_python_are_as_good_as_their_name(name: str):
    f, x = Map(), inputs()
    wrong = error(lambda x: LOOPS[name](f, x), f, x, truth(f, x))
    assert isinstance(wrong, float)
    assert (wrong > 1e-3) is any(word in name for word in BIASED)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("compiled", ["eager", "whole", "layer"])
def test_ours_are_right_eager_and_compiled(name: str, compiled: str):
    torch.compiler.reset()
    f, x = Map(), inputs()
    solver, gradient = OURS[name]
    layer: nn.Module = torch.compile(f, backend="aot_eager") if compiled == "layer" else f
    run = deqlm.DEQ(layer, inject="argument", solver=solver, gradient=gradient, stop=STOP)
    if compiled == "whole":
        run = torch.compile(run, backend="aot_eager")
    wrong = error(run, f, x, truth(f, x))
    assert isinstance(wrong, float), wrong
    assert (wrong > 1e-6) is any(word in name for word in BIASED)


@pytest.mark.slow
def test_the_five_lines_of_the_page_go_wrong():
    """Where this fails, torch has mended it: tell it on the page."""
    code = re.search(r"```python\n(import torch\nfrom torch\._higher.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert code is not None
    seen: dict[str, Tensor] = {}
    exec(code[1], seen)
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)
    z = torch.tensor(1.0, dtype=F64)
    for _ in range(5):
        z = torch.cos(w * z)
    right = torch.autograd.grad(z, w)[0]
    assert abs(seen["z"] - z) < 1e-12
    assert abs(seen["wrong"] - right) > 0.05 * abs(right)
