"""The two file formats in which others keep word problems, read and written."""

from __future__ import annotations

import csv
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require, whole
from examples.state_tracking.data.problem import WordProblem, Words, word_problem

BIN_KEYS = ("inputs", "targets", "vocab_size")
CSV_HEADER = ["seed", "input", "target"]
BIN_NAME = re.compile(r"(?P<split>[a-z]+)_(?P<group>.+)_L(?P<length>\d+)_P(?P<percent>\d{3})\.bin")
CSV_NAME = re.compile(r"(?P<group>.+)=(?P<length>\d+)\.csv")


def bin_name(problem: WordProblem, length: int, split: str = "train") -> str:
    """Return the authors' name of a file: split, groups, length and 100·p, the percentage of *easy* tokens.

    The monoid is not part of their name: they have one only.

    Raises:
        ValueError: p that is no whole percentage.

    Examples:
        >>> bin_name(word_problem("A5xM", p=0.9), 256)
        'train_A5_L256_P090.bin'
    """
    percent = round(100 * problem.p)
    require(abs(percent - 100 * problem.p) < 1e-9, "p", problem.p, "a whole percentage to be written in a file name")
    require(len(problem.groups) > 0, "problem", problem.name, "one with a group, which the file name tells")
    groups = "x".join(group.name for group in problem.groups)
    return f"{split}_{groups}_L{length}_P{percent:03d}.bin"


def problem_of(path: str | Path, monoid: str | None = None) -> WordProblem:
    """Return the word problem that a file name tells: ``train_A5_L256_P090.bin`` or ``S5=32.csv``.

    Args:
        path: of the file; the file itself is not read.
        monoid: monoid factors of a .bin file, whose name leaves them out: "M" in the authors' data.

    Raises:
        ValueError: a name of another form.
    """
    name = Path(path).name
    found = BIN_NAME.fullmatch(name)
    if found:
        return word_problem(found["group"], monoid, int(found["percent"]) / 100)
    found = CSV_NAME.fullmatch(name)
    require(found is not None, "file name", name, "like train_A5_L256_P090.bin or S5=32.csv")
    assert found is not None
    return word_problem(found["group"], monoid)


def read_bin(path: str | Path, problem: WordProblem | None = None) -> Words:
    """Read a file of the authors' script: ``torch.save`` of inputs (N, L), targets (N, L) and vocab_size (1,), int64.

    Args:
        path: the file.
        problem: what it should hold; sizes and every target are compared with it. None checks the form only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a truncated file, or another problem; shifted targets and left products are named.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is truncated or no file of torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is truncated or no file of torch.save: {_first_line(error)}") from error
    known = isinstance(content, dict) and all(isinstance(content.get(key), Tensor) for key in BIN_KEYS)
    if not known:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must hold a dict of the tensors {', '.join(BIN_KEYS)}, found {found}")
    size = content["vocab_size"]
    require(size.numel() == 1 and int(size) > 0, f"vocab_size in {path}", size.tolist(), "one number >= 1")
    words = Words(content["inputs"], content["targets"])
    _check_form(path, words, int(size))
    if problem is not None:
        _check_problem(path, words, problem, int(size))
    return words


def write_bin(path: str | Path, words: Words, problem: WordProblem) -> None:
    """Write a file that the authors' script reads, all of it or none.

    Args:
        path: the file; see ``bin_name`` for the authors' name.
        words: sequences of ``problem``.
        problem: what they are; every target is checked.

    Raises:
        ValueError: words that are not of the problem.
    """
    _check_form(path, words, len(problem))
    _check_problem(path, words, problem, len(problem))
    content = {
        "inputs": words.inputs.contiguous(),
        "targets": words.targets.contiguous(),
        "vocab_size": torch.tensor([len(problem)]),
    }
    with _replacing(path) as part:
        torch.save(content, part)


def read_csv(path: str | Path, problem: WordProblem | None = None) -> Words:
    """Read a file of the word problem benchmark (Merrill et al. 2024): a header seed,input,target, then a line per
    sequence with elements and running products as numbers between spaces.

    A sequence starts with its first element; the benchmark's training script puts a start token before it, its files
    do not.

    Args:
        path: the file, such as ``S5=32.csv``.
        problem: what it should hold; every target is compared with it. None checks the form only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a truncated line, an empty file, or another problem.
    """
    inputs, targets = [], []
    with open(path, newline="", encoding="utf-8") as file:
        try:
            lines = csv.reader(file)
            header = next(lines, [])
            _check_header(path, header)
            for line in lines:
                inputs.append(_numbers(path, lines.line_num, line, 1))
                targets.append(_numbers(path, lines.line_num, line, 2))
                same = len(inputs[-1]) == len(targets[-1]) == len(inputs[0])
                require(
                    same, f"{path}, line {lines.line_num}", "another length", f"{len(inputs[0])} inputs and targets"
                )
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is no text of comma-separated values: {_first_line(error)}") from error
    require(len(inputs) > 0, f"{path}", "a header alone", "at least one sequence")
    words = Words(torch.tensor(inputs), torch.tensor(targets))
    size = 1 + int(max(words.inputs.max(), words.targets.max())) if problem is None else len(problem)
    _check_form(path, words, size)
    if problem is not None:
        _check_problem(path, words, problem, size)
    return words


def write_csv(path: str | Path, words: Words, seed: int = 0) -> None:
    """Write a file in the format of the word problem benchmark, all of it or none.

    Raises:
        ValueError: words that are not two equal (N, L) int64 tensors, or a negative seed.
    """
    whole("seed", seed, 0, None)
    _check_form(path, words, 1 + max(int(part.max()) if part.numel() else 0 for part in words))
    rows = zip(words.inputs.tolist(), words.targets.tolist(), strict=True)
    with _replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        writer.writerows([seed, " ".join(map(str, x)), " ".join(map(str, y))] for x, y in rows)


def _check_header(path: str | Path, header: list[str]) -> None:
    if header and header[0].startswith("version https://git-lfs"):
        raise ValueError(f"{path} is a pointer to the data, not the data: fetch it with `git lfs pull`")
    require(header == CSV_HEADER, f"first line of {path}", ",".join(header), ",".join(CSV_HEADER))


def _numbers(path: str | Path, number: int, line: list[str], column: int) -> list[int]:
    words = line[column].split() if len(line) == len(CSV_HEADER) else []
    ok = len(words) > 0 and all(word.isdecimal() for word in words)
    require(ok, f"{path}, line {number}", ",".join(line)[:60], "a seed, inputs and targets: is the file truncated?")
    return [int(word) for word in words]


def _check_form(path: str | Path, words: Words, size: int) -> None:
    for name, tokens in words._asdict().items():
        where = f"{name} of {path}"
        require(tokens.dtype == torch.int64, f"dtype of {where}", tokens.dtype, "torch.int64")
        ok = tokens.ndim == 2 and tokens.numel() > 0
        require(ok, f"shape of {where}", tuple(tokens.shape), "(N, L) with N and L >= 1")
        low, high = (int(end) for end in torch.aminmax(tokens))
        require(low >= 0 and high < size, where, (low, high), f"in 0..{size - 1}")
    shapes = tuple(tuple(tokens.shape) for tokens in words)
    require(shapes[0] == shapes[1], f"shapes of inputs and targets of {path}", shapes, "equal")


def _check_problem(path: str | Path, words: Words, problem: WordProblem, size: int) -> None:
    require(size == len(problem), f"vocab_size of {path}", size, f"{len(problem)}, as {problem.name} has it")
    right = problem.targets(words.inputs)
    if torch.equal(right, words.targets):
        return
    reason = "they are not the running products of the inputs"
    if words.targets.shape[1] > 1 and torch.equal(right[:, 1:], words.targets[:, :-1]):
        reason = "they are shifted by one position, target j must include input j"
    elif torch.equal(_left_products(problem, words.inputs), words.targets):
        reason = "the products are taken from the left (x_j times the product so far), not from the right"
    raise ValueError(f"targets of {path} do not fit {problem.name}: {reason}")


def _left_products(problem: WordProblem, inputs: Tensor) -> Tensor:
    table = torch.from_numpy(problem.algebra.table.copy())
    out = [inputs[:, 0]]
    for token in inputs[:, 1:].unbind(1):
        out.append(table[token, out[-1]])
    return torch.stack(out, dim=1)


@contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write to that becomes ``path`` when all is written, and vanishes when not."""
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
