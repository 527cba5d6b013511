"""Small stories like those of bAbI, in the same files, for tests and for those who have no data.

Five kinds of task under the numbers that bAbI gives them: 1 one supporting fact, 2 two supporting facts, 6 yes or no,
7 counting, 19 finding a path. They are simpler than the originals and no replacement for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from deqlm_solvers.core.checks import require, whole
from examples.catbabi.data.stories import SPLITS

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("kitchen", "garden", "office", "hallway", "bathroom", "bedroom")
OBJECTS = ("football", "milk", "apple")
NUMBERS = ("none", "one", "two", "three")
WENT = ("went to", "moved to", "journeyed to", "travelled to")
TOOK = ("took", "got", "grabbed", "picked up")
DROPPED = ("dropped", "put down", "discarded", "left")
STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class _World:
    """People in places with objects; everything that happens is written down as a numbered line."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lines: list[str] = []
        self.place: dict[str, tuple[str, int]] = {}  # person -> place, line that says so
        self.taken: dict[str, tuple[str, int]] = {}  # object -> person, line
        self.left: dict[str, tuple[str, list[int]]] = {}  # object -> place, lines that say so

    def say(self, sentence: str) -> int:
        self.lines.append(f"{len(self.lines) + 1} {sentence}.")
        return len(self.lines)

    def ask(self, question: str, answer: str, facts: Iterable[int]) -> None:
        numbers = " ".join(map(str, facts))
        self.lines.append(f"{len(self.lines) + 1} {question}?\t{answer}\t{numbers}")

    def move(self) -> None:
        person = self.rng.choice(PEOPLE)
        place = self.rng.choice([place for place in PLACES if place != self.place.get(person, ("", 0))[0]])
        self.place[person] = (place, self.say(f"{person} {self.rng.choice(WENT)} the {place}"))

    def handle(self) -> None:
        """Take or drop something if anything can be, else move."""
        drops = [(person, thing, True) for thing, (person, _) in self.taken.items()]
        takes = [
            (person, thing, False)
            for person, (place, _) in self.place.items()
            for thing in OBJECTS
            if thing not in self.taken and self.left.get(thing, (place,))[0] == place
        ]
        if not (drops or takes):
            return self.move()
        person, thing, drop = self.rng.choice(drops + takes)
        if drop:
            line = self.say(f"{person} {self.rng.choice(DROPPED)} the {thing}")
            del self.taken[thing]
            self.left[thing] = (self.place[person][0], [self.place[person][1], line])
        else:
            self.taken[thing] = (person, self.say(f"{person} {self.rng.choice(TOOK)} the {thing}"))
            self.left.pop(thing, None)

    def live(self, lines: int) -> None:
        for _ in range(lines):
            self.move() if self.rng.random() < 0.5 else self.handle()

    def where_is(self, thing: str) -> tuple[str, list[int]]:
        if thing in self.taken:
            person, line = self.taken[thing]
            place, moved = self.place[person]
            return place, sorted([moved, line])
        return self.left[thing]


def _one_fact(rng: random.Random) -> list[str]:
    world = _World(rng)
    for _ in range(5):
        world.move()
        world.move()
        person = rng.choice(list(world.place))
        place, line = world.place[person]
        world.ask(f"Where is {person}", place, [line])
    return world.lines


def _two_facts(rng: random.Random) -> list[str]:
    world = _World(rng)
    for _ in range(5):
        world.live(2)
        while not world.taken and not world.left:
            world.handle()
        thing = rng.choice([*world.taken, *world.left])
        world.ask(f"Where is the {thing}", *world.where_is(thing))
    return world.lines


def _yes_no(rng: random.Random) -> list[str]:
    world = _World(rng)
    for _ in range(5):
        world.move()
        world.move()
        person = rng.choice(list(world.place))
        place, line = world.place[person]
        asked = place if rng.random() < 0.5 else rng.choice([other for other in PLACES if other != place])
        world.ask(f"Is {person} in the {asked}", "yes" if asked == place else "no", [line])
    return world.lines


def _counting(rng: random.Random) -> list[str]:
    world = _World(rng)
    touched: dict[str, list[int]] = {}
    for _ in range(5):
        before = len(world.lines)
        world.live(2)
        while not touched and not world.taken:
            world.handle()
        for number, line in enumerate(world.lines[before:], start=before + 1):
            if line.split()[-1].rstrip(".") in OBJECTS:
                touched.setdefault(line.split()[1], []).append(number)
        person = rng.choice(list(touched))
        held = sum(holder == person for holder, _ in world.taken.values())
        world.ask(f"How many objects is {person} holding", NUMBERS[held], touched[person])
    return world.lines


def _path(rng: random.Random) -> list[str]:
    """Place rooms on a grid, each beside another, until two of them are joined by one single way of two steps."""
    while True:
        rooms = rng.sample(PLACES, 5)
        spots = {rooms[0]: (0, 0)}
        edges: list[tuple[str, str, str]] = []  # room, direction seen from the neighbour, neighbour
        for room in rooms[1:]:
            other, way = rng.choice(
                [(at, way) for at in spots for way in STEPS if _beside(spots[at], way) not in spots.values()]
            )
            spots[room] = _beside(spots[other], way)
            edges.append((room, way, other))
        rng.shuffle(edges)
        ways = {(other, room): (way, k + 1) for k, (room, way, other) in enumerate(edges)}
        ways |= {(room, other): (OPPOSITE[way], line) for (other, room), (way, line) in ways.items()}
        pairs = [(a, b, c) for a, b in ways for other, c in ways if other == b and c != a]
        rng.shuffle(pairs)
        for a, b, c in pairs:
            (first, line), (second, next_line) = ways[a, b], ways[b, c]
            if first == second or _beside(spots[a], second) not in spots.values():
                world = _World(rng)
                for room, way, other in edges:
                    world.say(f"The {room} is {way} of the {other}")
                world.ask(f"What is the path from {a} to {c}", f"{first[0]},{second[0]}", sorted([line, next_line]))
                return world.lines


def _beside(spot: tuple[int, int], way: str) -> tuple[int, int]:
    return spot[0] + STEPS[way][0], spot[1] + STEPS[way][1]


TASKS: dict[int, Callable[[random.Random], list[str]]] = {
    1: _one_fact,
    2: _two_facts,
    6: _yes_no,
    7: _counting,
    19: _path,
}


def make_story(task: int, rng: random.Random) -> list[str]:
    """Return the lines of one story, without line ends.

    Raises:
        ValueError: a task that is not made here.
    """
    require(task in TASKS, "task", task, f"one of {sorted(TASKS)}, the tasks that are made here")
    return TASKS[task](rng)


def write_folder(
    folder: str | Path,
    *,
    tasks: Iterable[int] = tuple(TASKS),
    stories: int = 200,
    held_out: int = 50,
    seed: int = 0,
) -> Path:
    """Write made-up stories as a bAbI folder: qa<task>_<split>.txt. The same seed writes the same files.

    Args:
        folder: made if it is not there.
        tasks: some of 1, 2, 6, 7, 19.
        stories: per task, to train on.
        held_out: per task, to validate and as many to test on.
        seed: of the stories.

    Returns:
        the folder.

    Raises:
        ValueError: an unknown task, or numbers below 1.
    """
    whole("stories", stories, 1)
    whole("held_out", held_out, 1)
    whole("seed", seed, 0, None)
    folder = Path(folder)
    for task in tasks:
        require(task in TASKS, "task", task, f"one of {sorted(TASKS)}, the tasks that are made here")
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            rng = random.Random(f"{seed} {task} {split}")
            count = stories if split == "train" else held_out
            lines = [line for _ in range(count) for line in make_story(task, rng)]
            (folder / f"qa{task}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
