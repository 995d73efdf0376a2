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

"""The benchmark of weights that are carried from one setting to another: its arithmetic by hand, its order of rows, and a
trial on phantoms that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.errors import InputError

from benchmarks import rows, transfer
from benchmarks.transfer import AddNoised, Measured, Run, next_run, regrets, summarize

DECADES = (-2, -1, 0)


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def row(dice: float) -> dict:
    return {"val": {"dice": dice}}


def finish(dice: dict[int, float], name: str = "mse") -> dict[Run, dict]:
    """Surgery and weighted sums of a setting, by decade."""
    return {Run(name): row(80.0), **{Run(name, decade): row(value) for decade, value in dice.items()}}


def test_rows_come_setting_by_setting_and_surgery_first() -> None:
    done, order = {}, []
    while run := next_run(done, ["mse", "unet"], DECADES, seeds=2):
        order.append(run)
        done[run] = row(-abs((run.decade or 0) + 1))  # best in the middle, at 0.1
    expected = [Run(n, d, s) for s in (0, 1) for n in ("mse", "unet") for d in (None, *DECADES)]
    assert order == expected


@pytest.mark.parametrize(("best", "further"), [(-2, -3), (0, 1)])
def test_a_best_at_an_end_asks_for_one_decade_more(best: int, further: int) -> None:
    done = finish({decade: 70.0 + (decade == best) for decade in DECADES})
    assert next_run(done, ["mse"], DECADES) == Run("mse", further)
    assert next_run({**done, Run("mse", further): row(60.0)}, ["mse"], DECADES) is None


def test_beyond_a_weight_that_moves_nothing_none_is_tried() -> None:
    decades = (*DECADES, 1)
    done = finish({-2: 81.0, -1: 82.0})
    assert next_run(done, ["mse"], decades) == Run("mse", 0)
    assert next_run({**done, Run("mse", 0): row(60.0)}, ["mse"], decades) == Run("mse", 1)
    assert next_run({**done, Run("mse", 0): {**row(60.0), "still": True}}, ["mse"], decades) is None
    # Where nothing moves the training is to blame, not the weight.
    unmoved = {run: {**value, "still": True} for run, value in finish({-2: 60.0}).items()}
    assert next_run(unmoved, ["mse"], decades) == Run("mse", -1)


def test_changes_of_surgery_come_once_a_setting_is_finished() -> None:
    done = finish({-2: 70.0, -1: 71.0, 0: 70.0})
    first, second = Run("mse", None, 0, "vector"), Run("mse", None, 0, "slack")
    assert next_run(done, ["mse"], DECADES, changes=["vector", "slack"]) == first
    assert next_run({**done, first: row(1.0)}, ["mse"], DECADES, changes=["vector", "slack"]) == second
    assert first.name == "mse_surgery_vector_seed0"


def test_changes_stand_beside_the_chosen_weight_and_surgery() -> None:
    figures = lambda dice, folding: {"dice": dice, "folding_percent": folding}
    entry = lambda val, test: {"val": figures(*val), "test": figures(*test)}
    done = {
        Run("mse", -1): entry((80.0, 1.0), (70.0, 2.0)),
        Run("mse", 0): entry((81.0, 0.5), (69.0, 1.0)),
        Run("mse"): entry((82.0, 3.0), (71.0, 4.0)),
        Run("mse", None, 0, "vector"): entry((83.0, 0.1), (72.0, 0.2)),
        Run("mse", None, 1, "vector"): entry((1.0, 1.0), (1.0, 1.0)),
        Run("lncc"): entry((1.0, 1.0), (1.0, 1.0)),
    }
    found = transfer.compare_changes(done)
    assert list(found) == ["ACDC, MSE: λ of 1", "ACDC, MSE: surgery", "ACDC, MSE: surgery, vector"]
    assert [list(row.values()) for row in found.values()] == [
        [81.0, 0.5, 69.0, 1.0],
        [82.0, 3.0, 71.0, 4.0],
        [83.0, 0.1, 72.0, 0.2],
    ]


def test_the_search_for_an_end_ends() -> None:
    low, _ = transfer.WIDEST
    done = finish({decade: -float(decade) for decade in range(low, 1)})
    assert next_run(done, ["mse"], DECADES) is None


# Two settings whose curves are tents over log λ, best at 0.01 and at 1.
ONE = Measured((-3, -2, -1, 0), (80, 84, 82, 70), (4, 3, 2, 1), -2, (83.0, 2.5), norm_ratio=0.5)
TWO = Measured((-2, -1, 0, 1), (60, 70, 75, 65), (8, 6, 2, 0), 0, (76.0, 3.0), norm_ratio=5.0)


def test_regrets_by_hand() -> None:
    found = {(r["setting"], r["method"]): r for r in regrets({"one": ONE, "two": TWO})}
    assert found["one", "surgery"]["regret"] == pytest.approx(84 - 83)
    assert found["two", "surgery"]["regret"] == pytest.approx(75 - 76)
    assert found["one", "λ of two"]["regret"] == pytest.approx(84 - 70)
    assert found["one", "λ of two"]["folding_percent"] == 1
    assert found["one", "λ of two"]["folding_of_best"] == 3
    assert found["two", "λ of one"]["regret"] == pytest.approx(75 - 60)
    # The ratio of norms is a tenth of the other's, so λ is, too; the way back ends one decade short of the best.
    assert found["one", "λ of two × norms"]["dice"] == pytest.approx(82)
    assert found["two", "λ of one × norms"]["dice"] == pytest.approx(70)
    assert len(found) == 6
    means = summarize(list(found.values()))
    of_surgery = {"regret": 0.0, "largest": 1.0, "settings": 2, "more_folding": ((2.5 - 3) + (3 - 2)) / 2}
    assert means["surgery"] == pytest.approx(of_surgery)
    assert means["λ of another setting"]["largest"] == 15
    assert means["λ of another setting × norms"]["regret"] == pytest.approx((2 + 5) / 2)


def test_between_decades_it_is_interpolated_and_beyond_them_held() -> None:
    assert ONE.at(-1.5) == pytest.approx((83, 2.5))
    assert ONE.at(-9) == (80, 4)


def test_a_larger_similarity_shifts_every_weight() -> None:
    scaled = ONE.scaled(100.0)
    assert scaled.best == pytest.approx(0)
    assert scaled.at(0.0) == pytest.approx(ONE.at(-2.0))
    carried = {r["method"]: r["regret"] for r in regrets({"one": ONE, "scaled": scaled}) if r["setting"] == "scaled"}
    # The ratio of norms follows, a bare λ does not, and surgery sees no difference.
    assert carried["λ of one × norms"] == pytest.approx(0)
    assert carried["λ of one"] == pytest.approx(84 - 80)
    assert carried["surgery"] == pytest.approx(1)


def test_finished_settings_are_collected_and_drawn(tmp_path: Path) -> None:
    finished = {}
    for shift, name in enumerate(("mse", "lncc")):
        for decade in (None, *DECADES):
            figures = {"dice": 80.0 - abs((decade or 0) + shift), "folding_percent": 1.0}
            row = {"decade": decade, "setting": name, "val": figures, "test": figures, "key": "hash"}
            finished[Run(name, decade)] = row | ({"norm_ratio": 10.0**shift} if decade is None else {})
    finished[Run("lncc", None, 0, "vector")] = {
        **finished[Run("lncc", None)],
        "change": "vector",
        "test": {"dice": 78.0, "folding_percent": 3.0},
    }
    # A third one lacks surgery, a fourth one a decade, so nothing is said of them.
    finished[Run("l2", -1)] = finished[Run("mse", -1)]
    for decade in (None, -2, -1):
        finished[Run("unet", decade)] = finished[Run("mse", decade)]
    summary = transfer.collect(finished, tmp_path, {"command": "transfer"}, DECADES)
    assert summary["λ of another setting"] == pytest.approx(
        {"regret": 1.0, "largest": 1.0, "settings": 2, "more_folding": 0.0}
    )
    assert summary["surgery, vector"] == pytest.approx(
        {"regret": 2.0, "largest": 2.0, "settings": 1, "more_folding": 2.0}
    )
    result = json.loads((tmp_path / "transfer.json").read_text())
    assert {row["setting"] for row in result["regrets"]} == {"mse", "lncc"}
    assert "key" not in result["runs"][0]
    assert result["settings"]["LNCC"] == {
        "lambda": 0.1,
        "dice": 80.0,
        "folding_percent": 1.0,
        "dice_by_surgery": 79.0,
        "folding_by_surgery": 1.0,
        "norm_ratio": 10.0,
    }
    # In [0, 255] a λ of mse is far too small: the smallest that was tried stands for it.
    carried = {row["method"]: row["regret"] for row in result["bytes"] if row["setting"] == "bytes"}
    assert carried["λ of mse"] == pytest.approx(2.0)
    assert carried["λ of mse × norms"] == pytest.approx(0.0)
    assert len((tmp_path / "transfer.csv").read_text().splitlines()) == 1 + len(result["regrets"]) + len(
        result["bytes"]
    )
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_noise_is_a_case_s_own_and_as_large_as_said() -> None:
    image = torch.full((1, 64, 64, 4), 0.5)
    add = AddNoised(["moving", "fixed"], 0.1)
    first, again, other = (add({"case": case, "moving": image, "fixed": image}) for case in "aab")
    assert torch.equal(first["moving"], again["moving"])
    assert not torch.equal(first["moving"], first["fixed"])
    assert not torch.equal(first["moving"], other["moving"])
    assert float((first["moving"] - image).std()) == pytest.approx(0.1, rel=0.03)


def test_the_network_sees_noise_where_the_setting_says_so(phantoms: Path, tmp_path: Path) -> None:
    options = transfer.parse(["--smoke", "--dataset_dir", str(phantoms), "--output_dir", str(tmp_path)])
    pairs = {}
    for name in ("mse", "noise"):
        study = transfer.study_of(Run(name), options)
        item = study.items("train")[0]
        pairs[name] = study.parser(*rows.SHARED).get_parsed_content("train::preprocessing")(item)["pair"]
    difference = torch.as_tensor(pairs["noise"] - pairs["mse"])
    inside = (pairs["mse"] > 0.3) & (pairs["mse"] < 0.7)  # where nothing is clipped
    assert inside.any()
    assert float(difference[inside].std()) == pytest.approx(0.1, rel=0.1)


def test_every_setting_can_be_trained(phantoms: Path, tmp_path: Path) -> None:
    options = transfer.parse(["--smoke", "--dataset_dir", str(phantoms), "--output_dir", str(tmp_path)])
    options.phantoms = str(phantoms)
    pair = torch.rand(2, 2, 32, 32)
    for name in transfer.SETTINGS:
        study = transfer.study_of(Run(name, -1), options)
        parser = study.parser(*rows.SHARED, "benchmarks/methods/voxelmorph_m.yaml")
        network, similarity, smoothness = map(parser.get_parsed_content, ("network", "train::loss", "smoothness"))
        field = network(pair)
        assert field.shape == pair.shape
        assert similarity(field, pair).isfinite()
        assert smoothness(field) >= 0
        assert parser.get_parsed_content("weight") == 0.1
    assert parser.get_parsed_content("train::handlers")


def test_a_trial_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--smoke", "--output_dir", str(tmp_path)]
    assert transfer.main([*options, "--runs", "2"]) == {}
    files = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert files == ["mse_1e-2_seed0.json", "mse_surgery_seed0.json"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    # The first row has been lost, all others stay as they are.
    lost = tmp_path / "rows" / "mse_surgery_seed0.json"
    lost.unlink()
    transfer.main([*options, "--runs", "1"])
    again = json.loads(lost.read_text())
    assert np.isfinite(again["val"]["dice"])
    assert again["norm_ratio"] > 0
    del times[lost]
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    result = json.loads((tmp_path / "transfer.json").read_text())
    assert {run["decade"] for run in result["runs"]} == {None, -2}
    assert str(tmp_path) not in (tmp_path / "transfer.json").read_text()
    assert "rows are finished" in capsys.readouterr().out
    # What is published counts as finished elsewhere, and there too nothing runs twice.
    known = ["--known", str(tmp_path / "transfer.json"), "--output_dir", str(tmp_path / "elsewhere"), "--runs", "1"]
    earlier = tmp_path / "transfer.json"
    earlier.write_text(earlier.read_text().replace('"hardware": "', '"hardware": "another one, '))
    transfer.main(["--smoke", *known])
    assert json.loads((tmp_path / "elsewhere" / "transfer.json").read_text())["hardware"].startswith("another one, ")
    assert [path.name for path in (tmp_path / "elsewhere" / "rows").iterdir()] == ["mse_1e-1_seed0.json"]
    with pytest.raises(InputError, match=r"is no transfer\.json of 1 epochs"):
        transfer.main(["--smoke", "--known", str(tmp_path / "none.json")])


def test_a_data_set_is_asked_for(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        transfer.main([])
    assert "--dataset_dir DIR is needed" in capsys.readouterr().err


def test_without_labels_no_weight_can_be_chosen(copy: Path, tmp_path: Path) -> None:
    for label in copy.rglob("*_gt.nii.gz"):
        label.unlink()
    options = ["--smoke", "--dataset_dir", str(copy), "--output_dir", str(tmp_path / "out"), "--runs", "1"]
    with pytest.raises(InputError, match="no label in the `val` split"):
        transfer.main(options)
