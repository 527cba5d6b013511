"""Results of other tasks, of other settings and damaged ones are named, whichever example reads them."""

from __future__ import annotations

import json

import pytest

from examples.catbabi.__main__ import main as catbabi
from examples.loop.results import known_result
from examples.puzzles.__main__ import main as puzzles
from examples.state_tracking.__main__ import main as state_tracking

ALIEN = {
    "puzzles": {"recipe": {"label": "a", "draw": {}}},
    "words": {"recipe": {"label": "a", "problem": "S3"}},
    "automata": {"recipe": {"label": "a", "task": "parity"}},
    "stories": {"recipe": {"label": "a", "tasks": [1]}},
    "graph": {"settings": {}, "runs": []},
    "list": [1, 2],
}
READERS = {
    "puzzles": (puzzles, ["evaluate"]),
    "words": (state_tracking, ["evaluate"]),
    "stories": (catbabi, ["evaluate"]),
}


def folder(path, data):
    (path / "result.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


@pytest.mark.parametrize("of", ALIEN)
@pytest.mark.parametrize("reader", READERS)
def test_a_result_of_another_task_is_named(reader, of, tmp_path, capsys):
    main, command = READERS[reader]
    assert main([*command, folder(tmp_path, ALIEN[of])]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert ("holds no recipe of this version" if of == reader else "its result is of another task") in said


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_without_a_result_and_a_damaged_one_are_named(reader, tmp_path, capsys):
    main, command = READERS[reader]
    assert main([*command, str(tmp_path)]) == 2
    assert "does not exist: train first" in capsys.readouterr().err
    assert main([*command, folder(tmp_path, '{"recipe": [')]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("data", [{"runs": []}, [1], {"recipe": {"lr": 0.2}}])
def test_no_training_writes_over_another_result(data, tmp_path):
    folder(tmp_path, data)
    with pytest.raises(ValueError, match="is the result of other settings"):
        known_result(tmp_path, {"lr": 0.1})
