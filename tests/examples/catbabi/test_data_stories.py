"""bAbI files: what is read, that nothing is lost, and files that are something else."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from examples.catbabi.data import (
    EOS,
    Count,
    find_files,
    joint_vocabulary,
    load,
    read_folder,
    read_stories,
    table,
    write_folder,
)

TEXT = """1 Mary moved to the Bathroom.
2 Where is Mary? \tbathroom\t1
3 John went to the hallway.
1 The office is west of the garden.
2 What is the path from garden to office?\tW,N\t1 2
3 How many? \tnone\t3
"""
FIRST = "mary moved to the bathroom . where is mary ? bathroom john went to the hallway ."
LAST = "the office is west of the garden . what is the path from garden to office ? w,n how many ? none"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "qa3_train.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("babi"), stories=7, held_out=3)


def test_words_of_a_file(file):
    """The second story is the last one of the file, which the original parser loses."""
    stories = list(read_stories(file, 3))
    assert [" ".join(story.words) for story in stories] == [FIRST, LAST]
    assert [(story.task, story.questions) for story in stories] == [(3, 1), (3, 2)]


@pytest.mark.parametrize("text", [TEXT.rstrip(), TEXT.replace("\n", "\r\n"), TEXT.replace("? \t", "?\t")])
def test_line_ends_and_blanks_do_not_matter(text, file):
    file.write_bytes(text.encode())
    assert [" ".join(story.words) for story in read_stories(file, 3)] == [FIRST, LAST]


def test_no_story_is_lost(folder):
    for task, splits in find_files(folder).items():
        for split, path in splits.items():
            text = path.read_text()
            stories = read_folder(folder, tasks=[task], splits=[split])[split]
            assert len(stories) == len(re.findall(r"^1 ", text, re.MULTILINE)) == (7 if split == "train" else 3)
            assert sum(story.questions for story in stories) == text.count("?")


def test_the_joint_corpus(folder):
    corpus = load(folder)
    stories = read_folder(folder)
    assert corpus.vocabulary.names[:2] == ("<pad>", "<eos>")
    words = [word for split in ("train", "valid", "test") for story in stories[split] for word in story.words]
    assert corpus.vocabulary.names[2:] == tuple(dict.fromkeys(words))
    for split, each in corpus.splits.items():
        assert len(each) == len(stories[split])
        for i, story in enumerate(stories[split]):
            tokens = each.tokens[each.starts[i] : each.starts[i] + each.lengths[i]]
            assert tokens[0] == EOS
            assert corpus.vocabulary.decode(tokens[1:].tolist()) == list(story.words)
            assert each.tasks[i] == story.task
    counts = corpus.splits["train"].counts()
    assert list(counts) == [1, 2, 6, 7, 19]
    assert counts[1] == Count(stories=7, questions=35, tokens=7 * (1 + 10 * 6 + 5 * 5))
    assert counts[19].questions == 7


@pytest.mark.parametrize(
    ("length", "texts"),
    [
        (12, [FIRST[: FIRST.index(" john")]]),
        (19, [FIRST[: FIRST.index(" john")], LAST[: LAST.index(" how")]]),
        (100, [FIRST[: FIRST.index(" john")], LAST]),
    ],
)
def test_openings_end_with_an_answer(file, length, texts):
    held = load(file.parent, splits=("train",)).splits["train"]
    found = held.openings(length)
    words = held.vocabulary.names
    parts = [found.tokens[start : start + n] for start, n in zip(found.starts, found.lengths, strict=True)]
    assert [" ".join(words[token] for token in part[1:]) for part in parts] == texts
    assert all(part[0] == EOS for part in parts)
    assert found.lengths.max() <= length
    assert found.tasks.tolist() == [3] * len(texts)


def test_all_fits_into_long_openings_and_nothing_into_short_ones(folder):
    held = load(folder, tasks=(1, 6)).splits["train"]
    whole = held.openings(int(held.lengths.max()))
    assert whole.tokens.tolist() == held.tokens.tolist()
    assert whole.counts() == held.counts()
    with pytest.raises(ValueError, match="length must be long enough for the first answer of a story, got 4"):
        held.openings(4)


def test_a_table_of_counts(folder):
    lines = table(load(folder)).splitlines()
    assert len(lines) == 2 + 5
    assert lines[1].split()[:3] == ["1", "7", "35"]
    assert lines[-1].split()[:2] == ["all", "35"]


def test_one_vocabulary_for_all(folder, tmp_path):
    known = load(folder).vocabulary
    again = load(folder, tasks=[6], splits=["test"], vocabulary=known)
    assert again.vocabulary is known
    assert set(again.splits) == {"test"}
    few = joint_vocabulary(read_folder(folder, tasks=[1])["train"])
    with pytest.raises(ValueError, match=r"one that knows all words of .*; it lacks .*: is it that of another corpus"):
        load(folder, vocabulary=few)
    with pytest.raises(ValueError, match="vocabulary must be one that begins with"):
        load(folder, vocabulary=type(known)(known.names[2:]))
    with pytest.raises(ValueError, match=rf"vocab_size of the model must be {len(known)}, got {len(few)}"):
        known.check_model(len(few))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be stories in the format of bAbI, got 'an empty file'"),
        ("\n", r"line 1: start of the line must be the number 1 and a space"),
        ("once upon a time\n", "line 1: start of the line must be the number 1 and a space, got 'once'"),
        ("2 Mary went home.\n", "line 1: number must be 1, or 1 where a story begins, got 2"),
        ("1 Mary went home.\n3 John left.\n", "line 2: number must be 2, or 1 where a story begins, got 3"),
        ("1 Mary went home.\n2 John le", "line 2: sentence must be a statement that ends in '.', .*got 'John le'"),
        ("1 Mary went home.\n2 Where is Mary?", "line 2: sentence must be .* got 'Where is Mary"),
        ("1 Mary went home.\n2 Where is Mary?\thome", "line 2: sentence must be"),
        ("1 Mary went home.\n2 Where is Mary?\thome\t", "line 2: sentence must be"),
        ("1 Mary went home.\n2 Where is Mary?\t\t1\n", "line 2: sentence must be"),
        ("1 Mary went home.\n2 Where is Mary?\tat home\t1\n", "line 2: sentence must be"),
        ("1 Mary went home.\n2 Where is Mary\thome\t1\n", "line 2: sentence must be"),
        ("1 Mary went home.\n2 Where is Mary?\thome\tone\n", "line 2: sentence must be"),
    ],
)
def test_other_formats_and_truncated_files(text, says, tmp_path):
    path = tmp_path / "qa1_test.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"qa1_test.txt.*{says}"):
        list(read_stories(path, 1))


def test_any_cut_is_seen_or_loses_the_cut_line_only(folder):
    """A cut between two lines, or inside the numbers at a line's end, leaves a valid file; every other cut is named."""
    whole = (folder / "qa1_test.txt").read_text()
    cut = folder.parent / "qa1_cut.txt"
    outcomes = Counter()
    for size in random.Random(1).sample(range(1, len(whole)), 60):
        cut.write_text(whole[:size])
        if re.search(r"(\.|\t\d+)\n?$", whole[:size]):
            list(read_stories(cut, 1))
            outcomes["valid"] += 1
            continue
        with pytest.raises(ValueError, match=f"line {whole[:size].count(chr(10)) + 1}: "):
            list(read_stories(cut, 1))
        outcomes["refused"] += 1
    assert outcomes["refused"] > 40


def test_binary_files(tmp_path):
    path = tmp_path / "qa1_test.txt"
    path.write_bytes(b"1 Mary\xff\xfe went home.\n")
    with pytest.raises(ValueError, match="is no text"):
        list(read_stories(path, 1))


def test_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; it must hold qa1_train"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must be a folder with files like qa1_train\.txt, got 'no such file'"):
        load(tmp_path)
    (tmp_path / "en-valid-10k").mkdir()
    with pytest.raises(ValueError, match="it holds the folders en-valid-10k"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"tasks must be among the tasks of .*: 1, 2, 6, 7, 19, got 3"):
        load(folder, tasks=[1, 3])


def test_titles_in_file_names(tmp_path):
    (tmp_path / "qa3_three-supporting-facts_train.txt").write_text(TEXT)
    assert len(read_folder(tmp_path, splits=["train"])["train"]) == 2
    with pytest.raises(ValueError, match=r"splits must be among those of task 3 in .*: \['train'\], got 'valid'"):
        read_folder(tmp_path)
    (tmp_path / "qa3_train.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="files must be one for each task and split"):
        read_folder(tmp_path)
