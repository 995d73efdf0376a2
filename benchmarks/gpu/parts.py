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

"""Parts of a measurement, one after the other within a budget of seconds; what is finished is kept after each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scripts.errors import first_cause

# What each part found, by its name.
Results = dict[str, dict]
SKIPPED, FAILED = "skipped", "failed"


@dataclass(frozen=True)
class Part:
    """One of the things to measure."""

    name: str
    run: Callable[[Results], dict]
    """Its figures; takes what the parts before it found."""
    seconds: Callable[[Results], float]
    """How long it takes, by what the parts before it found."""
    needs: tuple[str, ...] = ()
    """Parts without which it says nothing."""


def run_parts(
    parts: Sequence[Part], budget: float, keep: Callable[[Results], None], clock: Callable[[], float] = time.monotonic
) -> Results:
    """Run the parts that fit in what is left of a budget when their turn comes.

    A part that does not fit, or that needs one that was not finished, is skipped; one that fails bars only those that
    need it.

    Args:
        parts: in their order.
        budget: seconds for all.
        keep: writes the results so far; called after each part, so that whatever ends the process loses only the part
            that is running.
        clock: seconds.

    Returns:
        For each part its figures and "seconds", or why it was "skipped", or why it "failed" and its "traceback".
    """
    start, results = clock(), {}
    for part in parts:
        begun = clock()
        reason = _why_not(part, results, budget - (begun - start))
        print(f"{part.name}: {reason or 'begins'} ({begun - start:.0f} s)", flush=True)
        if reason:
            results[part.name] = {SKIPPED: reason}
        else:
            try:
                results[part.name] = {**part.run(results), "seconds": clock() - begun}
            except Exception as error:
                reason = str(first_cause(error)).strip() or type(error).__name__
                results[part.name] = {FAILED: reason.splitlines()[0], "traceback": traceback.format_exc()}
                print(f"{part.name}: failed, {reason}", flush=True)
        keep(results)
    return results


def _why_not(part: Part, results: Mapping[str, dict], left: float) -> str:
    """Why a part cannot begin with so many seconds left; empty where it can."""
    if missing := [name for name in part.needs if not is_done(results.get(name))]:
        return f"needs {', '.join(missing)}"
    needed = part.seconds(results)
    return f"needs {needed:.0f} s, and {max(left, 0):.0f} s are left" if needed > left else ""


def is_done(result: Mapping | None) -> bool:
    """Whether a part was run to its end."""
    return result is not None and SKIPPED not in result and FAILED not in result
