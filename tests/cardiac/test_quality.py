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

"""Figures of quality by hand and from analytic fields, and a verdict whose every sentence has a field that earns it."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.optimize import nnls
from scripts.cardiac import quality
from scripts.cardiac.cines import Cine
from scripts.cardiac.phantom import Phantom
from scripts.cardiac.quality import assess, compare_contours
from scripts.cardiac.registrations import CineRegistration, PairRegistration, Registration
from scripts.cardiac.verdict import DO_NOT_USE, LOOK, NOTHING_FOUND, PASSED, THRESHOLDS
from scripts.files import plain

SHAPE = (24, 20, 3)
SPACING = (2.0, 1.5)
AFFINE = np.diag([*SPACING, 8.0, 1.0])
X, Y = (a.astype(float) for a in np.meshgrid(np.arange(24), np.arange(20), indexing="ij"))
# A hill of 6 mm width in the middle of the slice.
BUMP = np.exp(-(((X - 12) * SPACING[0]) ** 2 + ((Y - 10) * SPACING[1]) ** 2) / (2 * 6.0**2))


@pytest.fixture(autouse=True)
def _any_image_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images here are noise 50 mm wide: fields are what is looked at."""
    monkeypatch.setattr(quality, "measure_image", lambda image, spacing: {})


def register(
    fields: np.ndarray,
    inverses: np.ndarray | None = None,
    images: np.ndarray | None = None,
    moved: np.ndarray | None = None,
    reference: int | None = 1,
    fixed: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
) -> Registration:
    """A registration with fields (T, 2, X, Y, Z); by default of images that fit at once."""
    rng = np.random.default_rng(0)
    shape = fields.shape[2:]
    texture = rng.normal(100, 30, shape)
    if images is None:
        images = texture[..., None] + rng.normal(0, 20, (*shape, len(fields)))
        images[..., 0] = texture
    moved = np.repeat(texture[..., None], len(fields), axis=-1) if moved is None else moved
    inverses = invert(fields) if inverses is None else inverses
    parts = {"cine": Cine("case", images, affine), "fields": fields, "inverses": inverses, "moved": moved}
    if reference is None:
        return PairRegistration(**parts, fixed=texture if fixed is None else fixed)
    return CineRegistration(**parts, reference=reference, reference_basis="given")


def invert(fields: np.ndarray) -> np.ndarray:
    """Inverses by a hundred fixed-point iterations with SciPy."""
    inverses = np.zeros_like(fields)
    for t, z in np.ndindex(len(fields), fields.shape[-1]):
        grid = np.stack(np.meshgrid(*map(np.arange, fields.shape[2:4]), indexing="ij"))
        for _ in range(100):
            where = grid + inverses[t, ..., z]
            inverses[t, ..., z] = [
                -map_coordinates(channel, where, order=1, mode="nearest") for channel in fields[t, ..., z]
            ]
    return inverses


def wave(*amplitudes: float) -> np.ndarray:
    """Fields (T, 2, X, Y, Z) whose first channel is a hill of these heights in mm."""
    return np.stack([np.stack([a / SPACING[0] * BUMP, 0 * BUMP])[..., None].repeat(3, axis=-1) for a in amplitudes])


def graded(found: dict) -> list[str]:
    """The sentences that change the grade."""
    return [finding["sentence"] for finding in found["findings"] if finding["grade"] != PASSED]


def sentences(registration: CineRegistration, errors: np.ndarray | None = None) -> list[str]:
    return graded(assess(registration, errors))


# A motion that comes and goes.
GOOD = (0.0, 2.0, 3.5, 3.0, 1.5)


@pytest.mark.parametrize("reference", [1, None])
def test_a_good_field_earns_no_sentence(reference: int | None) -> None:
    fields = wave(*GOOD) if reference else wave(3.0)
    images = None if reference else np.random.default_rng(1).normal(100, 30, (*SHAPE, 1))
    found = assess(register(fields, reference=reference, images=images))
    assert found["grade"] == PASSED
    assert found["verdict"][0] == NOTHING_FOUND
    assert bool(found["cycle"]) == bool(reference)
    unused = set() if reference else {"closure_ratio", "jump_ratio", "share_of_the_largest_mse_before"}
    # There is no label.
    limits = THRESHOLDS | {"compressed_percent": THRESHOLDS["compressed_percent_unlabeled"]}
    unused |= {"compressed_percent_unlabeled"}
    assert found["thresholds"] == {name: limit for name, limit in limits.items() if name not in unused}


def test_the_phantoms_exact_motion_earns_no_sentence() -> None:
    phantom, frames = Phantom.random(3, size=(64, 64), slices=2, frames=6), range(1, 7)
    images = np.stack([phantom.image(t) for t in frames], axis=-1)
    fields, inverses = (np.stack([phantom.field(*(t, 1)[::way]) for t in frames]) for way in (1, -1))
    moved = np.empty_like(images)
    for t, z in np.ndindex(6, 2):
        where = (phantom.grid + fields[t])[..., z]
        moved[..., z, t] = map_coordinates(images[..., z, t], where, order=1, mode="nearest")
    assert assess(register(fields, inverses, images, moved, affine=phantom.affine))["grade"] == PASSED


def test_determinants_of_a_known_field() -> None:
    # u = (a x, b y) in voxels has the determinant (1 + a)(1 + b) everywhere, one slice each.
    factors = [(0.1, 0.2), (-0.3, 0.0), (-1.5, 0.1)]
    field = np.stack([np.stack([a * (X - 12), b * (Y - 10)]) for a, b in factors], axis=-1)
    determinants = [(1 + a) * (1 + b) for a, b in factors]
    (frame,) = assess(register(field[None], np.zeros((1, 2, *SHAPE)), reference=None))["frames"]
    assert [part["slice"] for part in frame["slices"]] == [1, 2, 3]
    for part, expected in zip(frame["slices"], determinants):
        assert part["jacobian_min"] == pytest.approx(expected)
        assert part["jacobian_max"] == pytest.approx(expected)
        assert part["folding_percent"] == (100 if expected <= 0 else 0)
    assert (frame["jacobian_min"], frame["jacobian_max"]) == pytest.approx((min(determinants), max(determinants)))
    assert frame["folding_percent"] == pytest.approx(100 / 3)
    length = np.sqrt((field[0] * SPACING[0]) ** 2 + (field[1] * SPACING[1]) ** 2)
    assert frame["largest_displacement_mm"] == pytest.approx(length.max())
    assert frame["slices"][1]["largest_displacement_mm"] == pytest.approx(length[..., 1].max())


def least_squares(image: np.ndarray, fixed: np.ndarray) -> float:
    """Mean squared error of the best gain, not negative, and offset, by SciPy."""
    design = np.stack([image, np.ones_like(image), -np.ones_like(image)], axis=1)
    return nnls(design, fixed)[1] ** 2 / len(image)


def test_squared_errors_by_hand() -> None:
    rng = np.random.default_rng(1)
    fixed, images, moved = (rng.normal(400, 90, (*SHAPE, *extra)) for extra in ((), (2,), (2,)))
    images[..., 0] = fixed
    fields = wave(0, 2)
    fields[1, 0, -2:] = 1.5
    found = assess(register(fields, images=images, moved=moved, fixed=fixed))
    # The last two rows of the second frame lead out of view.
    rows = [slice(None), slice(-2)]
    for t, frame in enumerate(found["frames"]):
        assert frame["frame"] == t + 1
        for part, z in ((frame, slice(None)), *((part, part["slice"] - 1) for part in frame["slices"])):
            for name, image in (("before", images), ("after", moved)):
                pairs = [(image[rows[t], :, z, t].ravel(), fixed[rows[t], :, z].ravel()) for z in range(SHAPE[2])]
                squares = np.array([least_squares(*pair) / fixed.var(ddof=1) for pair in pairs])
                assert part[f"mse_{name}"] == pytest.approx(squares[z].mean())


def test_the_inverse_error_of_a_shift_that_is_off() -> None:
    # v undoes u but for 0.3 pixels along the second axis, in the second slice: 0.45 mm, wherever x + u(x) stays in
    # view.
    fields = np.zeros((1, 2, *SHAPE))
    fields[:, 0], fields[:, 1] = 4, -2
    inverses = -fields
    inverses[:, 1, ..., 1] += 0.3
    errors = np.zeros((1, *SHAPE))
    # Of these three the first one leads out of view.
    errors[0, 3:6, 4, 1] = 0.2
    (frame,) = assess(register(fields, inverses, reference=None), errors)["frames"]
    assert [part["inverse_error_mm_max"] for part in frame["slices"]] == pytest.approx([0, 0.45, 0])
    assert [part["inverse_error_mm_p95"] for part in frame["slices"]] == pytest.approx([0, 0.45, 0])
    assert frame["inverse_error_mm_max"] == pytest.approx(0.45)
    assert [part["unconverged_voxels"] for part in frame["slices"]] == [0, 2, 0]
    assert frame["unconverged_voxels"] == 2


def test_the_worse_direction_counts() -> None:
    # x + u(x) reaches rows 6 to 17 alone, where v is right. In row 0, of 13 that v keeps in view, it is not: by u, 12
    # mm.
    fields = np.zeros((1, 2, *SHAPE))
    fields[:, 0] = -0.5 * (X - 12)[..., None]
    inverses = -2 * fields
    inverses[:, 0, :2] = 0
    (frame,) = assess(register(fields, inverses, reference=None))["frames"]
    assert frame["inverse_error_mm_p95"] == pytest.approx(12)


def test_a_motion_that_closes_and_one_that_does_not() -> None:
    phase = 2 * np.pi * np.arange(12) / 12
    closed = assess(register(wave(*(2 - 2 * np.cos(phase)))))
    drifts = assess(register(wave(*np.linspace(0, 5, 12))))
    # By hand: where the hill exceeds a quarter of its height, the mean of it, times the steps of the amplitude.
    mean = BUMP[BUMP > 0.25].mean()
    for found, track in ((closed, 2 - 2 * np.cos(phase)), (drifts, np.linspace(0, 5, 12))):
        steps = [abs(b - a) * mean for a, b in pairwise(track)]
        bends = [abs(a - 2 * b + c) * mean for a, b, c in zip(track, track[1:], track[2:])]
        cycle = found["cycle"]
        assert cycle["step_mm_mean"] == pytest.approx(np.mean(steps))
        assert cycle["step_mm_max"] == pytest.approx(max(steps))
        assert cycle["closure_mm"] == pytest.approx(abs(track[-1] - track[0]) * mean)
        assert cycle["closure_ratio"] == pytest.approx(cycle["closure_mm"] / max(steps))
        assert cycle["temporal_roughness_mm"] == pytest.approx(np.mean(bends), abs=1e-9)
    assert closed["grade"] == PASSED
    assert len(graded(drifts)) == 1
    assert graded(drifts)[0].startswith("The last frame does not lead back to the first")


def fold(depth: float, voxels: int) -> np.ndarray:
    """A good field with jumps along the first axis, whose determinant there is 1 - depth / 2 and little more."""
    field = wave(0.0, 3.0, 3.0)
    for n in range(voxels):
        field[1, 0, 4 + 4 * (n % 4), 2 + 3 * (n // 4), 0] -= depth
    return field


def spoil(kind: str) -> CineRegistration:
    good = wave(0.0, 3.0, 3.0)
    if kind == "folds":
        return register(fold(4.0, 16))
    if kind == "folds at a point":
        shape = (60, 60, 3)
        fields = np.zeros((3, 2, *shape))
        fields[1:, 0, 30:, :] = 0.5
        fields[1, 0, 10, 10, 0] = -2.5
        return register(fields, np.zeros_like(fields))
    if kind == "compressed":
        fields = np.zeros((3, 2, *SHAPE))
        fields[1:, 0] = (-0.99 * np.clip(X - 10, 0, 3))[..., None]
        return register(fields)
    if kind == "not inverted":
        inverses = invert(good)
        inverses[1] *= 0.8
        return register(good, inverses)
    if kind == "still":
        return register(0.1 * good)
    if kind == "blank":
        blank = register(good)
        blank.cine.image[..., 1, 1] = 7
        return blank
    rng = np.random.default_rng(0)
    images = rng.normal(100, 30, (*SHAPE, 3))
    return register(good, images=images, moved=images[..., :1] + 0.99 * (images - images[..., :1]))


WORDS = {
    "folds": "The field folds: tissue would pass through itself (slice 1; frame 2).",
    "folds at a point": "The field folds at single points, in 0.1 % of the area or less (slice 1; frame 2).",
    "compressed": "Tissue is compressed to less than a fiftieth in more than 15 % of what moves (slices 1, 2, 3; frames 2, 3).",
    "not inverted": "The field cannot be inverted accurately (slices 1, 2, 3; frame 2).",
    "blank": "A slice is blank: nothing is registered there, and nothing moves (slice 2; frame 2).",
    "still": "Nothing moves by more than 0.5 mm: were the images registered already?",
    "no better": "The images hardly fit better than before (frames 2, 3).",
}


@pytest.mark.parametrize("pixel", [0.5, 3.0])
def test_an_inverse_error_is_called_out_from_a_tenth_of_a_millimeter(pixel: float) -> None:
    """Whatever the pixels, of inverses that are off by a little less and a little more."""
    fields = np.zeros((1, 2, *SHAPE))
    fields[:, 0] = 4.0
    affine = np.diag([pixel, pixel, 8.0, 1.0])
    for off, called in ((0.95, False), (1.05, True)):
        inverses = -fields
        inverses[:, 0] += off * 0.1 / pixel
        found = sentences(
            register(
                fields, inverses, reference=None, affine=affine, images=np.random.default_rng(1).random((*SHAPE, 1))
            )
        )
        assert any(words.startswith("The field cannot be inverted accurately") for words in found) == called


@pytest.mark.parametrize("kind", WORDS)
def test_every_sentence_has_a_field_that_earns_it(kind: str) -> None:
    cine = spoil(kind)
    found = assess(cine)
    assert found["grade"] == (DO_NOT_USE if kind == "folds" else LOOK)
    others = {"The field cannot be inverted accurately"} if kind.startswith("folds") else set()
    said = [words for words in graded(found) if not any(words.startswith(other) for other in others)]
    assert said == [WORDS[kind]]


@pytest.mark.parametrize("kind", WORDS)
def test_a_pair_has_no_frame_in_its_sentences(kind: str) -> None:
    cine = spoil(kind)
    t = slice(1, 2)
    pair = register(cine.fields[t], cine.inverses[t], cine.cine.image[..., t], cine.moved[..., t], None, cine.fixed)
    said = sentences(pair)
    bare = lambda words: words.split(" (")[0].rstrip(".")
    assert bare(WORDS[kind]) in map(bare, said)
    assert not any("frame" in words for words in said)
    assert all(words[-1] in ".?" for words in said)


def test_a_cavity_may_empty_at_a_point() -> None:
    shape = (60, 60, 3)
    fields = np.zeros((3, 2, *shape))
    fields[1:, 0, 10:13, 10, 0] = -0.99 * np.arange(1, 4)
    fields[1:, 0, 13:, 10, 0] = -2.97
    fields[1:, 0, 30:, 20:] = 0.6
    frame, _ = assess(register(fields, np.zeros_like(fields)))["frames"][1:]
    assert 0 < frame["jacobian_min"] < 0.02
    # Of the voxels that move by more than a quarter of the largest displacement, which is 2.97 of these.
    assert frame["compressed_percent"] == pytest.approx(100 * 2 / (np.abs(fields[1, 0]) > 2.97 / 4).sum())
    assert not any("compressed" in words for words in sentences(register(fields)))


@pytest.mark.parametrize("reference", [1, None])
@pytest.mark.parametrize("value", [1, 2, 3])
def test_a_labeled_cavity_may_empty_and_muscle_may_not(value: int, reference: int | None) -> None:
    fields = np.zeros((3, 2, *SHAPE))
    fields[1:, 0] = (-0.99 * np.clip(X - 8, 0, 3))[..., None]
    t = slice(None) if reference else slice(1, 2)
    cine = register(
        fields[t], images=None if reference else np.random.default_rng(1).random((*SHAPE, 1)), reference=reference
    )
    assert not any("compressed" in words for words in sentences(cine))  # nobody knows what it is
    label = np.zeros(SHAPE, np.uint8)
    label[8:13] = value
    if reference:
        cine.label, cine.labels = label, np.repeat(label[..., None], len(cine.fields), axis=-1)
    else:  # what counts lies on the fixed image
        cine.moving_label, cine.moved_label = np.zeros_like(label), label
    called = "Tissue is compressed to less than a fiftieth in more than 5 % of what moves"
    assert any(words.startswith(called) for words in sentences(cine)) == (value == 2)


def test_frames_out_of_order_are_called_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by name (1, 10, 11, …, 2, 20, …), and with two neighbors exchanged; a heart that rests for half of the
    cycle, or of few frames, is in order."""
    monkeypatch.setattr(quality, "THRESHOLDS", THRESHOLDS | {"jump_ratio": 3.2})
    beat = lambda frames: 2 - 2 * np.cos(2 * np.pi * np.arange(frames) / frames)
    called = lambda amplitudes: [words for words in sentences(register(wave(*amplitudes))) if "neighbors" in words]
    by_name = sorted(range(20), key=lambda t: str(t + 1))
    for track in (beat(20)[by_name], beat(20)[[0, 1, 2, 3, 5, 4, *range(6, 20)]]):
        assert len(called(track)) == 1
    assert called(beat(20)[[0, 1, 2, 3, 5, 4, *range(6, 20)]])[0].endswith(("(frame 5)?", "(frame 6)?"))
    for track in (beat(20), beat(5), beat(4), beat(3), np.concatenate([np.zeros(12), beat(12)])):
        assert called(track) == []


def test_images_that_fit_nowhere_are_called_out() -> None:
    """As of two patients: no slice is worse than the others."""
    rng = np.random.default_rng(0)
    images = rng.normal(100, 30, (*SHAPE, 1))
    fixed = rng.normal(100, 30, SHAPE)
    moved = fixed[..., None] + 1.2 * (images - 100)
    found = sentences(register(wave(3.0), images=images, moved=moved, fixed=fixed, reference=None))
    assert found == ["The images do not fit: more than 30 % of their contrast differs."]
    moved = fixed[..., None] + 0.4 * (images - 100)
    assert assess(register(wave(3.0), images=images, moved=moved, fixed=fixed, reference=None))["grade"] == PASSED


def test_a_frame_that_stays_where_others_move_is_called_out() -> None:
    images = np.random.default_rng(0).normal(100, 30, (*SHAPE, 3))
    moved = np.stack([images[..., 0], images[..., 0], images[..., 2]], axis=-1)
    assert sentences(register(wave(0, 3, 0), images=images, moved=moved)) == [
        "The images hardly fit better than before (frame 3)."
    ]


def test_frames_that_resemble_the_reference_need_not_improve() -> None:
    images = np.random.default_rng(0).normal(100, 30, (*SHAPE, 3))
    images[..., 2] = images[..., 0] + 3
    moved = np.repeat(images[..., :1], 3, axis=-1)
    moved[..., 2] = images[..., 2]
    assert assess(register(wave(0, 3, 1.5), images=images, moved=moved))["grade"] == PASSED


def test_quality_is_json_without_paths_or_names() -> None:
    text = json.dumps(plain(assess(register(wave(*GOOD)), np.zeros((5, *SHAPE)))), allow_nan=False)
    assert "/" not in text
    assert "case" not in text
    assert json.loads(text)["frames"][0]["largest_displacement_mm"] == 0


def test_a_constant_fixed_image_leaves_finite_figures() -> None:
    registration = register(wave(0, 1, 2), images=np.ones((*SHAPE, 3)), moved=np.ones((*SHAPE, 3)))
    json.dumps(plain(assess(registration)), allow_nan=False)
    assert assess(registration)["frames"][1]["mse_after"] == 0


def test_a_slice_that_leaves_the_view_is_called_out_among_good_ones() -> None:
    fields = wave(0, 3.0)
    fields[1, 0, ..., 2] = 40.0
    found = assess(register(fields, inverses=np.where(fields == 40, -40, invert(wave(0, 3.0)))))
    assert found["frames"][1]["inverse_error_mm_p95"] < 0.1
    assert np.isnan(found["frames"][1]["slices"][2]["inverse_error_mm_p95"])
    assert any("cannot be inverted" in sentence for sentence in graded(found))


def test_where_no_voxel_counts_the_inverse_error_is_unknown_and_called_out() -> None:
    fields = np.zeros((2, 2, *SHAPE))
    fields[1, 0] = -2.5 * X[..., None]  # turned inside out
    found = assess(register(fields, inverses=np.zeros_like(fields)))
    assert np.isnan(found["frames"][1]["inverse_error_mm_p95"])
    assert np.isnan(found["frames"][1]["inverse_error_mm_max"])
    assert plain(found)["frames"][1]["inverse_error_mm_p95"] is None
    assert any("cannot be inverted" in sentence for sentence in graded(found))
    assert found["frames"][0]["inverse_error_mm_p95"] == 0


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (2.0, 0.0), (0.25, 700.0), (1.0, -5000.0)])
def test_gain_and_offset_of_an_image_change_no_verdict(gain: float, offset: float) -> None:
    phantom = Phantom.random((0, 2), size=(48, 44), slices=2, frames=4)
    es = phantom.end_systole
    fixed, image = phantom.image(1), phantom.image(es)[..., None]
    fields = phantom.field(es, 1)[None]
    moved = np.stack(
        [
            map_coordinates(image[..., z, 0], np.indices(fixed.shape[:2]) + fields[0, ..., z], order=1, mode="nearest")
            for z in range(fixed.shape[2])
        ],
        axis=-1,
    )[..., None]
    plain_one, other = (
        assess(register(fields, images=a * image + b, moved=a * moved + b, fixed=fixed, reference=None))
        for a, b in ((1.0, 0.0), (gain, offset))
    )
    assert graded(other) == graded(plain_one)
    for name in ("mse_before", "mse_after"):
        assert other["frames"][0][name] == pytest.approx(plain_one["frames"][0][name], abs=1e-6)
    assert other["frames"][0]["mse_after"] < 0.5 * other["frames"][0]["mse_before"]


def test_an_image_of_opposite_contrast_does_not_fit() -> None:
    fields = wave(3.0)
    texture = np.random.default_rng(0).normal(100, 30, SHAPE)
    found = assess(
        register(fields, images=-texture[..., None], moved=-texture[..., None], fixed=texture, reference=None)
    )
    assert found["frames"][0]["mse_after"] == pytest.approx(1, rel=0.02)


def test_a_slice_that_does_not_fit_is_called_out_by_its_number() -> None:
    fields = np.repeat(wave(3.0), 4, axis=-1)  # twelve slices
    rng = np.random.default_rng(0)
    texture = rng.normal(100, 30, (*SHAPE[:2], 12))
    images, moved = texture[..., None] + rng.normal(0, 20, (*texture.shape, 1)), texture[..., None].copy()
    assert assess(register(fields, images=images, moved=moved, fixed=texture, reference=None))["grade"] == PASSED
    blank = moved.copy()
    blank[:, :, 6], images[:, :, 6] = 0, 0
    (sentence,) = sentences(register(fields, images=images, moved=blank, fixed=texture, reference=None))
    assert sentence == "A slice is blank: nothing is registered there, and nothing moves (slice 7)."
    images[:, :, 6] = texture[:, :, 6, None] + rng.normal(0, 20, (*SHAPE[:2], 1))
    moved[:, :, 6] = moved[::-1, :, 6]
    (sentence,) = sentences(register(fields, images=images, moved=moved, fixed=texture, reference=None))
    assert sentence == "The images hardly fit in a slice, far worse than in most others (slice 7)."


def test_voxels_that_the_moving_image_does_not_reach_count_neither_before_nor_after() -> None:
    fields = wave(3.0)
    texture = np.random.default_rng(0).normal(100, 30, SHAPE)
    reached = np.zeros(SHAPE, bool)
    reached[4:20, 4:16] = True
    moved = np.where(reached, texture, 0)[..., None]
    images = texture[..., None] + np.random.default_rng(1).normal(0, 20, (*SHAPE, 1))
    registration = register(fields, images=images, moved=moved, fixed=texture, reference=None)
    assert assess(registration, reached=reached)["frames"][0]["mse_after"] == pytest.approx(0, abs=1e-9)
    assert assess(registration)["frames"][0]["mse_after"] > 0.3


def discs(*radii: float) -> np.ndarray:
    """Labels (X, Y, Z, T): a cavity of these radii in pixels in a wall to 9 pixels."""
    away = np.hypot(X - 12, Y - 10)
    frames = [np.where(away < radius, 3, np.where(away < 9, 2, 0)) for radius in radii]
    return np.stack(frames, axis=-1)[:, :, None].repeat(3, axis=2).astype(np.uint8)


def test_ejection_fractions_by_both_answers_and_the_frame_of_a_label_by_hand() -> None:
    carried, segmented = discs(7, 6, 6, 7), discs(7, 5, 4, 6)
    found = compare_contours({"carried": carried, "segmented": segmented}, 3, (*SPACING, 8.0), is_given=True)
    areas = {by: (labels == 3).sum(axis=(0, 1, 2)) for by, labels in (("carried", carried), ("segmented", segmented))}
    # From the largest to the smallest segmented frame.
    expected = {by: 100 * (1 - area[2] / area[0]) for by, area in areas.items()}
    assert found["ejection_percent"] == pytest.approx(expected)
    fits = [200 * min(a, areas["carried"][2]) / (a + areas["carried"][2]) for a in areas["segmented"]]
    assert found["label_fit_percent"] == pytest.approx(fits)
    assert (found["reference"], int(np.argmax(fits)) + 1) == (3, 4)
    automatic = compare_contours({"carried": carried, "segmented": segmented}, 3, (*SPACING, 8.0))
    assert "label_fit_percent" not in automatic
    # The third frame dips in one of them alone.
    dips = compare_contours({"carried": discs(7, 6, 4, 6), "segmented": discs(7, 6, 6, 7)}, 1, (*SPACING, 8.0))
    cavity = [(discs(radius) == 3).sum() for radius in (7, 6, 4)]
    expected = [0, 0, 100 * (cavity[1] - cavity[2]) / cavity[0], 0]
    assert dips["departures_percent"] == pytest.approx(expected)
    assert compare_contours({"carried": carried}, 3, (*SPACING, 8.0)) == {}


def test_a_pair_whose_contours_part_is_called_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"distance_mm_of_a_frame": 5.0, "ef_difference_points": 10.0, "least_diameter_mm": 20.0}
    monkeypatch.setattr(quality, "THRESHOLDS", THRESHOLDS | limits)
    pair = register(wave(3.0), reference=None, images=np.random.default_rng(1).normal(100, 30, (*SHAPE, 1)))
    pair.fixed_segmented, pair.segmented = discs(7)[..., 0], discs(4)
    pair.fixed_label, pair.carried_label, pair.label_basis = discs(7)[..., 0], discs(4)[..., 0], "automatic"
    assert assess(pair)["grade"] == PASSED
    pair.carried_label = np.roll(pair.carried_label, 8, axis=0)
    found = assess(pair)
    assert found["grade"] == DO_NOT_USE
    assert any("mm apart." in sentence for sentence in graded(found))
    assert not any("frame " in sentence for sentence in graded(found))
    pair.carried_label = discs(7)[..., 0]
    (sentence,) = graded(assess(pair))
    assert sentence.startswith("The two answers on the LV differ: its ejection fraction is 0 % by carried")
