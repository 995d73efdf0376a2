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

"""What a user sees while something runs: the stage, what of it is done, and its seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from tqdm import tqdm

_BEAT = 1.0  # seconds between two looks at the clock
_BEAT_OF_LOG = 10.0  # the same where each look stays as a line


@contextmanager
def stage(name: str, total: int | None = None, unit: str = "it", shown: bool = True) -> Iterator[tqdm]:
    """A bar that goes once its stage is over; its seconds go on while nothing is counted.

    Args:
        name: of the stage.
        total: what is to be counted by `update`; None counts nothing.
        unit: what is counted.
        shown: False draws nothing.
    """
    form = None if total else "{desc}: {elapsed}"
    beat_s, least_s = (_BEAT, 0.1) if sys.stderr.isatty() else (_BEAT_OF_LOG, _BEAT_OF_LOG)
    bar = tqdm(total=total, desc=name, unit=unit, leave=False, disable=not shown, bar_format=form, mininterval=least_s)
    with bar:
        over = Event()

        def beat() -> None:
            # Not `refresh` with its own lock: where nobody reads any longer (`| head`), it would fail and keep it.
            with suppress(OSError, ValueError):
                while not over.wait(beat_s):
                    with bar.get_lock():
                        bar.refresh(nolock=True)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield bar
        finally:
            over.set()
            thread.join(_BEAT)  # not forever: a write that failed may have left the lock to this thread
