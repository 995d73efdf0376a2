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

"""Many cases through a real evaluator: each once, past bad ones, and none that is done."""

from __future__ import annotations

import csv
import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.data.results import DONE
from scripts.errors import InputError, first_cause
from scripts.registration.inferers import FieldInferer
from scripts.report.cohort_page import PAGE
from scripts.workflow import cohort
from scripts.workflow.cohort import (
    COLUMNS,
    SUMMARY,
    describe_case,
    describe_object,
    fingerprint,
    run_cases,
    summarize_case,
    without_folders,
)


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
        return {**item, "moving": torch.zeros(1, 4, 4, 1), "image": torch.zeros(1, 4, 4)}

    def write(self, item: dict) -> dict:
        if item["case"].startswith("late"):
            raise OSError(f"{item['case']}: disk full")
        (self.folder / item["case"]).mkdir(exist_ok=True)
        (self.folder / item["case"] / DONE).write_text(json.dumps({"fingerprint": item["fingerprint"]}))
        for name in ("moved.nii.gz", "field.nii.gz"):
            (self.folder / item["case"] / name).touch()
        self.written.append(item["case"])
        return item

    def run(self, overwrite: bool = False, parameters: dict | None = None) -> list[str]:
        return run_cases(self.evaluator, self.dataset, self.folder, overwrite, parameters)


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


def test_a_reason_names_no_folder() -> None:
    item = {"cine": "/data/DOE_JANE/a.nii.gz", "reference_label": "labels/ROE/a_gt.nii.gz"}
    reason = "/data/DOE_JANE/a.nii.gz and labels/ROE/a_gt.nii.gz: have affines apart"
    assert without_folders(reason, item) == "a.nii.gz and a_gt.nii.gz: have affines apart"
    assert without_folders("/data/DOE: is empty", {"cine": "/data/DOE"}) == "DOE: is empty"
    # One folder within the other, in the current one, and between a folder and its files.
    nested = {"cine": "/data/c.nii.gz", "reference_label": "/data/DOE_JANE/gt.nii.gz"}
    assert without_folders("/data/DOE_JANE/gt.nii.gz: holds 4", nested) == "gt.nii.gz: holds 4"
    near = {"cine": "c.nii.gz", "reference_label": "../DOE_JANE/gt.nii.gz"}
    assert without_folders("../DOE_JANE/gt.nii.gz: holds 4", near) == "gt.nii.gz: holds 4"
    assert (
        without_folders("[Errno 13] No: '/x/case7/DOE^JANE/2/IM1'", {"cine": "/x/case7"})
        == "[Errno 13] No: 'case7/IM1'"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}"])
def test_a_case_whose_quality_was_cut_off_is_run_again(make: Make, content: str) -> None:
    study = make("a", "b")
    study.run()
    (study.folder / "a" / DONE).write_text(content)
    assert study.run() == ["a"]


def test_what_is_done_is_skipped(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make("b").run()
    study = make("a", "b", "c")
    with caplog.at_level(logging.INFO, "inference"):
        assert study.run() == study.written == ["a", "c"]
    assert "1 of 3 cases were done already" in caplog.text
    assert study.run() == []
    assert study.run(overwrite=True) == ["a", "b", "c"]


def test_what_changed_is_run_again(make: Make, tmp_path: Path) -> None:
    study, files = make("a", "b"), [tmp_path / "a.txt", tmp_path / "b.txt"]
    for item, file in zip(study.dataset.data, files):
        file.write_text("one")
        item["moving"] = str(file)
    assert study.run(parameters={"steps": 0}) == ["a", "b"]
    assert study.run(parameters={"steps": 0}) == []
    files[1].write_text("two")
    assert study.run(parameters={"steps": 0}) == ["b"]
    assert study.run(parameters={"steps": 15}) == ["a", "b"]
    study.dataset.data[0]["reference"] = 3
    assert study.run(parameters={"steps": 15}) == ["a"]
    # What an older version left has no fingerprint.
    (study.folder / "b" / DONE).write_text("{}")
    assert study.run(parameters={"steps": 15}) == ["b"]
    for name in ("moved.nii.gz", "field.nii.gz"):
        (study.folder / "b" / name).unlink()
        assert study.run(parameters={"steps": 15}) == ["b"]


def test_a_fingerprint_is_of_contents_not_of_names(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "1").write_text("first")
        (tmp_path / folder / "2").write_text("second")
    prints = [fingerprint({"cine": str(tmp_path / folder)}, {"steps": 1}) for folder in ("one", "two")]
    assert prints[0] == prints[1]
    (tmp_path / "two" / "deep" / "1").write_text("First")
    assert fingerprint({"cine": str(tmp_path / "two")}, {"steps": 1}) != prints[0]
    assert fingerprint({"cine": str(tmp_path / "one")}, {"steps": 2}) != prints[0]
    assert fingerprint({"cine": str(tmp_path / "one"), "reference": 2}, {"steps": 1}) != prints[0]
    for end in ("img", "hdr"):
        (tmp_path / f"a.{end}").write_text(end)
    prints = [fingerprint({"cine": str(tmp_path / "a.img")}, {})]
    (tmp_path / "a.hdr").write_text("another")
    assert fingerprint({"cine": str(tmp_path / "a.img")}, {}) != prints[0]
    weights = [fingerprint({"error": "long" * 100}, {"weights": str(tmp_path / name / "2")}) for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_another_version_of_the_bundle_runs_cases_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make("a", "b")
    assert study.run() == ["a", "b"]
    assert study.run() == []
    monkeypatch.setattr(cohort, "bundle_version", lambda: "another")
    assert study.run() == ["a", "b"]


def test_the_console_tells_volumes_verdict_and_place(tmp_path: Path) -> None:
    figures = {f"{chamber}_{name}": 60.4 for chamber in ("lv", "rv") for name in ("edv_ml", "esv_ml", "ef_percent")}
    (tmp_path / "quality.json").write_text(json.dumps({"grade": "passed", "verdict": ["It fits."]}))
    assert describe_case(tmp_path).splitlines() == [
        f"{tmp_path.name}: passed. It fits.",
        f"{tmp_path.name}: {tmp_path}",
    ]
    figures |= {"rv_ef_percent": None, "lv_measured_by": "carried", "carried": {"lv_ef_percent": 60.4}}
    (tmp_path / "function.json").write_text(json.dumps(figures))
    (tmp_path / "report.html").touch()
    assert describe_case(tmp_path).splitlines() == [
        f"{tmp_path.name}: LV EDV 60 mL, ESV 60 mL, EF 60 % carried by the motion",
        f"{tmp_path.name}: passed. It fits.",
        f"{tmp_path.name}: {tmp_path / 'report.html'}",
    ]


def test_the_console_tells_both_answers_and_that_contours_are_automatic(tmp_path: Path) -> None:
    quality = {"verdict": [], "grade": "passed", "label_basis": "automatic", "reference_frame": 3}
    (tmp_path / "quality.json").write_text(json.dumps(quality))
    figures = {f"{chamber}_{name}": 60.4 for chamber in ("lv", "rv") for name in ("edv_ml", "esv_ml", "ef_percent")}
    figures |= {"lv_measured_by": "carried", "rv_measured_by": "segmented"}
    figures |= {
        by: {f"{chamber}_ef_percent": number for chamber in ("lv", "rv")}
        for by, number in (("carried", 50), ("segmented", 55))
    }
    (tmp_path / "function.json").write_text(json.dumps(figures | {"unmeasured": "It has no limits."}))
    assert [line.partition(": ")[2] for line in describe_case(tmp_path).splitlines()[:4]] == [
        "contours are automatic, of frame 3",
        "LV EDV 60 mL, ESV 60 mL, EF 60 % carried by the motion, 55 % segmented in each frame",
        "RV EDV 60 mL, ESV 60 mL, EF 60 % segmented in each frame, 50 % carried by the motion",
        "It has no limits.",
    ]


def test_a_fingerprint_is_of_each_option_that_changes_results() -> None:
    def parameters(**options: object) -> dict:
        parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")))
        parser.update({"bundle_root": str(ROOT), "device": "cpu", **options})
        return parser.get_parsed_content("parameters")

    assert parameters(slices_at_once=3) == parameters()
    changes = {
        "checkpoint": "a.pt",
        "depth_checkpoint": "a.pt",
        "clip_percentile": 98.0,
        "working_spacing": 1.2,
        "passes": 2,
        "refine_iterations": 2,
        "bf16": True,
    }
    changes |= {"segmentation": "none", "reference_label": "none"}
    changes |= {"sector_origin": 30.0, "resample_moving": True, "write": "fields"}
    for name, value in changes.items():
        assert parameters(**{name: value}) != parameters(), name


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"network_def::backbone::antisymmetric": False}, 0),
        ({"network_def::backbone::norm_window": None}, 0),
        ({"network_def::backbone::smoothing": 4.0}, 0),
        ({"integration::num_steps": 2}, 0),
        ({"inferer::learning_rate": 0.5}, 1),
        ({"slices_at_once": 3, "inferer::progress": False}, None),
    ],
)
def test_a_description_is_of_all_settings_that_change_fields(options: dict, part: int | None) -> None:
    def described(changes: dict) -> list[str]:
        parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml")))
        parser.update({"bundle_root": str(ROOT), "device": "cpu", **changes})
        return [describe_object(parser.get_parsed_content(name)) for name in ("stack_network", "inferer")]

    same = [one == other for one, other in zip(described({}), described(options))]
    assert same == [number != part for number in (0, 1)]


def test_another_inferer_runs_cases_again(make: Make) -> None:
    study = make("a", "b")
    assert study.run() == ["a", "b"]
    assert study.run() == []
    study.evaluator.inferer = FieldInferer()
    assert study.run() == ["a", "b"]


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


def read_summary(folder: Path) -> list[dict]:
    with (folder / SUMMARY).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_summary_that_cannot_be_written_hides_no_failure(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cohort, "write_csv", fill)
    monkeypatch.setattr(cohort, "write_cohort", fill)
    study = make("b", "bad", "a")
    words = r"summary\.csv: cannot be written \(No space.*cohort\.html: cannot.* 1 of 3 cases failed: bad;"
    with pytest.raises(InputError, match=words):
        study.run()


def test_the_summary_has_done_and_failed_cases_in_order(make: Make) -> None:
    study = make("b", "bad", "a")
    with pytest.raises(InputError):
        study.run()
    rows = read_summary(study.folder)
    assert [(row["case"], row["status"]) for row in rows] == [("b", "done"), ("bad", "failed"), ("a", "done")]
    assert [row["reason"] for row in rows] == ["", "bad.nii.gz: cannot be read", ""]
    # A run of one case leaves the summary of all alone.
    make("c").run()
    assert read_summary(study.folder) == rows


def test_a_row_has_the_worst_frame_and_the_function(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    frames = [
        {"folding_percent": f, "jacobian_min": j, "inverse_error_mm_p95": 0.1}
        for f, j in ((0.0, 0.3), (0.5, -0.2), (0.2, 0.1))
    ]
    quality = {"frames": frames, "verdict": ["It folds.", "It drifts."], "grade": "do not use"}
    (tmp_path / "a" / DONE).write_text(json.dumps(quality))
    (tmp_path / "a" / "function.json").write_text(
        json.dumps(
            {
                "lv_ef_percent": 60.503456789,
                "lv_volume_ml": [1, 2],
                "segmented": {"lv_ef_percent": 58.0, "lv_edv_ml": 99.5},
            }
        )
    )
    lines = ["1,global,0.0,0.0", "2,global,0.4,-0.2", "2,anterior,0.9,-0.9", "3,global,0.1,-0.1"]
    (tmp_path / "a" / "strain.csv").write_text("\n".join(["frame,region,radial,circumferential", *lines]))
    row = summarize_case(tmp_path, {"case": "a"})
    assert tuple(row) == COLUMNS
    assert {key: value for key, value in row.items() if value != ""} == {
        "case": "a",
        "status": "done",
        "grade": "do not use",
        "verdict": "It folds. It drifts.",
        "folding_percent": 0.5,
        "jacobian_min": -0.2,
        "inverse_error_mm_p95": 0.1,
        "lv_ef_percent": 60.5,  # of four digits
        "lv_edv_segmented_ml": 99.5,
        "lv_ef_segmented_percent": 58.0,
        "peak_radial_strain_percent": 40.0,
        "peak_circumferential_strain_percent": -20.0,
    }


def test_done_cases_are_counted_over_all_processes(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make("a", "b", "c", "d").run()
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_gather", lambda rows: [rows, []])
    monkeypatch.setattr(idist, "all_reduce", lambda count: count + 1)  # the other process found one of its share
    with caplog.at_level(logging.INFO, "inference"):
        assert make("a", "b", "c", "d").run() == []
    assert "3 of 4 cases were done already" in caplog.text


@pytest.mark.parametrize("good", ["abcdef", "a"])
def test_processes_share_the_cases(make: Make, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*good, "bad"]
    studies, parts = [make(*names) for _ in range(3)], [[], [], []]

    def all_gather(rows: list) -> list[list]:
        parts[idist.get_rank()] = rows
        return parts

    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    monkeypatch.setattr(idist, "all_gather", all_gather)
    # One after the other, the first process last: it looks for its share when much is done.
    for rank in (2, 1, 0):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        if rank:
            studies[rank].run()
    with pytest.raises(InputError, match=f"1 of {len(names)} cases failed: bad;"):
        studies[0].run()
    assert [study.written for study in studies] == [
        [name for name in names[rank::3] if name != "bad"] for rank in range(3)
    ]
    rows = read_summary(studies[0].folder)
    assert [(row["case"], row["status"]) for row in rows] == [*((name, "done") for name in good), ("bad", "failed")]


def test_a_failure_without_words_is_a_failure(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make("a", "b")
    monkeypatch.setattr(study.evaluator, "run", lambda: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(InputError, match="2 of 2 cases failed: a, b; the first one: MemoryError"):
        study.run()
    assert [row["status"] for row in read_summary(study.folder)] == ["failed", "failed"]


def test_what_cannot_be_written_is_not_computed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make("a", "b")
    (study.folder / "a").mkdir()
    (study.folder / "a" / "IM1.dcm").write_text("the only copy")
    with pytest.raises(InputError, match=r"1 of 2 cases failed: a; the first one: .*a: is there and holds no results"):
        study.run()
    assert study.written == ["b"]
    study.folder = study.folder / "a" / "IM1.dcm"
    with pytest.raises(InputError, match=r"IM1\.dcm: cannot be made"):
        study.run()


def test_the_page_of_the_cohort_has_skipped_and_failed_cases(make: Make) -> None:
    make("b").run()
    study = make("b", "bad", "a")
    with pytest.raises(InputError):
        study.run()
    page = (study.folder / PAGE).read_text()
    assert page.index("bad.nii.gz: cannot be read") < page.index('data-sort="b"') < page.index('data-sort="a"')
    # A run of one case leaves it alone.
    make("c").run()
    assert (study.folder / PAGE).read_text() == page
    make("a", "b").run()
    assert "bad" not in (study.folder / PAGE).read_text()


def test_a_page_of_the_user_s_is_not_replaced(make: Make) -> None:
    study = make("a", "b")
    (study.folder / PAGE).write_text("<p>my own</p>")
    with pytest.raises(InputError, match=r"cohort\.html: exists and is not the summary of an earlier run"):
        study.run()
    assert study.written == []


def test_a_table_of_the_user_s_is_no_summary(make: Make) -> None:
    study = make("a", "b")
    (study.folder / SUMMARY).write_text("patient,EF by the cardiologist\n")
    with pytest.raises(InputError, match=r"summary\.csv: exists and is not the summary of an earlier run"):
        study.run()
    assert study.written == []
