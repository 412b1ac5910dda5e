"""Standard output and standard error that may end before the command does."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class _Output:
    """A text stream that stays usable when nothing more can be written to it.

    The first error is kept in ``error``. What is written after it is dropped, so that the command
    goes on, finishes its files and ends as it would have.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered, or drop it."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        # Python flushes its own stream again when it exits, and child processes write to the same
        # descriptor.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, a command outlives the reader of what it prints, such as ``head``.

    If the output was lost for another reason, such as a full disk, the block ends with one sentence
    on stderr and status 1.
    """
    out, err = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(cast("TextIO", out)), redirect_stderr(cast("TextIO", err)):
        try:
            yield
        finally:
            out.flush()
            err.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            print(f"error: the output cannot be written: {out.error.strerror}.", file=sys.stderr)
            sys.exit(1)


def reader_has_gone() -> bool:
    """Whether nobody reads the standard output any more."""
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)
