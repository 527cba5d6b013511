"""Made-up stories: answers against an oracle that reads the text alone, and knows nothing of how it was made."""

from __future__ import annotations

import random
import re

import pytest

from examples.catbabi.data import find_files, load, make_story, write_folder

ASKED = re.compile(r"\d+ (?P<question>.*\?)\t(?P<answer>\S+)\t(?P<facts>[\d ]+)")
STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
MOVES = r"(?P<who>[A-Z]\w+) (went|moved|journeyed|travelled) to the (?P<where>\w+)\."
TAKES = r"(?P<who>[A-Z]\w+) (took|got|grabbed|picked up) the (?P<what>\w+)\."
DROPS = r"(?P<who>[A-Z]\w+) (dropped|put down|discarded|left) the (?P<what>\w+)\."


def last(facts, pattern, **wanted):
    """Return the line and groups of the latest fact that matches, or None."""
    for line in sorted(facts, reverse=True):
        found = re.fullmatch(pattern, facts[line])
        if found and all(found[name] == value for name, value in wanted.items()):
            return line, found
    return None


def place_of(facts, who):
    return last(facts, MOVES, who=who)[1]["where"]


def place_of_thing(facts, thing):
    taken, dropped = last(facts, TAKES, what=thing), last(facts, DROPS, what=thing)
    line, found = max((each for each in (taken, dropped) if each), key=lambda each: each[0])
    past = facts if dropped is None or dropped[0] != line else {k: v for k, v in facts.items() if k < line}
    return place_of(past, found["who"])


def count_of(facts, who):
    things = {found["what"] for text in facts.values() if (found := re.fullmatch(TAKES, text))}
    held = 0
    for thing in things:
        taken, dropped = last(facts, TAKES, what=thing), last(facts, DROPS, what=thing)
        held += taken[1]["who"] == who and (dropped is None or dropped[0] < taken[0])
    return ["none", "one", "two", "three"][held]


def path_of(facts, start, end):
    """Place the rooms and walk every two steps that stay in rooms; exactly one walk may arrive."""
    spots = {start: (0, 0)}
    while len(spots) < len(facts) + 1:
        for text in facts.values():
            a, way, b = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", text).groups()
            dx, dy = STEPS[way]
            if b in spots:
                spots.setdefault(a, (spots[b][0] + dx, spots[b][1] + dy))
            elif a in spots:
                spots[b] = (spots[a][0] - dx, spots[a][1] - dy)
    assert len(set(spots.values())) == len(spots)
    walks = []
    for one, (dx, dy) in STEPS.items():
        for two, (ex, ey) in STEPS.items():
            if (dx, dy) in spots.values() and (dx + ex, dy + ey) == spots[end]:
                walks.append(f"{one[0]},{two[0]}")
    (walk,) = walks
    return walk


def oracle(question, facts):
    if found := re.fullmatch(r"Where is ([A-Z]\w+)\?", question):
        return place_of(facts, found[1])
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return place_of_thing(facts, found[1])
    if found := re.fullmatch(r"Is ([A-Z]\w+) in the (\w+)\?", question):
        return "yes" if place_of(facts, found[1]) == found[2] else "no"
    if found := re.fullmatch(r"How many objects is ([A-Z]\w+) holding\?", question):
        return count_of(facts, found[1])
    found = re.fullmatch(r"What is the path from (\w+) to (\w+)\?", question)
    return path_of(facts, found[1], found[2])


@pytest.mark.parametrize("task", [1, 2, 6, 7, 19])
def test_answers_and_supporting_facts(task):
    rng = random.Random(task)
    answers = set()
    for _ in range(150):
        facts = {}
        lines = make_story(task, rng)
        for number, line in enumerate(lines, start=1):
            assert line.startswith(f"{number} ")
            asked = ASKED.fullmatch(line)
            if not asked:
                facts[number] = line.partition(" ")[2]
                continue
            assert asked["answer"] == oracle(asked["question"], facts)
            supporting = [int(fact) for fact in asked["facts"].split()]
            assert supporting == sorted(set(supporting))
            assert set(supporting) <= set(facts)
            if task in (1, 2, 6):  # these alone are enough
                assert asked["answer"] == oracle(asked["question"], {fact: facts[fact] for fact in supporting})
            answers.add(asked["answer"])
        assert ASKED.fullmatch(lines[-1])
    assert len(answers) >= {1: 6, 2: 6, 6: 2, 7: 3, 19: 10}[task]


def test_nobody_takes_what_is_elsewhere():
    rng = random.Random(5)
    for _ in range(200):
        facts = {}
        for number, line in enumerate(make_story(2, rng), start=1):
            text = line.partition(" ")[2]
            found = re.fullmatch(TAKES, text)
            if found and last(facts, TAKES, what=found["what"]):
                assert last(facts, DROPS, what=found["what"])[0] > last(facts, TAKES, what=found["what"])[0]
                assert place_of_thing(facts, found["what"]) == place_of(facts, found["who"])
            facts[number] = text


def test_the_same_seed_writes_the_same_files(tmp_path):
    first = write_folder(tmp_path / "a", stories=3, held_out=2, seed=4)
    second = write_folder(tmp_path / "b", stories=3, held_out=2, seed=4)
    other = write_folder(tmp_path / "c", stories=3, held_out=2, seed=5)
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 15
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes() != (other / name).read_bytes()
    texts = {(first / name).read_text() for name in names}
    assert len(texts) == 15


def test_few_tasks(tmp_path):
    folder = write_folder(tmp_path / "new" / "babi", tasks=[6, 19], stories=2, held_out=1)
    assert list(find_files(folder)) == [6, 19]
    assert {split: len(stories) for split, stories in load(folder).splits.items()} == {
        "train": 4,
        "valid": 2,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": [3]}, r"task must be one of \[1, 2, 6, 7, 19\], the tasks that are made here, got 3"),
        ({"stories": 0}, "stories must be a whole number >= 1, got 0"),
        ({"held_out": 0}, "held_out must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
    ],
)
def test_wrong_options(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        write_folder(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
