"""All tasks under one vocabulary, as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deqlm_solvers.core.checks import require, whole
from examples.catbabi.data.stories import SPLITS, Story, read_folder
from examples.state_tracking.data.vocabulary import Vocabulary

PAD, EOS = 0, 1
SPECIAL = ("<pad>", "<eos>")


class Count(NamedTuple):
    """What one task holds: stories, questions and tokens, where every story counts one <eos>."""

    stories: int
    questions: int
    tokens: int


class Stories:
    """Stories of one split as one array of tokens, each story behind an <eos>.

    Args:
        stories: in any order; the streams shuffle.
        vocabulary: knows every word.

    Raises:
        ValueError: no story, or a word that the vocabulary lacks.
    """

    def __init__(self, stories: Iterable[Story], vocabulary: Vocabulary) -> None:
        tokens: list[int] = []
        lengths, tasks = [], []
        for story in stories:
            tokens.append(EOS)
            tokens.extend(map(vocabulary.token, story.words))
            lengths.append(1 + len(story.words))
            tasks.append(story.task)
        require(len(lengths) > 0, "stories", [], "at least one story")
        self.tokens = np.array(tokens, dtype=np.int32)  # (T,)
        self.lengths = np.array(lengths)  # (N,)
        self.starts = self.lengths.cumsum() - self.lengths  # (N,)
        self.tasks = np.array(tasks)  # (N,)
        self.vocabulary = vocabulary
        self.question = vocabulary.token("?") if "?" in vocabulary else -1

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Stories({len(self)} stories, {len(self.tokens)} tokens)"

    def openings(self, length: int) -> Stories:
        """Return of each story what fits: its beginning up to the last answer within ``length`` tokens, <eos> counted.

        A story whose first answer comes later is left out.

        Args:
            length: most tokens of an opening, at least 1.

        Raises:
            ValueError: no story has an answer so early.
        """
        whole("length", length, 1)
        names = self.vocabulary.names
        found = []
        for start, most, task in zip(self.starts.tolist(), self.lengths.tolist(), self.tasks.tolist(), strict=True):
            tokens = self.tokens[start : start + min(length, most)]
            asked = (tokens[:-1] == self.question).nonzero()[0]
            if len(asked):
                found.append(Story(task, tuple(names[token] for token in tokens[1 : asked[-1] + 2])))
        require(len(found) > 0, "length", length, "long enough for the first answer of a story")
        return Stories(found, self.vocabulary)

    def counts(self) -> dict[int, Count]:
        """Return the counts by task."""
        asked = np.add.reduceat((self.tokens == self.question).astype(np.int64), self.starts)
        return {
            int(task): Count(
                *(int(part[self.tasks == task].sum()) for part in (np.ones_like(asked), asked, self.lengths))
            )
            for task in np.unique(self.tasks)
        }


class Corpus(NamedTuple):
    """Stories by split, and the vocabulary that they share."""

    splits: Mapping[str, Stories]
    vocabulary: Vocabulary


def joint_vocabulary(stories: Iterable[Story]) -> Vocabulary:
    """Return <pad>, <eos>, then every word in the order of its first appearance.

    CatbAbI's own vocabulary holds the numbers of the tasks too, by accident; they are no tokens and are left out here.
    """
    words = dict.fromkeys(word for story in stories for word in story.words)
    return Vocabulary([*SPECIAL, *words])


def load(
    folder: str | Path,
    *,
    tasks: Iterable[int] | None = None,
    splits: Iterable[str] = SPLITS,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Read a bAbI folder as one corpus.

    Args:
        folder: see ``read_folder``.
        tasks: the tasks to read; None reads all.
        splits: the splits to read; the vocabulary made here knows these only.
        vocabulary: that of a trained model; None makes one from all stories read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: files of another format, or words that ``vocabulary`` lacks: data of another model.
    """
    stories = read_folder(folder, tasks=tasks, splits=splits)
    if vocabulary is None:
        vocabulary = joint_vocabulary(story for split in stories.values() for story in split)
    else:
        require(vocabulary.names[:2] == SPECIAL, "vocabulary", vocabulary.names[:2], f"one that begins with {SPECIAL}")
        lacking = {word for split in stories.values() for story in split for word in story.words} - set(
            vocabulary.names
        )
        some = ", ".join(sorted(lacking)[:5])
        rule = f"one that knows all words of {folder}; it lacks {some}: is it that of another corpus?"
        require(not lacking, "vocabulary", vocabulary, rule)
    return Corpus({split: Stories(each, vocabulary) for split, each in stories.items()}, vocabulary)


def table(corpus: Corpus) -> str:
    """Return stories, questions and tokens per task and split as text."""
    lines = [
        f"{'task':>5} "
        + " ".join(f"{split + ' stories':>14} {'questions':>9} {'tokens':>9}" for split in corpus.splits)
    ]
    counts = {split: stories.counts() for split, stories in corpus.splits.items()}
    tasks = sorted({task for each in counts.values() for task in each})
    for task in tasks:
        row = [counts[split].get(task, Count(0, 0, 0)) for split in corpus.splits]
        lines.append(f"{task:>5} " + " ".join(f"{c.stories:>14} {c.questions:>9} {c.tokens:>9}" for c in row))
    totals = [Count(*map(sum, zip(*each.values(), strict=True))) for each in counts.values()]
    lines.append(f"{'all':>5} " + " ".join(f"{c.stories:>14} {c.questions:>9} {c.tokens:>9}" for c in totals))
    return "\n".join(lines)
