"""Files of the published format are read and written, and what is wrong in them is named with its line."""

from __future__ import annotations

import pytest

from examples.puzzles.data import BOARDS, Draw, load, problem_named, read_csv, write_csv

HEAD = "source,question,answer,rating\n"
GOOD = "a,53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79,\
534678912672195348198342567859761423426853791713924856961537284287419635345286179,12\n"


def test_a_file_of_the_published_format_is_read(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(HEAD + GOOD)
    (puzzle,) = read_csv(path, BOARDS["9x9"])
    assert puzzle.cells[:3] == (5, 3, 0)
    assert puzzle.answer[:3] == (4, 2, 3)
    assert puzzle.rating == 12


def test_what_is_written_is_read_back(tmp_path):
    puzzles = problem_named("6x6").draw({"test": 3}, 0)["test"]
    write_csv(tmp_path / "a.csv", puzzles, "generated")
    assert read_csv(tmp_path / "a.csv", BOARDS["6x6"]) == puzzles
    assert read_csv(tmp_path / "a.csv", BOARDS["6x6"], most=2) == puzzles[:2]


def change(column, value):
    fields = GOOD.strip().split(",")
    fields[column] = value
    return ",".join(fields) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\n", "columns of .* must be source,question,answer,rating, got 'question,answer'"),
        ("", "columns of"),
        (HEAD, r"puzzles in .* must be >= 1, got 0"),
        (HEAD + GOOD + "a,1234,1234,1\n", "line 3: puzzle must be 81 characters, one per cell of a 9x9 board"),
        (HEAD + "a,b\n", "line 2: columns must be 4"),
        (HEAD + change(3, "-1"), "line 2: rating must be a whole number"),
        (HEAD + change(1, "x" * 81), "line 2: character 1 of the puzzle must be a digit"),
        (HEAD + change(2, "1" * 81), "line 2: answer must be one that has every digit once"),
        (HEAD + change(1, "35" + "." * 79), "line 2: answer must be one that keeps the clues"),
        (HEAD + change(1, "5" + "." * 80), "line 2: puzzle must be one with a single solution"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path, BOARDS["9x9"])


def test_a_folder_of_files_is_dealt_out(tmp_path):
    drawn = problem_named("4x4").draw({"train": 5, "test": 2}, 0)
    write_csv(tmp_path / "train.csv", drawn["train"], "x")
    write_csv(tmp_path / "test.csv", drawn["test"], "x")
    draw = Draw(problem="4x4", train=3, valid=2, test=2, folder=str(tmp_path))
    found = load(draw, None)
    assert found["train"].cells.tolist() == [list(p.cells) for p in drawn["train"][:3]]
    assert found["valid"].answers.tolist() == [list(p.answer) for p in drawn["train"][3:]]
    assert found["test"].ratings.tolist() == [p.rating for p in drawn["test"]]
    with pytest.raises(ValueError, match="for train and valid, got 5"):
        load(draw.replace(train=4), None)
    with pytest.raises(FileNotFoundError):
        load(draw.replace(folder=str(tmp_path / "none")), None)
    with pytest.raises(ValueError, match="None for mazes"):
        load(draw.replace(problem="maze4"), None)


def test_puzzles_are_drawn_once_and_kept(tmp_path, monkeypatch):
    draw = Draw(problem="4x4", train=3, valid=2, test=2)
    first = load(draw, tmp_path)
    monkeypatch.setattr("examples.puzzles.data.split.problem_named", None)
    again = load(draw, tmp_path)
    assert all(one.equal(other) for split in first for one, other in zip(first[split], again[split], strict=True))
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged: remove it"):
        load(draw, tmp_path)


@pytest.mark.parametrize("change", [{"train": 0}, {"test": -1}, {"seed": -1}, {"problem": "8x8"}])
def test_a_draw_that_makes_no_sense_is_named(change):
    with pytest.raises(ValueError, match="must be"):
        Draw(**{"problem": "4x4", "train": 3, **change})
