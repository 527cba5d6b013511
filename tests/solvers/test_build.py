"""Machines where a C++ file cannot be built, or not be kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from deqlm_solvers.native.build import _compiler, build

pytestmark = pytest.mark.skipif(_compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("trouble", ["compiler", "cache", "home", "folders"])
def test_machines_that_cannot_build(trouble, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("no home")

    def no_folder(prefix):
        raise FileNotFoundError("no temporary folder")

    text = tmp_path / "text"
    text.write_text("neither a program nor a folder")
    text.chmod(0o700)
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
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
        assert library.functions.one() == 1
    else:
        assert library is None
        assert "cannot run or has no folder" in why


def test_a_note_half_written_is_no_error(tmp_path, monkeypatch):
    source = tmp_path / "two.cpp"
    source.write_text('extern "C" int two() { return 2; }')
    monkeypatch.setenv("DEQLM_CACHE", str(tmp_path))
    made = build(source).library
    made.path.with_suffix(".seconds").write_text("")
    assert build.__wrapped__(source).library.cached
