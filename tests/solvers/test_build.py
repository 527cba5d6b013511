"""Machines where a C++ file cannot be built, or not be kept; compilers that do what they like; caches of others."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from deqlm_solvers.native import build as building
from deqlm_solvers.native import compiler
from deqlm_solvers.native.build import build, cache_folder
from deqlm_solvers.native.compiler import COMPILERS, CompilerError, run_compiler

COMPILER = next(filter(shutil.which, COMPILERS), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users of POSIX")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEQLM_CACHE", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def source_of(folder: Path, number: str) -> Path:
    source = folder / "number.cpp"
    source.write_text(f'extern "C" int number() {{ return {number}; }}')
    return source


def script(path: Path, text: str) -> Path:
    path.write_bytes(b"#!/bin/sh\n" + text.encode("latin-1") + b"\n")
    path.chmod(0o755)
    return path


def anew(source: Path, extra: tuple[str, ...] = ()):
    """Build as another process would."""
    return build.__wrapped__(source, extra)


def test_without_a_folder_there_is_no_library(tmp_path, cache, monkeypatch):
    cache.write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    library, why = anew(source_of(tmp_path, "1"))
    assert library is None
    assert why.startswith("the kernel cannot be built: ")


def test_a_compiler_that_is_no_program_for_this_machine(tmp_path, cache, monkeypatch):
    text = tmp_path / "text"
    text.write_text("neither a program nor a folder")
    text.chmod(0o700)
    monkeypatch.setenv("CXX", str(text))
    library, why = anew(source_of(tmp_path, "1"))
    assert library is None
    assert why.startswith(f"{text} cannot run: ")


def test_a_user_without_a_home(tmp_path, monkeypatch, temporary):
    def no_home():
        raise RuntimeError("no home")

    monkeypatch.delenv("DEQLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    library, _ = anew(source_of(tmp_path, "1"))
    assert library.functions.number() == 1
    assert (library.path, library.unkept) == (None, "no home")


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEQLM_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("DEQLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/all")
    assert cache_folder() == tmp_path / "all" / "deqlm"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder() == tmp_path / ".cache" / "deqlm"


@pytest.mark.parametrize("given", ["cache", "."])
def test_a_relative_cache_is_one_of_the_working_folder(tmp_path, cache, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEQLM_CACHE", given)
    source = source_of(tmp_path, "2")
    first, second = anew(source).library, anew(source).library
    assert (first.cached, second.cached) == (False, True)
    assert first.path.parent == tmp_path / given


def test_a_note_half_written_is_no_error(tmp_path, cache):
    source = source_of(tmp_path, "2")
    made = anew(source).library
    made.path.with_suffix(".seconds").write_text("")
    assert anew(source).library.cached


def test_cxx_may_have_arguments(tmp_path, cache, monkeypatch):
    source = source_of(tmp_path, "NUMBER")
    monkeypatch.setenv("CXX", f"{COMPILER} -DNUMBER=3")
    assert anew(source).library.functions.number() == 3
    monkeypatch.setenv("CXX", f"  {COMPILER} '-DNUMBER=(2 + 2)' ")
    assert anew(source).library.functions.number() == 4
    monkeypatch.setenv("CXX", "")
    assert anew(source, ("-DNUMBER=5",)).library.functions.number() == 5
    assert len(list(cache.glob("*.so"))) == 3


def test_cxx_may_be_a_launcher_or_a_path_with_spaces(tmp_path, cache, monkeypatch):
    source = source_of(tmp_path, "5")
    launcher = script(tmp_path / "my launcher", 'echo "$1" >> "$(dirname "$0")/launched"\nexec "$@"')
    monkeypatch.setenv("CXX", f"'{launcher}' {COMPILER}")
    assert anew(source).library.functions.number() == 5
    assert set((tmp_path / "launched").read_text().split()) == {COMPILER}
    direct = tmp_path / "my compiler"
    os.symlink(shutil.which(COMPILER), direct)
    monkeypatch.setenv("CXX", str(direct))
    assert anew(source).library.functions.number() == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nonesuch g++", "no C++ compiler found: $CXX is 'nonesuch g++', and there is no program 'nonesuch'"),
        ("g++ 'half", 'no C++ compiler found: $CXX is "g++ \'half", which cannot be split into words (No closing'),
        (os.fsdecode(b"caf\xe9"), "no C++ compiler found: $CXX is 'caf\ufffd', and there is no program 'caf\ufffd'"),
    ],
)
def test_a_cxx_that_is_no_program_says_so(tmp_path, cache, monkeypatch, given, said):
    monkeypatch.setenv("CXX", given)
    library, why = anew(source_of(tmp_path, "6"))
    assert library is None
    assert why.startswith(said)


def test_no_compiler_at_all(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("PATH", str(tmp_path))
    why = anew(source_of(tmp_path, "7")).why
    assert why == "no C++ compiler found: none of c++, g++, clang++ is a program here, and $CXX names no other"


LAST = 'for last in "$@"; do :; done\n'
OTHER = f"echo 'int other;' | {COMPILER} -x c++ -shared -fPIC -o \"$last\" -"
VERSION = '[ "$1" = --version ] && exec echo 1\n'


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("printf '\\377 caf\\351'; exit 1", "\ufffd caf\ufffd"),
        ("exit 0", "it ended well and wrote no library"),
        ("exit 7", "exit status 7"),
        (LAST + 'mkdir "$last"', "it ended well and wrote no library"),
        (LAST + 'echo nonsense > "$last"', "its library cannot be loaded: "),
        (LAST + OTHER, "its library has none of our functions"),
        (LAST + OTHER.replace("int other;", 'extern "C" const char* deqlm_key() { return "1"; }'), "of other sources"),
    ],
)
def test_a_compiler_that_does_not_compile(tmp_path, cache, monkeypatch, temporary, does, said):
    strange = script(tmp_path / "strange", VERSION + does)
    monkeypatch.setenv("CXX", str(strange))
    library, why = anew(source_of(tmp_path, "1"))
    assert library is None
    assert why.startswith(f"{strange} could not build the kernel: ")
    assert said in why
    assert not list(cache.iterdir())
    assert not list(temporary.iterdir())


ENDLESS = 'echo $$ >> "$(dirname "$0")/started"\nsleep 60 &\necho $! >> "$(dirname "$0")/started"\n'


def ends(process: str) -> bool:
    """Say whether a process ends soon; one that was killed may wait for its parent to look."""
    for _ in range(500):
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("when", "hangs"), [("asked", "wait"), ("compiling", "wait"), ("compiling", "exit 0"), ("compiling", "exec yes")]
)
def test_a_compiler_that_hangs_is_killed_with_its_children(tmp_path, cache, monkeypatch, hangs, when):
    strange = script(tmp_path / "hangs", (VERSION if when == "compiling" else "") + ENDLESS + hangs)
    monkeypatch.setenv("CXX", str(strange))
    monkeypatch.setattr(building, {"asked": "ASKED", "compiling": "COMPILED"}[when], 0.5)
    library, why = anew(source_of(tmp_path, "1"))
    assert library is None
    assert why.startswith(str(strange))
    assert why.endswith("s and was killed")
    assert all(map(ends, (tmp_path / "started").read_text().split()))
    assert not list(cache.glob("*"))


def test_an_interrupt_kills_the_compiler(tmp_path):
    hangs = str(script(tmp_path / "hangs", ENDLESS + "wait"))
    code = f"import runpy, time; run = runpy.run_path({compiler.__file__!r})['run_compiler']\n"
    code += f"run([{hangs!r}], time.monotonic() + 60, errors=True)"
    started = tmp_path / "started"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        while not started.exists() or started.read_text().count("\n") < 2:
            time.sleep(0.01)
        process.send_signal(2)
    assert process.returncode != 0
    assert all(map(ends, started.read_text().split()))


def test_a_program_may_print_much(tmp_path):
    many = script(tmp_path / "many", f"{sys.executable} -c \"print('x' * 1_000_000)\"")
    assert run_compiler([str(many)], time.monotonic() + 30, errors=True) == (0, "x" * 1_000_000 + "\n")
    with pytest.raises(CompilerError, match="none cannot run: "):
        run_compiler([str(tmp_path / "none")], time.monotonic() + 30, errors=True)


@pytest.mark.parametrize("damage", ["empty", "header", "half", "last byte", "digest lost", "digest empty"])
def test_a_damaged_cache_is_built_anew_once(tmp_path, cache, monkeypatch, damage):
    source = source_of(tmp_path, "8")
    made = anew(source).library.path
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
    first, second = anew(source).library, anew(source).library
    assert (first.cached, second.cached) == (False, True)
    assert first.functions.number() == second.functions.number() == 8
    assert sorted(path.suffix for path in copied.iterdir()) == [".seconds", ".sha256", ".so"]


def seal(library: Path) -> None:
    library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())


@pytest.mark.parametrize("instead", ["nonsense", "no functions", "stale"])
def test_another_library_under_our_name_is_replaced(tmp_path, cache, instead):
    source = source_of(tmp_path, "9")
    made = anew(source).library.path
    made.unlink()
    if instead == "nonsense":
        made.write_text("nonsense")
    else:
        other = source_of(tmp_path, "10")
        if instead == "no functions":
            subprocess.run([COMPILER, "-shared", "-fPIC", other, "-o", made], check=True)
        else:
            shutil.copy(anew(other).library.path, made)
        source_of(tmp_path, "9")
    seal(made)
    library, _ = anew(source)
    assert library.functions.number() == 9
    assert (library.cached, library.path) == (False, made)


PLANT = '#include <fcntl.h>\n__attribute__((constructor)) void go() { creat("%s", 0600); }'


def plant(library: Path, sign: Path) -> None:
    """Put code there that leaves a sign when it is loaded."""
    source = sign.with_suffix(".cpp")
    source.write_text(PLANT % sign)
    library.unlink()
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    seal(library)


@posix
@pytest.mark.parametrize(
    ("open_to", "mode"),
    [
        *((place, mode) for place in ("library", "digest", "folder") for mode in (0o020, 0o002)),
        ("above", 0o002),  # a group above the folder is one's own on many systems
        ("link", 0),
    ],
)
def test_what_others_can_write_to_is_not_loaded(tmp_path, monkeypatch, cache, temporary, open_to, mode):
    above = tmp_path / "above"
    monkeypatch.setenv("DEQLM_CACHE", str(above / "cache"))
    source, sign = source_of(tmp_path, "3"), tmp_path / "sign"
    made = anew(source).library.path
    plant(made, sign)
    if open_to == "link":
        made.rename(tmp_path / "elsewhere")
        made.symlink_to(tmp_path / "elsewhere")
    else:
        places = {"library": made, "digest": made.with_suffix(".sha256"), "folder": made.parent, "above": above}
        places[open_to].chmod(places[open_to].stat().st_mode | mode)
    library, _ = anew(source)
    assert library.functions.number() == 3
    assert not library.cached
    assert not sign.exists()
    if open_to in ("folder", "above"):
        assert library.path is None
        assert "write to" in library.unkept
        assert not list(temporary.iterdir())
    else:
        assert anew(source).library.cached


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("others", ["library", "digest", "folder"])
def test_what_belongs_to_others_is_not_loaded(tmp_path, cache, temporary, others):
    source, sign = source_of(tmp_path, "4"), tmp_path / "sign"
    made = anew(source).library.path
    plant(made, sign)
    os.chown({"library": made, "digest": made.with_suffix(".sha256"), "folder": cache}[others], 65534, 65534)
    library, _ = anew(source)
    assert library.functions.number() == 4
    assert not sign.exists()
    assert ("belongs to another user" in library.unkept) is (others == "folder")


@posix
def test_a_sticky_folder_may_be_open_to_all(tmp_path, cache):
    cache.mkdir()
    cache.chmod(0o1777)
    source = source_of(tmp_path, "5")
    assert [anew(source).library.cached for _ in range(2)] == [False, True]


@posix
def test_whatever_the_umask_nobody_else_may_write_to_the_cache(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("DEQLM_CACHE", str(cache / "deep"))
    before = os.umask(0)
    try:
        source = source_of(tmp_path, "6")
        assert [anew(source).library.cached for _ in range(2)] == [False, True]
    finally:
        os.umask(before)
    assert not any(path.stat().st_mode & 0o022 for path in (cache, *cache.rglob("*")))


@pytest.mark.parametrize("trouble", ["file", "full"])
def test_without_a_cache_nothing_is_left_behind(tmp_path, cache, temporary, monkeypatch, trouble):
    if trouble == "file":
        cache.write_text("no folder")
    else:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    library, _ = anew(source_of(tmp_path, "7"))
    assert library.functions.number() == 7
    assert library.path is None
    assert ("No space" if trouble == "full" else "File exists") in library.unkept
    assert not list(temporary.iterdir())
    assert cache.is_file() or not list(cache.iterdir())


def test_a_full_cache_is_left_for_the_folder_of_temporary_files(tmp_path, cache, temporary, monkeypatch):
    strange = script(tmp_path / "full", f'case "$*" in *{cache}*) echo full; exit 1;; esac\nexec {COMPILER} "$@"')
    monkeypatch.setenv("CXX", str(strange))
    library, _ = anew(source_of(tmp_path, "8"))
    assert library.functions.number() == 8
    assert library.unkept == "the cache could not hold it"


def test_what_a_killed_process_left_is_swept_up(tmp_path, cache):
    cache.mkdir()
    old, new = cache / f"{building.BUILDING}old", cache / f"{building.BUILDING}new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").touch()
    os.utime(old, (0, 0))
    anew(source_of(tmp_path, "9"))
    assert (old.exists(), new.exists()) == (False, True)
