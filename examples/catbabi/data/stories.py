"""Stories from files in the format of bAbI v1.2 (Weston et al. 2015)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from deqlm_solvers.core.checks import require, whole

SPLITS = ("train", "valid", "test")
FILE_NAME = re.compile(r"qa(?P<task>\d+)_(?:.+_)?(?P<split>train|valid|test)\.txt")


class Story(NamedTuple):
    """One story with all its questions and answers: the number of its task, and its words in order.

    Words are in lower case; "." and "?" are words, and so is an answer, which always follows a "?".
    """

    task: int
    words: tuple[str, ...]

    @property
    def questions(self) -> int:
        """Number of questions."""
        return self.words.count("?")


def read_stories(path: str | Path, task: int) -> Iterator[Story]:
    """Yield the stories of one file, the last one too, which the parser of catbAbI loses.

    A line is a number, then a statement that ends in "." or a question, its answer and the numbers of the supporting
    facts with tabs between. Number 1 starts a story. Supporting facts are checked for form and dropped.

    Args:
        path: the file.
        task: number of the task that it belongs to.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, as at the end of a truncated file; the line is named.
    """
    whole("task", task, 1)
    story: list[str] = []
    known: dict[str, list[str]] = {}
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for line_number, line in enumerate(file, start=1):
                digits, _, sentence = line.strip().partition(" ")
                if digits == "1" and story:
                    yield Story(task, tuple(story))
                    story, number = [], 0
                number += 1
                try:
                    _check_number(digits, number)
                    if sentence not in known:
                        known[sentence] = _words(sentence)
                except ValueError as error:
                    raise ValueError(f"{path}, line {line_number}: {error}") from error
                story += known[sentence]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error.reason}") from error
    require(len(story) > 0, str(path), "an empty file", "stories in the format of bAbI")
    yield Story(task, tuple(story))


def _check_number(digits: str, number: int) -> None:
    require(digits.isdecimal(), "start of the line", digits[:20], f"the number {number} and a space")
    require(int(digits) == number, "number", int(digits), f"{number}, or 1 where a story begins")


def _words(sentence: str) -> list[str]:
    parts = [part.strip() for part in sentence.lower().split("\t")]
    if len(parts) == 1 and sentence.endswith("."):
        return [*parts[0][:-1].split(), "."]
    question, answer, facts = parts if len(parts) == 3 else ("", "", "")
    ok = question.endswith("?") and len(answer.split()) == 1 and facts.replace(" ", "").isdecimal()
    rule = "a statement that ends in '.', or question?<tab>answer<tab>numbers of supporting facts"
    require(ok, "sentence", sentence[:80], rule)
    return [*question[:-1].split(), "?", answer]


def find_files(folder: str | Path) -> dict[int, dict[str, Path]]:
    """Return the files of a folder: task -> split -> path, tasks in order.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no file in it is named like a bAbI task, or two claim the same task and split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; it must hold qa1_train.txt, qa1_valid.txt, qa1_test.txt, ...")
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        name = FILE_NAME.fullmatch(path.name)
        if name:
            splits = found.setdefault(int(name["task"]), {})
            require(name["split"] not in splits, "files", path.name, "one for each task and split")
            splits[name["split"]] = path
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hint = f"; it holds the folders {', '.join(inner[:5])}" if inner else ""
    require(len(found) > 0, f"{folder}", "no such file", f"a folder with files like qa1_train.txt{hint}")
    return dict(sorted(found.items()))


def read_folder(
    folder: str | Path, *, tasks: Iterable[int] | None = None, splits: Iterable[str] = SPLITS
) -> dict[str, list[Story]]:
    """Return the stories of a folder by split, in the order of tasks.

    Args:
        folder: files qa<task>_<split>.txt, or with a title between as in the first release.
        tasks: the tasks to read; None reads all that are there.
        splits: the splits to read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a task or split that is not there, or files of another format.
    """
    files = find_files(folder)
    wanted = sorted(files) if tasks is None else sorted(set(tasks))
    stories: dict[str, list[Story]] = {split: [] for split in splits}
    for task in wanted:
        require(task in files, "tasks", task, f"among the tasks of {folder}: {', '.join(map(str, files))}")
        for split, into in stories.items():
            require(
                split in files[task], "splits", split, f"among those of task {task} in {folder}: {list(files[task])}"
            )
            into.extend(read_stories(files[task][split], task))
    return stories
