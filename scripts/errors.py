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

"""What a user can correct: one message that names the file and the cure; and how any error ends a program."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tqdm import tqdm

_LOST = re.compile(r"by peer|Broken pipe|Timed out waiting")  # what gloo says of a process that is gone
_PATIENCE = 15  # seconds that torchrun has to end a process that lost another one


class InputError(ValueError):
    """Input that cannot be used; the message names the file (or the option) and the cure."""


class NotFiniteError(InputError, FloatingPointError):
    """A training that came upon NaN or infinite values; the message names the checkpoint to go on from."""


def first_cause(error: BaseException) -> BaseException:
    """The error that an exception's chain began with, or the first InputError in it: MONAI adds errors of its own
    around ours."""
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _printable(text: str) -> str:
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
        raise SystemExit(f"error: {_printable(str(cause))}") from error


def under_torchrun() -> bool:
    """Whether this process is one of those that torchrun starts."""
    return "LOCAL_RANK" in os.environ


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook` whose last line is the first error of the chain: MONAI adds its own "Failed to evaluate" after
    it."""
    cause = first_cause(error)
    if _has_no_reader() and isinstance(cause, BrokenPipeError):
        return
    if under_torchrun() and _is_lost_process(cause):
        # Another process failed: torchrun is about to end this one and to print that one's reason, which ours would
        # hide.
        time.sleep(_PATIENCE)
        # It did not: the processes were started by hand.
        cause = InputError(
            "another process of this run has ended, see its own last line; start all of them again, a training with "
            "--resume from its last checkpoint."
        )
    elif is_full_disk(cause) and not isinstance(cause, InputError):
        cause = InputError("--output_dir: its disk is full; free some space or give another folder.")
    if not isinstance(cause, (InputError, KeyboardInterrupt)):
        traceback.print_exception(kind, error, trace)
    # An open progress bar would draw itself once more after the last line.
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    sys.stdout.flush()
    print(f"error: {_printable(str(cause)) or kind.__name__}", file=sys.stderr, flush=True)
    _record_error(cause)


def _has_no_reader() -> bool:
    """Whether the program that read the output has ended, as `head` does; the rest of the output then goes nowhere."""
    try:
        number, poll = sys.stdout.fileno(), select.poll()
    except (OSError, AttributeError):
        return False  # no real output, or a system without `poll`
    poll.register(number, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


def log_in_one_line() -> None:
    """Have loggers name an `InputError`, or a signal to end, without its traceback, which engines log on their way out."""
    if logging.getLogRecordFactory() is not logging.LogRecord:
        return  # another program's, or done before

    def record(*args: object, **kwargs: object) -> logging.LogRecord:
        made = logging.LogRecord(*args, **kwargs)
        if made.exc_info and isinstance(made.exc_info[1], BaseException):
            known = isinstance(first_cause(made.exc_info[1]), (InputError, SystemExit, KeyboardInterrupt))
            made.exc_info = None if known else made.exc_info
        return made

    logging.setLogRecordFactory(record)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it arose from, says that a disk or a user's share of it is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def hidden_end(error: BaseException | None) -> BaseException | None:
    """The order to end, by a signal, that an error arose from, such as that of `torch.save` on its way out; None without
    one."""
    while error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
        error = error.__cause__ or error.__context__
    return error


def clean_up_at_sigterm() -> None:
    """At SIGTERM, by which schedulers and torchrun end a process, remove what is half-written, as at Ctrl-C."""

    def end(number: int, _: FrameType | None) -> None:
        # Once: a second one would interrupt the removal.
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def _is_lost_process(error: BaseException) -> bool:
    """Whether an error is what a process sees of another one that ended."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or _LOST.search(str(error)) is not None


def _record_error(error: BaseException) -> None:
    """Leave an error where torchrun looks for the reason that a process ended; elsewhere nothing happens."""
    if not under_torchrun():
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise error.with_traceback(None) from None
    except type(error):
        get_error_handler().record_exception(error)
