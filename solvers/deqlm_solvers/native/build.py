"""Builds a C++ file once per machine and loads it: no Python headers, no torch headers, seconds to compile."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from deqlm_solvers.native.compiler import CompilerError, find_compiler, readable, run_compiler
from deqlm_solvers.native.trust import make_folder, untrusted_file, untrusted_folder

__all__ = ["Library", "Outcome", "build", "cache_folder"]

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
CHOICES = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-fopenmp-simd",), ())
"""Tried in this order; a compiler without OpenMP or native tuning gives the same results, slower."""

ASKED, COMPILED = 5.0, 25.0
"""Seconds in which a compiler has to tell its version, and to compile with all choices together; it takes 1 to 7."""

DIGEST, SECONDS = ".sha256", ".seconds"
"""Endings of the files that tell what was put into the cache, and how long it took."""

KEY = 'extern "C" const char* deqlm_key() {{ return "{key}"; }}\n'
"""Is compiled into every library: one that does not answer with its key is another one, or a stale one."""

BUILDING, ABANDONED = "deqlm-building-", 3600.0
"""Start of the name of a folder that exists while a compiler runs, and seconds after which its process was killed."""


class Library(NamedTuple):
    """The loaded kernel.

    Attributes:
        path: the shared library; None where it is kept for this process alone.
        seconds: what building it took, now or when it was put into the cache; NaN where nobody wrote it down.
        cached: found in the cache.
        flags: compiler flags beyond the fixed ones.
        unkept: why it is not in the cache; empty if it is.
    """

    functions: ctypes.CDLL
    path: Path | None
    seconds: float
    cached: bool
    flags: tuple[str, ...]
    unkept: str = ""


class Outcome(NamedTuple):
    """A library, or why there is none."""

    library: Library | None
    why: str


class _Order(NamedTuple):
    """What is to be built, and with what."""

    source: Path
    compiler: list[str]
    extra: tuple[str, ...]
    key: str

    def choices(self) -> list[tuple[tuple[str, ...], str]]:
        """Return flags and the name of the library that they make, in the order of trial."""
        stems = ((flags, f"{self.key}-{_digest(' '.join(flags))}") for flags in CHOICES)
        return [((*flags, *self.extra), f"{self.source.stem}-{stem}.so") for flags, stem in stems]


def cache_folder() -> Path:
    """Return where built kernels are kept: ``$DEQLM_CACHE``, else ``deqlm`` in the user's cache folder.

    That is ``$XDG_CACHE_HOME`` if it is absolute, else ``~/.cache``; ``~`` is expanded in both variables.

    Raises:
        RuntimeError: a user without a home.
    """
    if given := os.environ.get("DEQLM_CACHE"):
        return Path(given).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    return (base if base.is_absolute() else Path.home() / ".cache") / "deqlm"


@functools.cache
def build(source: Path, extra: tuple[str, ...] = ()) -> Outcome:
    """Return the kernel of this machine, built now where it is not in the cache; the answer is kept for the process.

    A kernel in the cache that is not what was put there, such as a file cut short, is built anew. One that another user
    than root could have put there is never loaded: then, and where the cache cannot be written to, the kernel is built
    for this process alone and leaves nothing behind.

    Args:
        source: the C++ file; what it includes lies beside it as ``*.h`` or ``*.cpp``. Its functions have C names.
        extra: further flags of the compiler, such as those of a sanitizer, which may take ten times as long.
    """
    end = time.monotonic() + COMPILED * (10 if extra else 1)
    try:
        compiler = find_compiler()
        order = _Order(source, compiler, extra, _key(source, compiler, extra))
        folder, unkept = _cache()
        found = None if folder is None else _found(folder, order)
        return found or _made(folder, order, end, unkept)
    except CompilerError as error:
        return Outcome(None, str(error))
    except OSError as error:
        return Outcome(None, f"the kernel cannot be built: {error}")


def _found(folder: Path, order: _Order) -> Outcome | None:
    for flags, name in order.choices():
        path = folder / name
        functions = _load(path, order.key)[0] if _sound(path) else None
        if functions is not None:
            return Outcome(Library(functions, path, _seconds(path), True, flags), "")
    return None


def _made(folder: Path | None, order: _Order, end: float, unkept: str) -> Outcome:
    """Build in the cache, and if that fails, such as on a full disk, in the folder for temporary files."""
    outcome = None
    if folder is not None:
        try:
            outcome = _build_in(folder, order, end, "")
        except OSError as error:
            unkept = str(error)
    if outcome is None or outcome.library is None:
        outcome = _build_in(Path(tempfile.gettempdir()), order, end, unkept or "the cache could not hold it")
    return outcome


def _cache() -> tuple[Path | None, str]:
    """Return the folder of the cache, or None and why there is none."""
    try:
        folder = cache_folder().absolute()
        make_folder(folder)
        folder = folder.resolve()
        why = untrusted_folder(folder)
    except (OSError, RuntimeError) as error:
        return None, str(error)
    return (None, why) if why else (folder, "")


def _build_in(parent: Path, order: _Order, end: float, unkept: str) -> Outcome:
    """Compile in a new folder of ``parent``, load from there, and move to ``parent`` unless ``unkept`` is said."""
    _sweep(parent)
    said = ""
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=parent, ignore_cleanup_errors=True) as folder:
        stamp = Path(folder) / "key.cpp"
        stamp.write_text(KEY.format(key=order.key))
        for flags, name in order.choices():
            made = Path(folder) / name
            start = time.perf_counter()
            command = [*order.compiler, *FLAGS, *flags, str(order.source), str(stamp), "-o", str(made)]
            status, said = run_compiler(command, end, errors=True)
            if status == 0:
                functions, said = _load(made, order.key)
                if functions is not None:
                    seconds = time.perf_counter() - start
                    unkept = unkept or _keep(made, parent, seconds)
                    path = None if unkept else parent / name
                    return Outcome(Library(functions, path, seconds, False, flags, unkept), "")
            said = said.strip()[-500:] or f"exit status {status}"
    return Outcome(None, f"{readable(shlex.join(order.compiler))} could not build the kernel: {said}")


def _load(path: Path, key: str) -> tuple[ctypes.CDLL | None, str]:
    """Return the functions of a library that has our key, or None and what is wrong with it."""
    if not path.is_file():
        return None, "it ended well and wrote no library"
    try:
        functions = ctypes.CDLL(str(path))
        told = functions.deqlm_key
    except OSError as error:
        return None, f"its library cannot be loaded: {error}"
    except AttributeError:
        return None, "its library has none of our functions"
    told.restype = ctypes.c_char_p
    return (functions, "") if told() == key.encode() else (None, "its library is of other sources")


def _keep(made: Path, folder: Path, seconds: float) -> str:
    """Move a library to the cache, where it appears whole or not at all; return why it could not be."""
    try:
        made.with_suffix(SECONDS).write_text(f"{seconds:.1f}")
        made.with_suffix(DIGEST).write_text(_digest_of(made))
        # the library last: one that appears has its digest beside it
        for part in (made.with_suffix(SECONDS), made.with_suffix(DIGEST), made):
            part.chmod(stat.S_IMODE(part.stat().st_mode) & ~0o022)
            os.replace(part, folder / part.name)
    except OSError as error:
        return str(error)
    return ""


def _sound(path: Path) -> bool:
    """Say whether a library is there, ours and whole: one that was cut short can crash the process that loads it."""
    digest = path.with_suffix(DIGEST)
    try:
        ours = not (untrusted_file(path) or untrusted_file(digest))
        return ours and digest.read_bytes() == _digest_of(path).encode()
    except OSError:
        return False


def _seconds(path: Path) -> float:
    try:
        return float(path.with_suffix(SECONDS).read_text())
    except (OSError, ValueError):  # another process may be about to write it
        return float("nan")


def _sweep(parent: Path) -> None:
    """Remove what processes of this user left behind that were killed while their compiler ran."""
    for left in parent.glob(f"{BUILDING}*"):
        try:
            at = left.lstat()
        except OSError:  # its process has just removed it
            continue
        ours = not hasattr(os, "geteuid") or at.st_uid == os.geteuid()
        if ours and time.time() - at.st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _key(source: Path, compiler: list[str], extra: tuple[str, ...]) -> str:
    """Return a digest of all that a built kernel depends on: sources, flags, compiler, processor."""
    version = run_compiler([*compiler, "--version"], time.monotonic() + ASKED, errors=False).said
    words = (KEY, *FLAGS, *extra, shlex.join(compiler), version, platform.machine(), _processor())
    beside = [*source.parent.glob("*.h"), *source.parent.glob("*.cpp")]
    parts = [file.read_bytes() for file in (*sorted({*beside, source}), source)]
    return _digest("\0".join([*map(readable, words), *(hashlib.sha256(part).hexdigest() for part in parts)]))


def _processor() -> str:
    """Return what -march=native looks at, so that machines that share a home directory keep kernels of their own."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in text.splitlines() if line.startswith(wanted)}))


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
