"""Who else could have written a file that is to be loaded as code."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["make_folder", "untrusted_file", "untrusted_folder"]

OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_folder(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, for this user alone to write to, whatever the umask is."""
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(mode=0o755, exist_ok=True)


def untrusted_folder(folder: Path) -> str:
    """Return why others could put or change files in ``folder``, an absolute path without links; empty if they cannot.

    A folder with the sticky bit, such as ``/tmp``, may be open to all: they cannot touch what is not theirs. On systems
    without users of POSIX nothing is asked.
    """
    if why := _untrusted(folder):
        return why
    for above in folder.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and hasattr(os, "geteuid"):
            return f"everybody may write to {above} (mode {stat.S_IMODE(mode):o})"
    return ""


def untrusted_file(path: Path) -> str:
    """Return why the content of ``path`` could be that of somebody else, or is none; empty if it is a file of ours."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return f"{path} is no plain file"
    return _untrusted(path)


def _untrusted(path: Path) -> str:
    if not hasattr(os, "geteuid"):
        return ""
    at = path.lstat()
    if at.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user, number {at.st_uid}"
    sticky = stat.S_ISDIR(at.st_mode) and at.st_mode & stat.S_ISVTX
    if at.st_mode & OTHERS and not sticky:
        return f"others may write to {path} (mode {stat.S_IMODE(at.st_mode):o})"
    return ""
