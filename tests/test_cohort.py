"""Many cases through a real evaluator: each once, past bad ones, and none that is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from scripts.cohort import is_done, run_cases
from scripts.command_line import first_cause
from scripts.errors import InputError
from scripts.writers import DONE


class Study:
    """Cases whose transform fails where their name says so, and a record of those that were written."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.written: list[str] = []
        self.dataset = Dataset([{"case": name} for name in names], self.load)
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(self.dataset, batch_size=1),
            network=torch.nn.Identity(),
            prepare_batch=lambda batch, *args, **kwargs: (batch["image"], batch["image"]),
            postprocessing=self.write,
        )

    def load(self, item: dict) -> dict:
        if item["case"].startswith("bad"):
            raise InputError(f"{item['case']}.nii.gz: cannot be read")
        return {**item, "image": torch.zeros(1, 4, 4)}

    def write(self, item: dict) -> dict:
        if item["case"].startswith("late"):
            raise OSError(f"{item['case']}: disk full")
        (self.folder / item["case"]).mkdir(exist_ok=True)
        (self.folder / item["case"] / DONE).write_text("{}")
        self.written.append(item["case"])
        return item

    def run(self, overwrite: bool = False) -> list[str]:
        return run_cases(self.evaluator, self.dataset, self.folder, overwrite)


Make = Callable[..., Study]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda *names: Study(tmp_path, *names)


def test_each_case_is_run_once(make: Make) -> None:
    study = make("a", "b", "c")
    assert study.run() == study.written == ["a", "b", "c"]


@pytest.mark.parametrize("bad", ["bad", "late"])
def test_a_bad_case_does_not_stop_those_after_it(make: Make, bad: str, capsys: pytest.CaptureFixture) -> None:
    study = make(f"{bad}1", "a", f"{bad}2", f"{bad}3", "b", "c", f"{bad}4")
    with pytest.raises(InputError) as caught:
        study.run()
    assert study.written == ["a", "b", "c"]
    line = str(caught.value)
    assert "\n" not in line
    assert f"4 of 7 cases failed: {bad}1, {bad}2, {bad}3, {bad}4; the first one: {bad}1" in line
    assert capsys.readouterr().out.count(": failed, ") == 4


def test_what_is_done_is_skipped(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make("b").run()
    study = make("a", "b", "c")
    assert [is_done(study.folder, item) for item in study.dataset.data] == [False, True, False]
    with caplog.at_level(logging.INFO, "inference"):
        assert study.run() == study.written == ["a", "c"]
    assert "1 of 3 cases are done already; --overwrite True" in caplog.text
    assert study.run() == []
    assert study.run(overwrite=True) == ["a", "b", "c"]


def test_a_folder_without_its_last_file_is_not_done(make: Make) -> None:
    study = make("a", "b")
    study.run()
    (study.folder / "a" / DONE).unlink()
    assert study.run() == ["a"]


def test_a_lone_case_fails_with_its_own_error(make: Make) -> None:
    for name, kind, words in (("bad", InputError, "bad.nii.gz: cannot be read"), ("late", OSError, "late: disk full")):
        with pytest.raises(RuntimeError) as caught:
            make(name).run()
        assert isinstance(first_cause(caught.value), kind)
        assert str(first_cause(caught.value)) == words


def test_nothing_to_do_is_no_failure(make: Make) -> None:
    assert make().run() == []
