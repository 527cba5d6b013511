"""The C++ compiler of this machine: found, and run for a limited time, whatever it does and prints."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from typing import NamedTuple

__all__ = ["COMPILERS", "CompilerError", "Ran", "find_compiler", "readable", "run_compiler"]

COMPILERS = ("c++", "g++", "clang++")

MOST = 1 << 20
"""Bytes that are read of what a compiler prints; one that goes on is held up, and killed in time."""


class CompilerError(Exception):
    """There is no compiler, or it cannot be run, or it does not end."""


class Ran(NamedTuple):
    """Exit status and output of a program that ended by itself."""

    status: int
    said: str


def find_compiler() -> list[str]:
    """Return the command of the compiler: a program and its arguments.

    It is ``$CXX``, a program and perhaps arguments ("ccache g++"), else the first of c++, g++ and clang++.

    Raises:
        CompilerError: there is none; the message says what was looked for.
    """
    given = os.environ.get("CXX", "").strip()
    if not given:
        found = next((found for name in COMPILERS if (found := shutil.which(name))), None)
        if found is None:
            raise CompilerError(
                f"no C++ compiler found: none of {', '.join(COMPILERS)} is a program here, and $CXX names no other"
            )
        return [found]
    if whole := shutil.which(given):  # a path with spaces
        return [whole]
    told = f"no C++ compiler found: $CXX is {readable(given)!r},"
    try:
        program, *arguments = shlex.split(given)
    except ValueError as error:
        raise CompilerError(f"{told} which cannot be split into words ({error})") from None
    found = shutil.which(program)
    if found is None:
        raise CompilerError(f"{told} and there is no program {readable(program)!r}")
    return [found, *arguments]


def run_compiler(command: list[str], until: float, *, errors: bool) -> Ran:
    """Run ``command`` with nothing to read; a program that does not end in time is killed with all that it started.

    Args:
        command: program and arguments.
        until: when it is killed, on the clock of ``time.monotonic``.
        errors: return what goes to its standard error too.

    Raises:
        CompilerError: it cannot be started, or did not end.
    """
    limit = until - time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise CompilerError(f"{readable(shlex.join(command[:1]))} cannot run: {error}") from error
    try:
        said = _output(process, until)
        return Ran(process.wait(max(0.0, until - time.monotonic())), said)
    except subprocess.TimeoutExpired:
        _kill(process)
        shown = readable(shlex.join(command))
        raise CompilerError(f"{shown} did not end within {limit:.0f} s and was killed") from None
    except BaseException:  # such as Ctrl-C, which does not reach a session of its own
        _kill(process)
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()


def readable(text: str) -> str:
    """Return ``text`` with bytes that are no UTF-8 replaced: a path or a variable may have such, a terminal not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _output(process: subprocess.Popen[bytes], until: float) -> str:
    """Return what ``process`` prints, its first `MOST` bytes; ``TimeoutExpired`` where it neither ends nor closes."""
    pieces: list[bytes] = []
    stream = process.stdout
    assert stream is not None
    reader = threading.Thread(target=lambda: pieces.append(stream.read(MOST)), daemon=True)
    reader.start()
    reader.join(max(0.0, until - time.monotonic()))
    if reader.is_alive():
        _kill(process)
        reader.join(1.0)
        raise subprocess.TimeoutExpired(process.args, 0.0)
    return pieces[0].decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    # one that was not waited for keeps its number, so no stranger is hit
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
