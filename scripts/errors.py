# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

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


def printable(text: str) -> str:
    """A text without what a terminal would obey: control characters and broken characters become "?"."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


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
        raise SystemExit(f"error: {printable(str(cause))}") from error
