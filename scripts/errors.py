"""What a user can correct: one message that names the file and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used; the message names the file (or the option) and the cure."""


def first_cause(error: BaseException) -> BaseException:
    """The error that an exception's chain began with, or the first InputError in it: MONAI adds errors of its own
    around ours."""
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


@contextmanager
def one_line() -> Iterator[None]:
    """End the program at an `InputError` with its message as the last line on stderr, without a traceback, and status
    1."""
    try:
        yield
    except Exception as error:
        cause = first_cause(error)
        if not isinstance(cause, InputError):
            raise
        raise SystemExit(f"error: {cause}") from error
