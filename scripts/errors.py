"""What a user can mend: one message that names the file and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be worked with; the message names the file (or the option) and the cure."""


@contextmanager
def one_line() -> Iterator[None]:
    """End the program at an `InputError` with its message as the last line on stderr, without a traceback, and status 1."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
