"""The authors' .bin files and the benchmark's CSV files: round trips, known content, other formats."""

from __future__ import annotations

import random

import pytest
import torch

from examples.state_tracking.data import (
    Words,
    bin_name,
    problem_of,
    read_bin,
    read_csv,
    word_problem,
    write_bin,
    write_csv,
)


@pytest.fixture
def problem():
    return word_problem("A5xM", p=0.9)


@pytest.fixture
def words(problem):
    return problem.draw(6, 11, seed=2)


def equal(a, b):
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def left_products(problem, x):
    """Multiply from the other side, by a loop."""
    table, out = problem.algebra.table, []
    for row in x.tolist():
        state, states = 0, []
        for element in row:
            state = int(table[element, state])
            states.append(state)
        out.append(states)
    return torch.tensor(out)


def test_bin_round_trip(problem, words, tmp_path):
    path = tmp_path / bin_name(problem, 11, "test")
    assert path.name == "test_A5_L11_P090.bin"
    write_bin(path, words, problem)
    assert equal(read_bin(path, problem), words)
    assert equal(read_bin(path), words)
    told = problem_of(path, monoid="M")
    assert (told.name, told.p) == ("A5xM", 0.9)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_bin_holds_what_the_authors_script_reads(problem, words, tmp_path):
    path = tmp_path / "train_A5_L11_P090.bin"
    write_bin(path, words, problem)
    content = torch.load(path, weights_only=True)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in content.items()} == {
        "inputs": (torch.int64, (6, 11)),
        "targets": (torch.int64, (6, 11)),
        "vocab_size": (torch.int64, (1,)),
    }
    assert content["vocab_size"].item() == 240


def test_a_view_is_written_without_its_base(problem, tmp_path):
    many = problem.draw(1000, 64)
    path = tmp_path / "train_A5_L4_P090.bin"
    write_bin(path, Words(many.inputs[:2, :4], many.targets[:2, :4]), problem)
    assert path.stat().st_size < 4000


def test_csv_round_trip(tmp_path):
    problem = word_problem("S5")
    words = problem.draw(4, 32, seed=9)
    path = tmp_path / "S5=32.csv"
    write_csv(path, words, seed=9)
    assert problem_of(path).name == "S5"
    assert equal(read_csv(path, problem), words)
    assert equal(read_csv(path), words)


def test_csv_known_content(tmp_path):
    path = tmp_path / "Z3=4.csv"
    write_csv(path, Words(torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 2, 1, 1]])), seed=7)
    assert path.read_text() == "seed,input,target\n7,1 1 2 0,1 2 1 1\n"
    path.write_text('seed,input,target\r\n7,"1 1 2 0",1 2 1 1\r\n8,0 0 0 2,0 0 0 2\r\n')
    assert read_csv(path, word_problem("Z3")).inputs.tolist() == [[1, 1, 2, 0], [0, 0, 0, 2]]


def test_names():
    assert problem_of("some/where/S3_x_Z4=10.csv").name == "S3xZ4"
    assert problem_of("train_S5_L32_P000.bin").name == "S5"
    for wrong in ["train.bin", "S5.csv", "train_A5_L256_P9.bin"]:
        with pytest.raises(ValueError, match=r"file name must be like train_A5_L256_P090\.bin or S5=32\.csv"):
            problem_of(wrong)
    with pytest.raises(ValueError, match="unknown group or monoid 'B5'"):
        problem_of("train_B5_L256_P090.bin")
    with pytest.raises(ValueError, match="p must be a whole percentage"):
        bin_name(word_problem("A5", p=0.125), 16)
    with pytest.raises(ValueError, match="problem must be one with a group"):
        bin_name(word_problem("M"), 16)


def test_missing_files(tmp_path):
    for read in (read_bin, read_csv):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")


def test_truncated_bin(problem, words, tmp_path):
    path = tmp_path / "file.bin"
    write_bin(path, words, problem)
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"file\.bin is truncated or no file of torch\.save"):
            read_bin(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.zeros(3), "must hold a dict of the tensors inputs, targets, vocab_size, found Tensor"),
        ({"inputs": torch.zeros(1, 2).long()}, r"found \['inputs'\]"),
        ({"inputs": [1], "targets": [1], "vocab_size": 3}, "must hold a dict of the tensors"),
    ],
)
def test_other_contents(content, says, tmp_path):
    torch.save(content, tmp_path / "file.bin")
    with pytest.raises(ValueError, match=says):
        read_bin(tmp_path / "file.bin")


@pytest.mark.parametrize("junk", [b"hello, world\n" * 9, b"\x80\x04]\x94.", b"seed,input,target\n1,0 1,0 1\n"])
def test_bin_of_another_format(junk, tmp_path):
    (tmp_path / "file.bin").write_bytes(junk)
    with pytest.raises(ValueError, match=r"file\.bin (is truncated or no file of|must hold)"):
        read_bin(tmp_path / "file.bin")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("inputs", torch.zeros(2, 3), "dtype of inputs of .* must be torch.int64, got torch.float32"),
        ("inputs", torch.zeros(6).long(), r"shape of inputs of .* must be \(N, L\)"),
        ("inputs", torch.zeros(2, 0).long(), r"shape of inputs of .* must be \(N, L\) with N and L >= 1"),
        (
            "targets",
            torch.zeros(2, 4).long(),
            r"shapes of inputs and targets .* must be equal, got \(\(2, 3\), \(2, 4\)\)",
        ),
        ("targets", torch.full((2, 3), 6), r"targets of .* must be in 0\.\.5, got \(6, 6\)"),
        ("inputs", torch.full((2, 3), -1), r"inputs of .* must be in 0\.\.5"),
        ("vocab_size", torch.tensor([60, 4]), "vocab_size in .* must be one number >= 1"),
        ("vocab_size", torch.tensor([60]), "vocab_size of .* must be 6, as S3 has it, got 60"),
    ],
)
def test_broken_bins(key, value, says, tmp_path):
    zeros = torch.zeros(2, 3).long()
    torch.save({"inputs": zeros, "targets": zeros, "vocab_size": torch.tensor([6]), key: value}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match=says):
        read_bin(tmp_path / "file.bin", word_problem("S3"))


def test_targets_of_another_convention(tmp_path):
    problem = word_problem("S5")
    x, y = problem.draw(3, 9)
    following = problem.targets(torch.cat([x, x[:, :1]], dim=1))[:, 1:]
    cases = {"shifted by one position": following, "taken from the left": left_products(problem, x)}
    cases["not the running products"] = y.flip(0)
    for says, targets in cases.items():
        with pytest.raises(ValueError, match=f"do not fit S5: .*{says}"):
            write_bin(tmp_path / "no.bin", Words(x, targets), problem)
        write_csv(tmp_path / "S5=9.csv", Words(x, targets))
        with pytest.raises(ValueError, match=f"do not fit S5: .*{says}"):
            read_csv(tmp_path / "S5=9.csv", problem)
    assert not (tmp_path / "no.bin").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line of .* must be seed,input,target, got ''"),
        ("a,b\n1,2\n", "first line of .* must be seed,input,target, got 'a,b'"),
        ("seed,input,target\n", "must be at least one sequence, got 'a header alone'"),
        ("seed,input,target\n1,0 1 2,0 1 0\n1,0 1", "line 3 must be .*is the file truncated"),
        ("seed,input,target\n1,0 1 2,0 1 0\n1,0 1 2,0", "line 3 must be 3 inputs and targets"),
        ("seed,input,target\n1,0 x 2,0 1 0\n", "line 2 must be a seed, inputs and targets"),
        ("seed,input,target\n1,0 -1,0 1\n", "line 2 must be a seed, inputs and targets"),
        ("seed,input,target\n1,0 3,0 0\n", r"inputs of .* must be in 0\.\.2, got \(0, 3\)"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer .*`git lfs pull"),
    ],
)
def test_broken_csvs(text, says, tmp_path):
    (tmp_path / "Z3=3.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_csv(tmp_path / "Z3=3.csv", word_problem("Z3"))


def test_csv_of_another_format(tmp_path):
    (tmp_path / "Z3=3.csv").write_bytes(b"PK\x03\x04\xff\xfe" + random.Random(0).randbytes(50))
    with pytest.raises(ValueError, match=r"no text of comma-separated values|first line of"):
        read_csv(tmp_path / "Z3=3.csv")


def test_a_full_disk_leaves_the_old_file(problem, words, tmp_path, monkeypatch):
    path = tmp_path / "train_A5_L11_P090.bin"
    write_bin(path, words, problem)

    def full(content, file):
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_bin(path, problem.draw(6, 11, seed=3), problem)
    assert equal(read_bin(path, problem), words)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
