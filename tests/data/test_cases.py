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

"""Options and folders to cases: which frame is the reference, what is found in a folder, and that one bad case spares
the others."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from scripts.data.cases import find_cases, inference_cases
from scripts.data.datalists import unique_names
from scripts.data.dicom import read_dicom_cine
from scripts.data.loading import LoadCase
from scripts.data.nifti import shape_of
from scripts.errors import InputError
from scripts.workflow.cohort import without_folders

from tests.dicom_files import AXES, NORMAL, make_stack, set_tags
from tests.dicom_files import write as write_dicom


@pytest.fixture
def copy(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


@pytest.fixture
def subject(copy: Path) -> Path:
    return copy / "phantom001"


def test_no_source_gives_no_cases_so_that_a_config_can_be_inspected() -> None:
    assert find_cases() == []


def test_the_reference_is_the_one_given_else_that_of_info_cfg_else_open(subject: Path) -> None:
    path = subject / "phantom001_4d.nii.gz"
    (subject / "Info.cfg").write_text("ED: 4\nES: 2\n")
    (item,) = find_cases(cine=str(path))
    assert (item["case"], item["subject"], item["cine"]) == ("phantom001", "phantom001", str(path))
    assert (item["reference"], item["reference_basis"]) == (4, "end diastole by Info.cfg")
    (item,) = find_cases(cine=str(path), reference_frame=2)
    assert item["reference"] == 2
    assert "--reference_frame" in item["reference_basis"]
    (subject / "Info.cfg").unlink()
    (item,) = find_cases(cine=str(path))
    assert "reference" not in item


def test_info_cfg_beside_several_cines_is_the_one_s_of_its_name(
    subject: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = subject / "phantom001_4d.nii.gz"
    (subject / "Info.cfg").write_text("ED: 4\nES: 2\n")
    shutil.copy(path, subject / "other_4d.nii.gz")
    assert find_cases(cine=str(path))[0]["reference"] == 4
    assert not caplog.records
    assert "reference" not in find_cases(cine=str(subject / "other_4d.nii.gz"))[0]
    assert (
        "lies beside several cines, so its ED is not taken for other_4d.nii.gz's; give --reference_frame" in caplog.text
    )


def test_info_cfg_in_a_dicom_folder_is_its_cine_s_whatever_lies_beside_it(subject: Path) -> None:
    (subject / "scan").mkdir()
    (subject / "scan" / "1.dcm").touch()
    (subject / "scan" / "Info.cfg").write_text("ED: 4\n")
    assert find_cases(cine=str(subject / "scan"))[0]["reference"] == 4


def test_an_ed_that_is_no_frame_is_refused_by_the_name_of_info_cfg(subject: Path) -> None:
    path = str(subject / "phantom001_4d.nii.gz")
    (subject / "Info.cfg").write_text("ED: 0\nES: 2\n")
    with pytest.raises(InputError, match=r"Info\.cfg: ED is 0, which is not a frame"):
        find_cases(cine=path)
    with pytest.raises(InputError, match=r"Info\.cfg: ED is 0"):
        LoadCase()(find_cases(dataset_dir=str(subject.parent))[0])
    assert find_cases(cine=path, reference_frame=2)[0]["reference"] == 2
    (subject / "Info.cfg").write_bytes(b"ED: 3\nName: Andr\xe9\n")
    assert find_cases(cine=path)[0]["reference"] == 3


@pytest.mark.parametrize("frame", [0, -1, 1.5, "ED"])
def test_a_frame_that_is_no_number_from_one_is_refused(subject: Path, frame: object) -> None:
    with pytest.raises(InputError, match="counted from 1"):
        find_cases(cine=str(subject / "phantom001_4d.nii.gz"), reference_frame=frame)


def test_a_label_or_points_need_a_known_frame_and_one_cine(subject: Path) -> None:
    path, label = subject / "phantom001_4d.nii.gz", subject / "phantom001_frame01_gt.nii.gz"
    (item,) = find_cases(cine=str(path), reference_label=str(label))
    assert item["reference_label"] == str(label)
    with pytest.raises(InputError, match=r"nowhere.nii: no such file \(reference_label"):
        find_cases(cine=str(path), reference_label="nowhere.nii")
    (subject / "Info.cfg").unlink()
    with pytest.raises(InputError, match=r"p\.csv: it is not known which frame these points belong to"):
        find_cases(cine=str(path), points="p.csv")
    with pytest.raises(InputError, match="it is not known which frame") as caught:
        find_cases(cine=str(path), reference_label=str(label))
    assert str(label) in str(caught.value)


def test_no_label_is_taken_where_none_is_wanted(copy: Path) -> None:
    path, label = str(copy / "phantom001" / "phantom001_4d.nii.gz"), "phantom001_frame01_gt.nii.gz"
    for auto in ({}, {"reference_label": None}, {"reference_label": "auto"}):
        assert inference_cases(cine=path, **auto)[0]["reference_label"].endswith(label)
    assert "reference_label" not in inference_cases(cine=path, reference_label="none")[0]
    items = inference_cases(dataset_dir=str(copy), reference_label="none")
    assert not any("reference_label" in item for item in items)


def test_a_folder_in_acdc_layout_gives_cines_with_their_label_else_pairs(copy: Path) -> None:
    for folder in (copy / "phantom002", copy / "phantom003"):
        next(folder.glob("*_4d.nii.gz")).unlink()
    items = find_cases(dataset_dir=str(copy))
    assert [item["subject"] for item in items] == [f"phantom{n:03d}" for n in range(1, 6)]
    assert ["cine" in item for item in items] == [True, False, False, True, True]
    assert items[0]["reference_label"].endswith("phantom001_frame01_gt.nii.gz")
    assert items[1]["moving_label"].endswith("phantom002_frame03_gt.nii.gz")
    # With both directions a pair is two cases; with another reference frame the label at end diastole has no frame, and
    # a pair fails.
    assert len(find_cases(dataset_dir=str(copy), direction="both")) == 7
    items = find_cases(dataset_dir=str(copy), reference_frame=2)
    assert (items[0]["reference"], "reference_label" in items[0]) == (2, False)
    with pytest.raises(InputError, match="phantom002: is a pair, which has no reference frame"):
        LoadCase()(items[1])


def test_a_folder_of_files_gives_those_with_four_axes(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("phantom002", "phantom001"):
        shutil.copy(copy / name / f"{name}_4d.nii.gz", folder)
    shutil.copy(copy / "phantom001" / "phantom001_frame01.nii.gz", folder)
    (folder / "broken.nii.gz").write_text("no image")
    assert [item["case"] for item in find_cases(dataset_dir=str(folder))] == ["broken", "phantom001", "phantom002"]
    for label in ("phantom001_seg", "seg_phantom001", "label_sa", "mask_sa", "sa_label"):
        shutil.copy(folder / "phantom001_4d.nii.gz", folder / f"{label}.nii.gz")
    assert [item["case"] for item in find_cases(dataset_dir=str(folder))] == ["broken", "phantom001", "phantom002"]
    # So does a folder of such folders.
    shutil.copy(folder / "phantom001_4d.nii.gz", folder / "phantom001_gt.nii.gz")
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "files")
    items = find_cases(dataset_dir=str(tmp_path / "all"))
    assert [item["case"] for item in items] == ["broken", "phantom001", "phantom002"]


@pytest.mark.parametrize(("cine", "ends"), [("sa", ""), ("001_SA_CINE", "_gt")])
def test_frames_of_their_own_beside_a_cine_need_no_warning(
    copy: Path, tmp_path: Path, cine: str, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As UK Biobank and M&Ms-2 name them; without the cine, the cure is a list of pairs."""
    folder = tmp_path / "all" / "001"
    folder.mkdir(parents=True)
    shutil.copy(copy / "phantom001" / "phantom001_4d.nii.gz", folder / f"{cine}.nii.gz")
    stem = cine.removesuffix("_CINE")
    for phase, frame in (("ED", 1), ("ES", 3)):
        shutil.copy(copy / "phantom001" / f"phantom001_frame0{frame}.nii.gz", folder / f"{stem}_{phase}.nii.gz")
        label = f"{stem}_{phase}{ends}" if ends else f"seg_{stem}_{phase}"
        shutil.copy(copy / "phantom001" / f"phantom001_frame0{frame}_gt.nii.gz", folder / f"{label}.nii.gz")
    assert [item["case"] for item in find_cases(dataset_dir=str(tmp_path / "all"))] == [cine]
    assert not caplog.records
    (folder / f"{cine}.nii.gz").unlink()
    with pytest.raises(InputError, match=r"holds neither subjects.*or pairs of frames by --data_list"):
        find_cases(dataset_dir=str(tmp_path / "all"))


def test_a_folder_of_dicom_folders_gives_a_case_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a", "bad"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "1.dcm").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "Info.txt").write_text("no Info.cfg")
    items = find_cases(dataset_dir=str(tmp_path), reference_frame=3)
    assert [(item["case"], item["reference"]) for item in items] == [("a", 3), ("b", 3), ("bad", 3)]
    with pytest.raises(InputError, match=r"bad: 1\.dcm is not DICOM by its first bytes"):
        LoadCase()(items[-1])


def test_a_folder_of_several_kinds_loses_no_case(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / "files").mkdir()
    for number, target in ((2, copy), (3, copy / "files")):
        shutil.move(copy / f"phantom00{number}" / f"phantom00{number}_4d.nii.gz", target)
        shutil.rmtree(copy / f"phantom00{number}")
    (copy / "scan" / "deep").mkdir(parents=True)
    (copy / "scan" / "deep" / "IM0").write_bytes(bytes(128) + b"DICM")
    (copy / "bad").mkdir()
    (copy / "bad" / "1.DCM").touch()
    # A converter's output beside its input.
    shutil.copy(copy / "scan" / "deep" / "IM0", copy / "files")
    with caplog.at_level("INFO", logger="inference"):
        names = [item["case"] for item in find_cases(dataset_dir=str(copy))]
    assert names == ["phantom001", "phantom004", "phantom005", "phantom002", "bad", "phantom003", "scan"]
    assert f"{copy / 'files'}: cines are its 4-D NIfTI files (1); its DICOM files are left out" in caplog.text
    assert caplog.text.endswith("left out, for they hold no case: phantom.json, splits.json\n")


def test_what_is_no_case_stays_out_of_a_folder_and_is_named(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    subjects = [f"phantom{n:03d}" for n in range(1, 6)]
    (copy / ".cache").mkdir()
    (copy / ".cache" / "a.dcm").touch()
    (copy / "notes").mkdir()
    (copy / "notes" / "a.txt").write_text("no case")
    (copy / "empty").mkdir()
    # What macOS leaves beside files.
    for name in ("._phantom001_4d.nii.gz", "notes/._a.nii.gz", "notes/._1.dcm"):
        (copy / name).write_bytes(bytes(8))
    shutil.copy(copy / "phantom001" / "phantom001_frame01.nii.gz", copy)
    # Outputs: in a folder of their own, and beside the cases.
    for folder in (copy / "out" / "phantom001", copy / "written"):
        folder.mkdir(parents=True)
        shutil.copy(copy / "phantom001" / "phantom001_4d.nii.gz", folder / "moved.nii.gz")
        (folder / "quality.json").write_text("{}")
    (copy / "out" / "summary.csv").write_text("case\n")
    with caplog.at_level("INFO", logger="inference"):
        assert [item["case"] for item in find_cases(dataset_dir=str(copy))] == subjects
    assert (
        "left out, for they hold no case: empty, notes, out, phantom.json, phantom001_frame01.nii.gz, splits.json, written"
        in caplog.text
    )
    for name in subjects:
        shutil.rmtree(copy / name)
    with pytest.raises(InputError, match="holds neither subjects"):
        find_cases(dataset_dir=str(copy))


def test_a_folder_of_dicom_files_alone_is_one_case(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").touch()
    assert [(item["case"], item["cine"]) for item in find_cases(dataset_dir=str(tmp_path))] == [
        (tmp_path.name, str(tmp_path))
    ]


def test_info_cfg_in_a_dicom_folder_names_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Info.cfg").write_text("ED: 3\n")
    (item,) = find_cases(cine=str(tmp_path))
    assert (item["reference"], item["reference_basis"]) == (3, "end diastole by Info.cfg")
    # Its own name, where it is the current folder.
    monkeypatch.chdir(tmp_path)
    assert find_cases(cine=".")[0]["case"] == tmp_path.name


def test_a_bad_subject_is_a_case_that_fails_by_itself(copy: Path) -> None:
    next((copy / "phantom001").glob("*_4d.nii.gz")).unlink()
    next((copy / "phantom001").glob("*_frame03.nii.gz")).unlink()
    items = find_cases(dataset_dir=str(copy))
    assert [item["case"] for item in items] == [f"phantom{n:03d}" for n in range(1, 6)]
    with pytest.raises(InputError, match=r"phantom001_frame03.nii.gz: no such file"):
        LoadCase()(items[0])
    assert LoadCase()(items[1])["moving"].shape == (4, 40, 36, 2)


def test_a_bad_info_cfg_beside_a_cine_spares_the_other_cases(copy: Path, tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / "all" / name).mkdir(parents=True)
        shutil.copy(copy / "phantom001" / "phantom001_4d.nii.gz", tmp_path / "all" / name / f"{name}_4d.nii.gz")
    (tmp_path / "all" / "bad" / "Info.cfg").write_text("ED: one\n")
    bad, good = find_cases(dataset_dir=str(tmp_path / "all"))
    assert (bad["case"], good["case"]) == ("bad", "good")
    assert "ED is one, which is not a frame" in str(bad["error"])
    # The folder that the case is named after, and none above it.
    assert without_folders(str(bad["error"]), bad).startswith("bad/Info.cfg: ED is one")
    assert "error" not in good


def test_a_folder_that_may_not_be_opened_spares_the_others(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "lost+found").mkdir()
    before = find_cases(dataset_dir=str(copy))
    allowed, is_file = os.access, Path.is_file

    def deny(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "lost+found" and allowed(path, mode))
    monkeypatch.setattr(Path, "is_file", deny)
    with caplog.at_level("INFO"):
        assert find_cases(dataset_dir=str(copy)) == before
    assert "left out, for they hold no case: " in caplog.text
    assert "lost+found" in caplog.text


def test_an_info_cfg_of_windows_names_the_reference(copy: Path) -> None:
    path = copy / "phantom001" / "Info.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(sorted(path.read_text().split("\n"))).strip().encode())
    assert path.read_bytes()[3:5] == b"ED"
    assert (
        find_cases(cine=str(copy / "phantom001" / "phantom001_4d.nii.gz"))[0]["reference_basis"]
        == "end diastole by Info.cfg"
    )


def test_a_folder_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither subjects"):
        find_cases(dataset_dir=str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        find_cases(dataset_dir=str(tmp_path / "nowhere"))


def test_a_list_holds_pairs_and_cines_with_paths_relative_to_it(subject: Path) -> None:
    cine, label, names = (
        "phantom001_4d.nii.gz",
        "phantom001_frame01_gt.nii.gz",
        [f"phantom001_frame0{n}.nii.gz" for n in (3, 1)],
    )
    (subject / "p.csv").write_text("x,y,z\n0,0,0\n")
    listed = [
        {"moving": names[0], "fixed": names[1]},
        {"cine": cine, "reference": 2, "reference_label": label, "points": "p.csv", "case": "mine"},
        {"cine": cine},
        {"cine": "nowhere.nii.gz"},
    ]
    (subject / "list.json").write_text(json.dumps({"test": listed}))
    pair, first, second, missing = find_cases(data_list=str(subject / "list.json"))
    name = "phantom001_frame03_to_phantom001_frame01"
    assert pair == {"moving": str(subject / names[0]), "fixed": str(subject / names[1]), "case": name, "subject": name}
    assert (first["case"], first["reference"], first["reference_basis"]) == ("mine", 2, "given in the data list")
    assert (first["reference_label"], first["points"]) == (str(subject / label), str(subject / "p.csv"))
    # Info.cfg holds here, too.
    assert (second["case"], second["reference"]) == ("phantom001", 1)
    with pytest.raises(InputError, match=r"nowhere.nii.gz: no such file"):
        LoadCase()(missing)
    (subject / "Info.cfg").unlink()
    (subject / "list.json").write_text(json.dumps({"test": [{"cine": cine, "reference_label": label}]}))
    with pytest.raises(InputError, match="it is not known which frame"):
        LoadCase()(find_cases(data_list=str(subject / "list.json"))[0])


def test_a_pair_needs_both_images_that_are_there(tmp_path: Path) -> None:
    path = str(write_nifti(tmp_path / "a_4d.nii.gz", np.zeros((2, 2, 2))))
    other = str(write_nifti(tmp_path / "c.nii.gz", np.zeros((2, 2, 2))))
    names = {"case": "a_to_c", "subject": "a_to_c"}
    assert find_cases(moving=path, fixed=other) == [{"moving": path, "fixed": other, **names}]
    extras = {"moving_label": path, "points": path}
    assert find_cases(moving=path, fixed=other, **extras) == [{"moving": path, "fixed": other, **extras, **names}]
    for options, words in (
        ({"moving": path, "fixed": path}, "a_4d.nii.gz: is the image of both moving and fixed in case a_to_a"),
        ({"moving": path}, "--fixed is missing"),
        ({"fixed": path}, "--moving is missing"),
        ({"moving": path, "fixed": "b.nii.gz"}, "b.nii.gz: no such file"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            find_cases(**options)


def test_one_frame_for_both_phases_is_called_out(subject: Path, caplog: pytest.LogCaptureFixture) -> None:
    (subject / "Info.cfg").write_text("ED: 2\nES: 2\n")
    (item,) = find_cases(cine=str(next(subject.glob("*_4d.nii.gz"))))
    assert item["reference"] == 2
    assert f"{subject / 'Info.cfg'}: has one frame, 2, for ED and ES" in caplog.text


def test_a_folder_has_images_in_two_files_and_not_itself(subject: Path, tmp_path: Path) -> None:
    cine = nib.load(next(subject.glob("*_4d.nii.gz")))
    folder = tmp_path / "all"
    folder.mkdir()
    nib.save(nib.Nifti1Pair(np.asarray(cine.dataobj), cine.affine), folder / "heart_4d.hdr")
    (folder / "itself").symlink_to(folder)
    (item,) = find_cases(dataset_dir=str(folder))
    assert (item["case"], item["cine"]) == ("heart", str(folder / "heart_4d.hdr"))
    with pytest.raises(InputError, match=r"heart_4d\.hdr: is a file; give it as --cine"):
        find_cases(dataset_dir=item["cine"])


def test_names_differ(subject: Path) -> None:
    names = ["a", "b", "a", "a_2", "a", "a_2"]
    renamed = unique_names([{"case": name, "number": n} for n, name in enumerate(names)])
    assert [item["number"] for item in renamed] == list(range(6))
    assert len({item["case"] for item in renamed}) == 6
    assert [item["case"] for item in renamed][:3] == ["a", "b", "a_2"]
    # Some file systems take these for one.
    assert [item["case"] for item in unique_names([{"case": "Heart"}, {"case": "heart"}])] == ["Heart", "heart_2"]
    (subject / "list.json").write_text(json.dumps({"test": [{"cine": "phantom001_4d.nii.gz"}] * 2}))
    assert [item["case"] for item in inference_cases(data_list=str(subject / "list.json"))] == [
        "phantom001",
        "phantom001_2",
    ]


def test_links_under_pseudonyms_lead_to_no_name(copy: Path, tmp_path: Path) -> None:
    anonymous = tmp_path / "anonymous"
    for number in (1, 2):
        file = copy / f"DOE_{number}" / "sa.nii.gz"
        file.parent.mkdir()
        shutil.move(copy / f"phantom00{number}" / f"phantom00{number}_4d.nii.gz", file)
        (anonymous / f"case{number}").mkdir(parents=True)
        (anonymous / f"case{number}" / "sa.nii.gz").symlink_to(file)
    folder = write_dicom(copy / "DOE_3", make_stack())
    (anonymous / "case3").symlink_to(folder)
    cases = inference_cases(dataset_dir=str(anonymous))
    assert [item["case"] for item in cases] == ["case1_sa", "case2_sa", "case3"]
    assert find_cases(cine=str(anonymous / "case3"))[0]["case"] == "case3"
    assert read_dicom_cine(anonymous / "case3").name == "case3"
    assert not any("DOE" in str(value) for item in cases for value in item.values())


def test_endings_may_be_capitals(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "upper" / "HEART_4D.NII.GZ"
    file.parent.mkdir()
    shutil.copy(copy / "phantom001" / "phantom001_4d.nii.gz", file)
    assert [(item["case"], item["cine"]) for item in find_cases(dataset_dir=str(file.parent))] == [("HEART", str(file))]
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # in the checksum
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"HEART_4D\.NII\.GZ: cannot be read"):
        LoadCase()(find_cases(cine=str(file))[0])


def test_a_subject_is_its_files_not_its_info_cfg_alone(copy: Path) -> None:
    other = copy / "another"
    other.mkdir()
    (copy / "phantom002" / "phantom002_4d.nii.gz").rename(other / "heart_4d.nii.gz")
    (other / "Info.cfg").write_text("ED: 2\n")
    by_name = {item["case"]: item for item in find_cases(dataset_dir=str(copy))}
    assert by_name["heart"]["cine"] == str(other / "heart_4d.nii.gz")
    assert by_name["heart"]["reference"] == 2
    assert "cine" not in by_name["phantom002"]  # its frames make a pair
    # A folder with an Info.cfg and no image at all is told from one that holds no case.
    (other / "heart_4d.nii.gz").unlink()
    (other / "Info.cfg").write_text("ED: 2\nES: 3\n")
    (lost,) = [item for item in find_cases(dataset_dir=str(copy)) if item["case"] == "another"]
    with pytest.raises(InputError, match=r"another_frame\d+\.nii\.gz: no such file"):
        LoadCase()(lost)


def test_a_reference_frame_takes_its_own_label_along(copy: Path) -> None:
    ed = 1
    es = next(
        int(line[4:]) for line in (copy / "phantom001" / "Info.cfg").read_text().splitlines() if line.startswith("ES: ")
    )
    for frame in (ed, es):
        item, *_ = find_cases(dataset_dir=str(copy), reference_frame=frame)
        assert item["reference"] == frame
        assert item["reference_label"].endswith(f"phantom001_frame{frame:02d}_gt.nii.gz")
    item, *_ = find_cases(dataset_dir=str(copy), reference_frame=es - 1)
    assert "reference_label" not in item


def test_a_list_says_reference_frame_as_the_option_does(subject: Path) -> None:
    listed = [{"cine": "phantom001_4d.nii.gz", key: 3} for key in ("reference", "reference_frame")]
    (subject / "list.json").write_text(json.dumps({"test": listed}))
    assert [item["reference"] for item in find_cases(data_list=str(subject / "list.json"))] == [3, 3]


def test_files_of_one_name_are_named_after_their_folders(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "study"
    for name in ("patA", "patB"):
        (root / name).mkdir(parents=True)
        shutil.copy(copy / "phantom001" / "phantom001_4d.nii.gz", root / name / "cine_4d.nii.gz")
    found = lambda: {item["case"]: item["cine"] for item in inference_cases(dataset_dir=str(root))}
    before = found()
    assert before == {f"{name}_cine": str(root / name / "cine_4d.nii.gz") for name in ("patA", "patB")}
    # Another patient does not rename these.
    shutil.copytree(root / "patA", root / "patAA")
    assert before.items() <= found().items()


def test_a_pair_of_a_list_goes_by_its_subject(copy: Path) -> None:
    names = {"moving": "phantom001/phantom001_frame03.nii.gz", "fixed": "phantom001/phantom001_frame01.nii.gz"}
    (copy / "list.json").write_text(json.dumps({"test": [{**names, "subject": "patA"}, names]}))
    cases = [item["case"] for item in inference_cases(data_list=str(copy / "list.json"))]
    assert cases == ["patA", "phantom001_frame03_to_phantom001_frame01"]


def test_a_label_of_another_frame_by_its_name_is_called_out(subject: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, label = subject / "phantom001_4d.nii.gz", subject / "phantom001_frame01_gt.nii.gz"
    find_cases(cine=str(path), reference_frame=1, reference_label=str(label))
    assert not caplog.records
    find_cases(cine=str(path), reference_frame=3, reference_label=str(label))
    assert "frame01_gt.nii.gz: is of frame 1 by its name, and is taken for that of the reference frame 3" in caplog.text


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two patients' studies: a short-axis and a long-axis series each, in folders of their own."""
    for patient in ("A", "B"):
        for number, stack in enumerate((make_stack(), make_stack(1, 5, axes=np.stack([NORMAL, AXES[1]]))), start=1):
            tags = {
                "StudyInstanceUID": f"1.2.{ord(patient)}",
                "SeriesNumber": number,
                "SeriesInstanceUID": f"1.3.{number}",
            }
            write_dicom(tmp_path / "cohort" / patient / f"Se{number}", set_tags(stack, lambda z, t, tags=tags: tags))
    return tmp_path / "cohort"


def test_a_folder_of_studies_is_a_cohort_of_patients(cohort: Path) -> None:
    items = inference_cases(dataset_dir=str(cohort))
    assert [item["case"] for item in items] == ["A", "B"]
    assert [LoadCase()(item)["moving"].shape[0] for item in items] == [4, 4]


def test_a_folder_of_one_patients_series_is_one_case(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inference"):
        (item,) = inference_cases(dataset_dir=str(cohort / "A"))
    assert (item["case"], item["cine"]) == ("A", str(cohort / "A"))
    assert "its 2 folders of DICOM are one patient's study" in caplog.text


def test_a_series_is_one_of_a_dicom_folder(cohort: Path, subject: Path) -> None:
    (item,) = inference_cases(cine=str(cohort / "A"), series=2)
    loaded = LoadCase()(item)
    assert (loaded["moving"].shape[0], loaded["plane"], loaded["plane_basis"]) == (5, "2CH", "read")
    with pytest.raises(InputError, match="is one file, and has no series 2"):
        LoadCase()({"cine": str(subject / "phantom001_4d.nii.gz"), "series": 2})


def test_series_are_listed_and_nothing_is_registered(
    cohort: Path, subject: Path, capsys: pytest.CaptureFixture
) -> None:
    assert inference_cases(dataset_dir=str(cohort), only_list=True) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(str(cohort))] == [
        f"{cohort / name}: 2 series in 2 stacks; * is taken without --series" for name in ("A", "B")
    ]
    assert sum(line.startswith("*  1") for line in lines) == 2
    for path in (path for path in (cohort / "B").rglob("IM*")):
        path.write_bytes(bytes(128) + b"DICM")
    assert inference_cases(dataset_dir=str(cohort), only_list=True) == []
    assert "cannot be read as DICOM" in capsys.readouterr().out  # of one study; the other is listed
    with pytest.raises(InputError, match="cannot be read as DICOM"):
        inference_cases(cine=str(cohort / "B"), only_list=True)
    with pytest.raises(InputError, match="--list_series: lists folders of DICOM files"):
        inference_cases(cine=str(subject / "phantom001_4d.nii.gz"), only_list=True)


def test_a_plane_is_that_of_its_case_else_of_all(subject: Path, tmp_path: Path) -> None:
    cine = str(subject / "phantom001_4d.nii.gz")
    assert "plane" not in inference_cases(cine=cine)[0]
    assert inference_cases(cine=cine, plane="SAX")[0]["plane"] == "SAX"
    items = [
        {"cine": cine, "case": "a", "plane": "4CH"},
        {"cine": cine, "case": "b"},
        {"cine": cine, "case": "c", "plane": "5CH"},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"test": items}))
    found = inference_cases(data_list=str(tmp_path / "list.json"), plane="2CH")
    assert [item["plane"] for item in found[:2]] == ["4CH", "2CH"]
    with pytest.raises(InputError, match="has the plane 5CH in the data list; give one of SAX, 2CH, 3CH, 4CH, LAX"):
        LoadCase()(found[2])


def test_a_cine_is_treated_alike_by_itself_and_in_a_folder(copy: Path) -> None:
    folder = copy / "phantom001"
    for other in copy.glob("phantom*/"):
        if other != folder:
            shutil.rmtree(other)
    (alone,) = find_cases(cine=str(folder / "phantom001_4d.nii.gz"))
    (in_folder,) = find_cases(dataset_dir=str(copy))
    assert alone == in_folder
    assert alone["reference_label"] == str(folder / "phantom001_frame01_gt.nii.gz")
    # A label that is given counts, and one of another frame is not taken.
    other = str(shutil.copy(alone["reference_label"], folder / "other_gt.nii.gz"))
    assert find_cases(cine=alone["cine"], reference_label=other)[0]["reference_label"] == other
    assert "reference_label" not in find_cases(cine=alone["cine"], reference_frame=2)[0]


def test_a_cine_of_one_slice_is_treated_alike_by_itself_and_in_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """(X, Y, T) is one where `Info.cfg` beside it says so; else it is named with its cure."""
    folder, cure = (
        tmp_path / "all" / "subj",
        r"subj/slice\.nii\.gz: has the shape .* Where its third axis is time, write",
    )
    folder.mkdir(parents=True)
    path = write_nifti(folder / "slice.nii.gz", np.random.default_rng(0).random((32, 32, 5), np.float32))
    info = folder / "Info.cfg"
    info.write_text("ED: 1\nES: 4\nNbFrame: 5\n")
    (alone,), (in_folder,) = find_cases(cine=str(path)), find_cases(dataset_dir=str(folder.parent))
    assert alone == in_folder
    assert LoadCase()(in_folder)["moving"].shape == (5, 32, 32, 1)
    info.write_text("ED: 1\nES: 4\nNbFrame: 6\n")
    for source in ({"cine": str(path)}, {"dataset_dir": str(folder.parent)}):
        with pytest.raises(InputError, match=cure):
            LoadCase()(find_cases(**source)[0])
    info.unlink()
    with pytest.raises(InputError, match=cure):
        find_cases(dataset_dir=str(folder.parent))
    # Beside others, in any folder, it is left out with a warning.
    for place in (folder, folder.parent):
        write_nifti(place / "other.nii.gz", np.zeros((7, 6, 3, 5), np.float32))
        caplog.clear()
        assert [item["case"] for item in find_cases(dataset_dir=str(folder.parent))] == ["other"]
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert re.search(cure.replace(": has", ": is left out; it has"), warning)
        (place / "other.nii.gz").unlink()


def test_a_frame_with_as_many_slices_as_frames_is_no_cine(subject: Path) -> None:
    path = next(subject.glob("*_frame01.nii.gz"))
    slices = shape_of(path)[2]
    (subject / "Info.cfg").write_text(f"ED: 1\nES: 3\nNbFrame: {slices}\n")
    with pytest.raises(InputError, match=r"a cine is \(X, Y, Z, T\)"):
        LoadCase()(find_cases(cine=str(path))[0])


def test_any_cine_beside_info_cfg_is_taken_whatever_its_name(copy: Path) -> None:
    folder = copy / "phantom001"
    for path in folder.glob("*_frame*"):
        path.unlink()
    path = (folder / "phantom001_4d.nii.gz").rename(folder / "phantom001_sax.nii.gz")
    assert find_cases(dataset_dir=str(copy))[-1] == find_cases(cine=str(path))[0]


def test_info_cfg_in_utf_16_is_read_and_one_without_ed_is_called_out(
    subject: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(subject / "phantom001_4d.nii.gz")
    (subject / "Info.cfg").write_text("ED: 4\nES: 2\n", encoding="utf-16")
    assert find_cases(cine=path)[0]["reference"] == 4
    assert not caplog.records
    (subject / "Info.cfg").write_text("ES: 2\n")
    assert "reference" not in find_cases(cine=path)[0]
    assert "Info.cfg: has no line ED, so that the reference frame is estimated; add one such as 'ED: 1'" in caplog.text


def test_label_values_of_the_command_are_those_of_every_item_but_a_list_s_own(subject: Path) -> None:
    pair = {"moving": "phantom001_frame02.nii.gz", "fixed": "phantom001_frame01.nii.gz"}
    for name in pair.values():
        shutil.copy(next(subject.glob("*_frame01.nii.gz")), subject / name) if not (subject / name).exists() else None
    items = [{**pair, "case": "a"}, {**pair, "case": "b", "label_values": [None, 1, 2]}]
    (subject / "list.json").write_text(json.dumps({"test": items}))
    found = inference_cases(data_list=str(subject / "list.json"), label_values=[3, 2, 1])
    assert [tuple(item["label_values"]) for item in found] == [(3, 2, 1), (None, 1, 2)]
    assert "label_values" not in inference_cases(data_list=str(subject / "list.json"))[0]
    (subject / "list.json").write_text(json.dumps({"test": [{**pair, "label_values": 7}]}))
    with pytest.raises(InputError, match=r"label_values 7: must be"):
        inference_cases(data_list=str(subject / "list.json"))
