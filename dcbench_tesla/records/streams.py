"""Standard streams that no writing to them can end the program: closed, full, gone, or with few characters."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO


class Lasting(io.TextIOBase):
    """A text stream over another one, whose failures are kept in :attr:`error` and not raised.

    Characters that the other stream cannot encode are replaced by question marks. It has no ``buffer``, so that nothing
    is written past it.

    Args:
        stream: the other stream; ``None`` for one that is closed, to which everything can be written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has an attribute, which cannot be computed
        """The encoding of the other stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """How the other stream treats characters that it cannot encode."""
        return getattr(self._stream, "errors", None)

    def write(self, text: str, /) -> int:
        """Write text and return its length, whatever becomes of it."""
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        with self._keeping_the_error():
            self._write(text)
        return len(text)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        """Pass on what was written."""
        if self._stream is not None:
            with self._keeping_the_error():
                self._stream.flush()

    @contextmanager
    def _keeping_the_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the other stream was closed
            self.error = self.error or error

    def writable(self) -> bool:
        """Return ``True``."""
        return True

    def isatty(self) -> bool:
        """Return whether the other stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """Return the descriptor of the other stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("this stream is closed")
        return self._stream.fileno()

    def let_go(self) -> None:
        """After an error, send what is still in the other stream's buffer to nowhere, so that exiting does not fail."""
        if self.error is not None:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)


@dataclass
class Streams:
    """Standard output and standard error of a command."""

    output: Lasting
    messages: Lasting


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """Make ``sys.stdout`` and ``sys.stderr`` streams that no writing to them can end the program; yield both.

    Closed descriptors 0 to 2 are opened to nowhere: otherwise the next files to be opened would get these numbers, and
    what libraries print would end up in them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    before = sys.stdout, sys.stderr
    streams = Streams(Lasting(sys.stdout), Lasting(sys.stderr))
    sys.stdout, sys.stderr = streams.output, streams.messages
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
        streams.output.let_go()
        streams.messages.let_go()


def messages() -> Lasting:
    """Return standard error as it is now; writing to it never fails."""
    return sys.stderr if isinstance(sys.stderr, Lasting) else Lasting(sys.stderr)
