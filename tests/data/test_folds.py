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

"""Folds of a training's subjects."""

from __future__ import annotations

import pytest
from scripts.data.folds import in_fold, unseen_by
from scripts.errors import InputError

SUBJECTS = ["c", "a", "d", "b", "e"]


def test_folds_share_out_the_sorted_subjects() -> None:
    assert in_fold(SUBJECTS, [0, 2]) == ["a", "c", "e"]
    assert in_fold([*SUBJECTS, "a"], (1, 2)) == ["b", "d"]
    assert in_fold(SUBJECTS, None) == sorted(SUBJECTS)
    assert in_fold([], [0, 2]) == []
    assert sorted(name for i in range(3) for name in in_fold(SUBJECTS, [i, 3])) == sorted(SUBJECTS)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_subject_is_in_the_fold_that_has_not_seen_it(count: int) -> None:
    folds = [in_fold(SUBJECTS, [i, count]) for i in range(count)]
    chosen = {subject: unseen_by(subject, SUBJECTS, count) for subject in SUBJECTS}
    assert all(subject not in folds[number] for subject, number in chosen.items())
    assert set(chosen.values()) == set(range(count))


@pytest.mark.parametrize("fold", [[2, 2], [-1, 2], [0], 1, "0,2", [0.0, 2], [True, 2]])
def test_what_is_no_fold_is_refused(fold: object) -> None:
    with pytest.raises(InputError, match=r"--fold .*: must be the number of a fold"):
        in_fold(SUBJECTS, fold)


def test_an_empty_fold_is_refused() -> None:
    with pytest.raises(InputError, match=r"--fold \[5, 6\]: is empty, since there are 5 subjects"):
        in_fold(SUBJECTS, [5, 6])
