"""stdout and stderr of the command: closed, full or unread, they never end its work; what is printed commands no terminal."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO

from purify_engine.pages import visible


def printable(text: str) -> str:
    """`text` with escapes in place of what is no character to see, since a file's name may hold a terminal's commands.

    Lines stay lines; right-to-left marks and other characters that change how a line is read are escaped too.
    """
    return "\n".join(map(visible, text.split("\n")))


def quoted(word: str) -> str:
    """`word` as a shell reads it back, escaped as in `printable`."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(f"\\{one}" if one in "\\'" else one if one.isprintable() else _octal(one) for one in word) + "'"


class Output:
    """A stream that may be written to at any time: `forgives(error)` says which errors of it are no one's concern."""

    def __init__(self, stream: TextIO, name: str, forgives: Callable[[OSError], bool]) -> None:
        self._stream, self._name, self._forgives = stream, name, forgives

    def write(self, text: str) -> int:
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    def close_quietly(self) -> None:
        """What could not be written by now is dropped, or the interpreter would fail at it as it ends."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # a stream of a test has no descriptor
                _to_null(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as failed:
            if not self._forgives(failed):
                raise OSError(failed.errno, failed.strerror, self._name) from failed


@contextmanager
def robust_streams() -> Iterator[None]:
    """Inside, sys.stdout and sys.stderr exist and can be written to.

    No error of stderr is raised; of stdout none where its reader has gone, else OSError that names it.
    """
    _reopen_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few characters is no reason to stop
    out = Output(before[0], "standard output", lambda failed: failed.errno == errno.EPIPE)
    err = Output(before[1], "standard error", lambda failed: True)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.close_quietly()
        err.close_quietly()
        sys.stdout, sys.stderr = before


def print_escaped_errors() -> None:
    """Let Python print warnings and tracebacks, which quote names of files, as `printable` text. For the whole process."""
    warnings.formatwarning = _warning
    sys.excepthook = _traceback


def _warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return printable(f"purify-engine: {category.__name__}: {' '.join(str(message).split())}\n")


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    with suppress(OSError, ValueError):
        print(printable("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)


def _reopen_closed() -> None:
    """/dev/null in place of standard streams that are closed: else the first files that are opened would be them."""
    for descriptor, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            _to_null(descriptor)
        name = ("stdin", "stdout", "stderr")[descriptor]
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


def _to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
