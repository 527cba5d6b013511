"""Data for CatbAbI: the tasks of bAbI under one vocabulary, as one stream of stories with questions in them."""

from examples.catbabi.data.corpus import EOS, PAD, Corpus, Count, Stories, joint_vocabulary, load, table
from examples.catbabi.data.generate import make_story, write_folder
from examples.catbabi.data.stories import Story, find_files, read_folder, read_stories
from examples.catbabi.data.stream import IGNORE, Batch, Windows

__all__ = [
    "EOS",
    "IGNORE",
    "PAD",
    "Batch",
    "Corpus",
    "Count",
    "Stories",
    "Story",
    "Windows",
    "find_files",
    "joint_vocabulary",
    "load",
    "make_story",
    "read_folder",
    "read_stories",
    "table",
    "write_folder",
]
