"""Builds a C++ file once per machine and loads it: no Python headers, no torch headers, seconds to compile."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["Library", "Outcome", "build", "cache_folder"]

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
CHOICES = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-fopenmp-simd",), ())
"""Tried in this order; a compiler without OpenMP or native tuning gives the same results, slower."""


DIGEST = ".sha256"
"""Ending of the file that tells what was put into the cache."""

COMPILERS = ("c++", "g++", "clang++")


class Library(NamedTuple):
    """The loaded kernel.

    Attributes:
        path: the shared library.
        seconds: what building it took, now or when it was put into the cache; NaN where nobody wrote it down.
        cached: found in the cache.
        flags: compiler flags beyond the fixed ones.
    """

    functions: ctypes.CDLL
    path: Path
    seconds: float
    cached: bool
    flags: tuple[str, ...]


class Outcome(NamedTuple):
    """A library, or why there is none."""

    library: Library | None
    why: str


def cache_folder() -> Path:
    """Return where built kernels are kept: ``$DEQLM_CACHE``, else ``deqlm`` in the user's cache folder."""
    if given := os.environ.get("DEQLM_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deqlm"


@functools.cache
def build(source: Path) -> Outcome:
    """Return the kernel of this machine, built now where it is not in the cache; the answer is kept for the process.

    The compiler is ``$CXX``, a program and perhaps arguments ("ccache g++"), else the first of c++, g++ and clang++. A
    kernel in the cache that is not what was put there, such as a file cut short, is built anew.

    Args:
        source: the C++ file; what it includes lies beside it as ``*.h``. Its functions have C names.
    """
    try:
        compiler = _compiler()
    except ValueError as error:
        return Outcome(None, f"no C++ compiler found: {error}")
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return _load_from(folder, source, compiler)
    except (OSError, RuntimeError):
        # a cache that cannot be written, or a user without a home: build for this process alone
        try:
            return _load_from(Path(tempfile.mkdtemp(prefix="deqlm-")), source, compiler)
        except OSError as error:
            return Outcome(None, f"{shlex.join(compiler)} cannot run or has no folder to write to: {error}")


def _load_from(folder: Path, source: Path, compiler: list[str]) -> Outcome:
    key = _key(source, compiler)
    for flags in CHOICES:
        path = folder / f"{source.stem}-{key}-{_digest(' '.join(flags))}.so"
        if _sound(path):
            return _open(path, flags, cached=True)
    said = ""
    for flags in CHOICES:
        path = folder / f"{source.stem}-{key}-{_digest(' '.join(flags))}.so"
        start = time.perf_counter()
        said = _compile(compiler, flags, source, path)
        if not said:
            path.with_suffix(".seconds").write_text(f"{time.perf_counter() - start:.1f}")
            return _open(path, flags, cached=False)
    return Outcome(None, f"{shlex.join(compiler)} could not build the kernel: {said}")


def _open(path: Path, flags: tuple[str, ...], cached: bool) -> Outcome:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        return Outcome(None, f"{path} cannot be loaded: {error}")
    try:
        seconds = float(path.with_suffix(".seconds").read_text())
    except (OSError, ValueError):  # another process may be about to write it
        seconds = float("nan")
    return Outcome(Library(functions, path, seconds, cached, flags), "")


def _compile(compiler: list[str], flags: tuple[str, ...], source: Path, path: Path) -> str:
    """Compile to ``path``, which appears whole or not at all; return what the compiler complained about."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *FLAGS, *flags, str(source), "-o", str(made)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if run.returncode != 0:
            return run.stderr.strip()[-500:] or f"exit status {run.returncode}"
        # the digest first: a library that appears has one beside it
        digest = made.with_suffix(DIGEST)
        digest.write_text(_digest_of(made))
        os.replace(digest, path.with_suffix(DIGEST))
        os.replace(made, path)
    return ""


def _sound(path: Path) -> bool:
    """Say whether a library is there and whole: one that was cut short can crash the process that loads it."""
    digest = path.with_suffix(DIGEST)
    return path.exists() and digest.exists() and digest.read_bytes() == _digest_of(path).encode()


def _compiler() -> list[str]:
    """Return the command of the compiler: a program and its arguments.

    Raises:
        ValueError: there is none; the message says what was looked for.
    """
    given = os.environ.get("CXX", "").strip()
    if not given:
        found = next((found for name in COMPILERS if (found := shutil.which(name))), None)
        if found is None:
            raise ValueError(f"none of {', '.join(COMPILERS)} is a program here, and $CXX names no other")
        return [found]
    if whole := shutil.which(given):  # a path with spaces
        return [whole]
    try:
        program, *arguments = shlex.split(given)
    except ValueError as error:
        raise ValueError(f"$CXX is {given!r}, which cannot be split into words ({error})") from None
    found = shutil.which(program)
    if found is None:
        raise ValueError(f"$CXX is {given!r}, and there is no program {program!r}")
    return [found, *arguments]


def _key(source: Path, compiler: list[str]) -> str:
    """Return a digest of all that a built kernel depends on: sources, flags, compiler, processor."""
    parts = [file.read_text() for file in (*sorted(source.parent.glob("*.h")), source)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    return _digest("\0".join([*parts, *FLAGS, shlex.join(compiler), version, platform.machine(), _processor()]))


def _processor() -> str:
    """Return what -march=native looks at, so that machines that share a home directory keep kernels of their own."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in text.splitlines() if line.startswith(wanted)}))


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
