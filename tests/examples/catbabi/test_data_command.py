"""The command that makes and counts stories."""

from __future__ import annotations

from examples.catbabi.data.__main__ import main


def test_make_and_count(tmp_path, capsys):
    folder = str(tmp_path / "babi")
    assert main(["--data", folder, "--make", "--stories", "5"]) == 0
    made = capsys.readouterr().out
    assert main(["--data", folder]) == 0
    assert capsys.readouterr().out == made
    assert [line.split()[:2] for line in made.splitlines()[1:7]] == [
        *(["1", "5"], ["2", "5"], ["6", "5"], ["7", "5"], ["19", "5"]),
        ["all", "25"],
    ]


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert main(["--data", str(tmp_path)]) == 2
    assert main(["--data", str(tmp_path / "new"), "--make", "--stories", "0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "no folder" in errors[0]
    assert "a folder with files like" in errors[1]
    assert errors[2] == "error: stories must be a whole number >= 1, got 0"
