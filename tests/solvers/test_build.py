"""Machines where a C++ file cannot be built, or not be kept; compilers with arguments; caches that were damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from deqlm_solvers.native.build import COMPILERS, build

COMPILER = next(filter(shutil.which, COMPILERS), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEQLM_CACHE", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def source_of(folder: Path, number: str) -> Path:
    source = folder / "number.cpp"
    source.write_text(f'extern "C" int number() {{ return {number}; }}')
    return source


@pytest.mark.parametrize("trouble", ["compiler", "cache", "home", "folders"])
def test_machines_that_cannot_build(trouble, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("no home")

    def no_folder(prefix):
        raise FileNotFoundError("no temporary folder")

    text = tmp_path / "text"
    text.write_text("neither a program nor a folder")
    text.chmod(0o700)
    source = source_of(tmp_path, "1")
    monkeypatch.setenv("DEQLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if trouble == "compiler":
        monkeypatch.setenv("CXX", str(text))
    elif trouble == "home":
        monkeypatch.delenv("DEQLM_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("DEQLM_CACHE", str(text))
    if trouble == "folders":
        monkeypatch.setattr(tempfile, "mkdtemp", no_folder)
    library, why = build(source)
    if trouble in ("cache", "home"):
        assert library.functions.number() == 1
    else:
        assert library is None
        assert "cannot run or has no folder" in why


def test_a_note_half_written_is_no_error(tmp_path, cache):
    source = source_of(tmp_path, "2")
    made = build(source).library
    made.path.with_suffix(".seconds").write_text("")
    assert build.__wrapped__(source).library.cached


def test_cxx_may_have_arguments(tmp_path, cache, monkeypatch):
    source = source_of(tmp_path, "NUMBER")
    monkeypatch.setenv("CXX", f"{COMPILER} -DNUMBER=3")
    assert build.__wrapped__(source).library.functions.number() == 3
    monkeypatch.setenv("CXX", f"  {COMPILER} '-DNUMBER=(2 + 2)' ")
    assert build.__wrapped__(source).library.functions.number() == 4
    assert len(list(cache.glob("*.so"))) == 2


def test_cxx_may_be_a_launcher_or_a_path_with_spaces(tmp_path, cache, monkeypatch):
    source = source_of(tmp_path, "5")
    launcher = tmp_path / "my launcher"
    launcher.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/launched"\nexec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{launcher}' {COMPILER}")
    assert build.__wrapped__(source).library.functions.number() == 5
    assert set((tmp_path / "launched").read_text().split()) == {COMPILER}
    direct = tmp_path / "my compiler"
    os.symlink(shutil.which(COMPILER), direct)
    monkeypatch.setenv("CXX", str(direct))
    assert build.__wrapped__(source).library.functions.number() == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nonesuch g++", "no C++ compiler found: $CXX is 'nonesuch g++', and there is no program 'nonesuch'"),
        ("g++ 'half", 'no C++ compiler found: $CXX is "g++ \'half", which cannot be split into words (No closing'),
    ],
)
def test_a_cxx_that_is_no_program_says_so(tmp_path, cache, monkeypatch, given, said):
    monkeypatch.setenv("CXX", given)
    library, why = build.__wrapped__(source_of(tmp_path, "6"))
    assert library is None
    assert why.startswith(said)


def test_no_compiler_at_all(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("PATH", str(tmp_path))
    why = build.__wrapped__(source_of(tmp_path, "7")).why
    assert why == "no C++ compiler found: none of c++, g++, clang++ is a program here, and $CXX names no other"


@pytest.mark.parametrize("damage", ["empty", "header", "half", "last byte", "digest lost", "digest empty"])
def test_a_damaged_cache_is_built_anew_once(tmp_path, cache, monkeypatch, damage):
    source = source_of(tmp_path, "8")
    made = build.__wrapped__(source).library.path
    # in a folder of its own: what a process has loaded from a path is not read again
    copied = Path(shutil.copytree(cache, tmp_path / "copied"))
    monkeypatch.setenv("DEQLM_CACHE", str(copied))
    library = copied / made.name
    whole = made.read_bytes()
    kept = {"empty": 0, "header": 100, "half": len(whole) // 2, "last byte": len(whole) - 1}
    if damage in kept:
        library.write_bytes(whole[: kept[damage]])
    elif damage == "digest lost":
        library.with_suffix(".sha256").unlink()
    else:
        library.with_suffix(".sha256").write_text("")
    first, second = build.__wrapped__(source).library, build.__wrapped__(source).library
    assert (first.cached, second.cached) == (False, True)
    assert first.functions.number() == second.functions.number() == 8
    assert sorted(path.suffix for path in copied.iterdir()) == [".seconds", ".sha256", ".so"]
