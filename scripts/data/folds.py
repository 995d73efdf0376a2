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

"""Folds of the subjects of a training, for networks whose output on these subjects another training needs."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.errors import InputError


def in_fold(subjects: Sequence[str], fold: Sequence[int] | None) -> list[str]:
    """The subjects of one fold, sorted: of n folds, the i-th has every n-th subject from the i-th one.

    Args:
        subjects: names, in any order.
        fold: i, counted from 0, and n; None takes all subjects.

    Raises:
        InputError: for numbers that are no fold, or one that is empty.
    """
    ordered = sorted(set(subjects))
    if fold is None:
        return ordered
    if not is_fold(fold):
        raise InputError(f"--fold {fold}: must be the number of a fold, from 0, and how many there are: '[0,2]'.")
    first, count = fold
    if ordered and not ordered[first::count]:
        raise InputError(f"--fold {fold}: is empty, since there are {len(ordered)} subjects; give fewer folds.")
    return ordered[first::count]


def unseen_by(subject: str, subjects: Sequence[str], count: int) -> int:
    """The number of a fold of `count` that a subject is not in: the next one after its own.

    Args:
        subject: one of `subjects`.
        subjects: those that the folds share out.
        count: of folds, two or more.
    """
    return (sorted(set(subjects)).index(subject) + 1) % count


def is_fold(fold: object) -> bool:
    """Whether it is a number from 0 and a count above it."""
    if not isinstance(fold, (list, tuple)) or len(fold) != 2:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) for n in fold) and 0 <= fold[0] < fold[1]
