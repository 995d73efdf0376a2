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

"""A case, cine or pair, loaded, checked and laid out as one stack of slice pairs for a 2-D network."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scripts.cardiac.cines import LABELS, Cine
from scripts.cardiac.planes import is_long_axis, plane_of
from scripts.data.axes import are_exchanged
from scripts.data.dicom import read_dicom_cine
from scripts.data.grids import AFFINE_TOLERANCE_MM, check_meets, check_same_grid, resample, turn_to
from scripts.data.labels import better_frame, better_turn, name_structures
from scripts.data.nifti import (
    NiftiFile,
    check_extent,
    check_right_angles,
    check_slices_last,
    is_new,
    leave_out_fill,
    open_nifti,
    read_nifti_cine,
)
from scripts.data.order import exchanged_frames
from scripts.data.points import check_in_image, read_points
from scripts.data.tags import has_tags
from scripts.errors import InputError
from torch import Tensor
from torch.nn import functional as F

# Millimeters that a label drawn on a converter's copy of DICOM may lie off: its affine comes from other slices or
# rounded positions.
CONVERTED_MM = 0.1
# Millimeters from slice to slice, from and to, beyond which a file's sizes are doubted; and times that a pixel is longer
# than wide.
GAPS_MM, LONGEST = (1.2, 25.0), 3.0
# Values of a slice up to which an image is taken for a label map or a mask.
FEW_VALUES = 8


class LoadPaird(MapTransform):
    """Load the NIfTI files of a pair, channel first, as (1, X, Y, Z) MetaTensors in fp32, checked one by one and
    together.

    Where an item has "moving_frame" or "fixed_frame", that frame (from 0) of a cine and of its label is loaded; where
    it has "label_values", these are its files' values of RV, myocardium and LV (`labels.name_structures`). A label that
    fits the pair's other image better is logged, and leaves a sentence under "doubts". Where an image has a fill value,
    "valid" (X, Y, Z) says where anything was acquired.

    Args:
        keys: keys that hold paths; absent keys are skipped.
        resample_moving: whether a moving image (and its label) on another grid is resampled onto the fixed one's; the
            native ones stay under "moving_native" and "moving_label_native".

    Raises:
        InputError: naming the file, for one that cannot be read, has more than three axes, holds NaN or Inf, a label
            that holds anything but the structures, or these in another order, or a file whose shape or affine (to 1e-3
            mm; of a label, after turning its axes) is not that of the image it belongs to, or, resampled, that lies apart
            from it in space.
    """

    def __init__(
        self, keys: Sequence[str] = ("moving", "fixed", "moving_label", "fixed_label"), resample_moving: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.resample_moving = resample_moving

    def __call__(self, data: Mapping[Hashable, str]) -> dict:
        item = dict(data)
        # A path that leads to several frames of one file is opened once.
        files = {data[key]: open_nifti(data[key]) for key in self.key_iterator(data)}
        for key in self.key_iterator(data):
            if not str(key).endswith("_label"):
                check_slices_last(files[data[key]])
                item[key] = load_image(files[data[key]], data.get(f"{key}_frame"))
                valid = item[key].meta.pop("valid", None)
                # A moving image that is resampled lies elsewhere than its mask.
                if valid is not None and not (key == "moving" and self.resample_moving):
                    item["valid"] = torch.from_numpy(valid) & item.get("valid", torch.tensor(True))
        for key in self.key_iterator(data):
            role = str(key).removesuffix("_label")
            if role != key:
                item[key] = self._load_label(files[data[key]], item.get(role), data, role)
        if "moving" in item and "fixed" in item:
            if self.resample_moving:
                check_meets(
                    item["moving"], data["moving"], item["fixed"], data["fixed"], "give two images of one heart"
                )
                for key, is_label in (("moving", False), ("moving_label", True)):
                    if key in item:
                        # What is written is sampled once, from the native image.
                        item[f"{key}_native"] = item[key]
                        item[key] = resample(item[key], item["fixed"], is_label)
            cure = "resample one onto the other's grid, or give --resample_moving True for inference"
            check_same_grid(item["moving"], data["moving"], item["fixed"], data["fixed"], cure)
        item.pop("label_values", None)  # what was applied is not to be applied again, nor to be batched
        return item | _doubts_of_pair(item, data)

    def _load_label(self, file: NiftiFile, image: MetaTensor | None, data: Mapping, role: str) -> MetaTensor:
        """The label of the "moving" or the "fixed" image of an item."""
        frame, values = data.get(f"{role}_frame"), data.get("label_values")
        if image is None:
            label = name_structures(load_image(file, frame, is_label=True), file.path, values)
        else:
            label = load_label(file, image, data[role], frame, values)
        if not label.any():
            _check_frames(file, frame, [data.get(f"{one}_frame") for one in ("moving", "fixed")])
            where = "" if frame is None else f" in frame {frame}, counted from 0"
            logging.getLogger("data").warning(f"{file.path}: holds no structure{where}, and gives no scores.")
        return label


def _check_frames(file: NiftiFile, frame: int | None, own: Sequence[int | None]) -> None:
    """Stop at a frame of labels that is empty where others than a pair's own, counted from 0, hold structures.

    Raises:
        InputError: naming the file and those frames.
    """
    others = [] if frame is None else [t for t in range(file.shape[3]) if t not in own and file.voxels(t).any()]
    if others:
        raise InputError(
            f"{file.path}: holds no structure in frame {frame}, counted from 0, but in {', '.join(map(str, others))}; correct "
            "its ED and ES in the table."
        )


def _doubts_of_pair(item: Mapping, data: Mapping) -> dict[str, str]:
    """Sentences under "doubts" for a pair on one grid: on images that are equal, and on each label that fits the pair's
    other image better."""
    if "moving" not in item or "fixed" not in item:
        return {}
    images = torch.cat([item[key].as_tensor() for key in ("moving", "fixed")])
    spacing, doubts = voxel_sizes(item["fixed"].affine.double().numpy()), []
    for key, image in zip(("moving", "fixed"), images.numpy()):
        for sentence in _doubts_of_voxels(image, spacing):
            logging.getLogger("data").warning(f"{data[key]}: {sentence}")
            doubts += [sentence] * (sentence not in doubts)
    if torch.equal(*images):
        doubts.append("The moving and the fixed image are equal: is one of them the wrong file?")
        logging.getLogger("data").warning(f"{data['moving']}, {data['fixed']}: {doubts[-1]}")
    for number, (key, other) in enumerate((("moving", "fixed"), ("fixed", "moving"))):
        label = item.get(f"{key}_label")
        if label is not None and better_frame(images, label, number) is not None:
            doubts.append(f"The {key} label fits the {other} image better than its own: are labels exchanged?")
            logging.getLogger("data").warning(f"{data[f'{key}_label']}: {doubts[-1]}")
        elif label is not None and (turn := better_turn(images[number], label)):
            doubts.append(f"The {key} label fits its image better with {turn}: is its header right?")
            logging.getLogger("data").warning(f"{data[f'{key}_label']}: {doubts[-1]}")
    return {"doubts": "\n".join(doubts)} if doubts else {}


def load_image(file: NiftiFile, frame: int | None = None, is_label: bool = False) -> MetaTensor:
    """An opened file, or one frame of it, counted from 0, as (1, X, Y, Z) in fp32.

    Raises:
        InputError: naming the file, for one without that frame, with more than three axes where no frame is given, and
            for a label that holds fractions.
    """
    if frame is not None and (len(file.shape) != 4 or not 0 <= frame < file.shape[3]):
        raise InputError(
            f"{file.path}: has no frame {frame}, counted from 0, in the shape {file.shape}; correct its ED and ES in the "
            "table."
        )
    if frame is None and len(file.shape) != 3:
        cure = ", or make one label map of masks, such as by numpy's argmax" if is_label else ""
        raise InputError(
            f"{file.path}: has the shape {file.shape}; one stack of slices (X, Y, Z) is needed: pick one frame of a cine{cure}."
        )
    voxels, meta = file.voxels(frame), {"filename_or_obj": file.path, "placed": file.placed}
    if not is_label and (valid := leave_out_fill(file, voxels)) is not None:
        meta["valid"] = valid
    array = torch.from_numpy(voxels)[None]
    if is_label and not torch.equal(array, array.round()):
        raise InputError(f"{file.path}: holds fractions, so it is not a label image; labels are the integers {LABELS}.")
    return MetaTensor(array, affine=file.affine, meta=meta)


def load_label(
    file: NiftiFile,
    image: MetaTensor,
    name: str,
    frame: int | None = None,
    values: Sequence[int | None] | None = None,
    tolerance: float = AFFINE_TOLERANCE_MM,
) -> MetaTensor:
    """The label (1, X, Y, Z) of an image, with its axes turned to the image's, on whose grid it lies to a tolerance in
    mm; messages call the image `name`, and `values` are the file's (`labels.name_structures`). Where one of the two files
    says nowhere where it lies, voxels of one index belong together.

    Raises:
        InputError: naming the file, for one that `load_image` refuses, or that lies elsewhere.
    """
    label = load_image(file, frame, is_label=True)
    if label.shape == image.shape and not (label.meta["placed"] and image.meta.get("placed", True)):
        label.affine = image.affine
    label = turn_to(label, image)
    check_same_grid(label, file.path, image, name, tolerance=tolerance)
    return name_structures(label, file.path, values)


def read_cine(path: str | Path, series: int | str | None = None, frames: int | None = None) -> Cine:
    """The cine of a 4-D NIfTI file or of a folder of DICOM files, of a series of that folder where one is given; with
    `frames`, of one slice in a NIfTI file (X, Y, T).

    Raises:
        InputError: naming the file or folder and the cure.
    """
    path = Path(path)
    if path.is_dir():
        return read_dicom_cine(path, series)
    if series is not None:
        raise InputError(f"{path}: is one file, and has no series {series}; leave --series out.")
    cine = read_nifti_cine(path, frames)
    plane = plane_of(cine.affine)
    return replace(cine, plane=plane, plane_basis="unknown" if plane is None else "read")


class LoadCase(Transform):
    """Load a case of a data list: a cine, with its reference frame where that is known, or a pair of images.

    A cine item has "cine" (a 4-D NIfTI file, or a folder of DICOM files), and may have "series" (of such a folder),
    "frames" (of a file (X, Y, T)), "reference" (frame, counted from 1), "reference_basis", "reference_label" and
    "label_values" (of that file's RV, myocardium and LV); a pair item has the keys of `LoadPaird`. Either may have
    "points", a CSV of landmarks of the fixed image, and "plane".

    The item gains "kind" ("cine" or "pair"), "moving" (T, X, Y, Z), "fixed" (1, X, Y, Z), "plane" (one of
    `planes.PLANES`, or ""), "plane_basis" (one of `planes.BASIS`), "times" (Z, T) in ms where known, "valid" (X, Y, Z),
    where anything was acquired, if that is not everywhere, and "doubts", sentences on the input that belong to the
    verdict, a line each. A cine gains "fixed" where it has a "reference", and then a "reference_basis", too
    (`set_reference`). One with an "error" raises it.

    Args:
        resample_moving: whether a moving image on another grid than the fixed one is resampled onto it.

    Raises:
        InputError: naming file and cure.
    """

    def __init__(self, resample_moving: bool = False) -> None:
        self.load = LoadPaird(resample_moving=resample_moving)

    def __call__(self, data: Mapping) -> dict:
        if "error" in data:
            raise data["error"]
        return _check_points(_load_cine(data) if "cine" in data else self._load_pair(data))

    def _load_pair(self, data: Mapping) -> dict:
        item = self.load(data)
        _check_areal(item["fixed"].shape[1:], data["fixed"])
        return {**item, **_plane_item(data, plane_of(item["fixed"].affine.double().numpy())), "kind": "pair"}


def _load_cine(data: Mapping) -> dict:
    cine = read_cine(data["cine"], data.get("series"), data.get("frames"))
    check_right_angles(cine.affine, data["cine"])
    _check_areal(cine.image.shape, data["cine"])
    check_extent(cine.image.shape, cine.affine, data["cine"])
    _check_frames_seen(cine.image, data["cine"])
    item = {**data, "kind": "cine"}
    item.pop("label_values", None)
    item |= _plane_item(data, cine.plane)
    _hint_plane(data["cine"], item["plane"], item["plane_basis"], cine.image.shape[2])
    item |= _doubts_of_image(data["cine"], cine)
    images = torch.from_numpy(cine.image).movedim(-1, 0)
    item["moving"] = MetaTensor(
        images, affine=torch.from_numpy(cine.affine), meta={"filename_or_obj": str(data["cine"])}
    )
    if "reference" in data:
        frame, basis = data["reference"], data.get("reference_basis", "given")
        if not 1 <= frame <= cine.frames:
            raise InputError(
                f"{data['cine']}: has the frames 1 to {cine.frames}, no reference frame {frame} ({basis}); correct that number."
            )
        item = set_reference(item, frame, basis)
    if cine.valid is not None:
        item["valid"] = torch.from_numpy(cine.valid)
    if cine.times is not None:
        item["times"] = torch.from_numpy(cine.times)
    if "reference_label" in data:
        item |= _load_reference_label(data, item)
    return item


def set_reference(item: Mapping, frame: int, basis: str) -> dict:
    """A loaded cine with its "reference", a frame counted from 1, as "fixed" (1, X, Y, Z); "reference_basis" says why that
    one."""
    fixed = item["moving"][frame - 1 : frame].clone()
    return {**item, "reference": frame, "reference_basis": basis, "fixed": fixed}


def _load_reference_label(data: Mapping, item: Mapping) -> dict:
    """The label of a cine's reference frame, with "doubts" where it fits another frame better."""
    path, reference, frames = data["reference_label"], item["reference"], len(item["moving"])
    name = f"frame {reference} of {data['cine']}"
    # A file may hold a label of each frame, most of them 0.
    file = open_nifti(path)
    frame = reference - 1 if file.shape[3:] == (frames,) else None
    tolerance = CONVERTED_MM if Path(data["cine"]).is_dir() else AFFINE_TOLERANCE_MM
    label = load_label(file, item["fixed"], name, frame, data.get("label_values"), tolerance)
    logger = logging.getLogger("inference")
    if not label.any():
        raise InputError(f"{path}: is 0 everywhere; give the label of {name}.")
    better, turn = better_frame(item["moving"], label, reference - 1), better_turn(item["fixed"][0], label)
    if better is None and turn is None:
        return {"reference_label": label}
    # A label that is turned fits no frame.
    if turn is None:
        doubt = f"The label fits frame {better + 1} better than the reference frame {reference}: is it of that frame?"
    else:
        doubt = f"The label fits the reference frame better with {turn}: is its header right?"
    logger.warning(f"{path}: {doubt}")
    return {"reference_label": label, "doubts": "\n".join([*item.get("doubts", "").splitlines(), doubt])}


def _plane_item(data: Mapping, read: str | None) -> dict:
    """The plane of a case, "" where it is unknown, and how it is known: as the case gives it, else as it was read."""
    if data.get("plane"):
        return {"plane": data["plane"], "plane_basis": "given"}
    return {"plane": read or "", "plane_basis": "read" if read else "unknown"}


def _hint_plane(path: str, plane: str, basis: str, slices: int) -> None:
    """Say what is made of a plane that the header of a cine does not tell, or that so many slices seldom have."""
    words = ""
    if basis == "unknown" and is_new("plane", str(Path(path).absolute().parent.parent)):
        words = (
            "its header tells no plane, so it is taken for short-axis slices; give --plane where it is another view. (Said "
            "for the first such file alone.)"
        )
    if basis == "read" and is_long_axis(plane) and slices > 1:
        words = (
            f"by its header its {slices} slices are long-axis ones ({plane}), of which no volume, ejection fraction or mass "
            "is given; where they are short-axis slices, as after an axis was mirrored, give --plane SAX."
        )
    if words:
        logging.getLogger("inference").warning(f"{path}: {words}")


def _doubts_of_image(path: str, cine: Cine) -> dict[str, str]:
    """Sentences under "doubts" where a cine looks like something else, after those on how it was read."""
    doubts = list(cine.doubts)
    first = cine.image[..., 0]
    if all(np.array_equal(first, cine.image[..., t]) for t in range(1, cine.frames)):
        doubts.append("All frames are equal, and nothing moves: is it a cine?")
        logging.getLogger("inference").warning(f"{path}: {doubts[-1]}")
    for sentence in _doubts_of_voxels(first, cine.spacing):
        doubts.append(sentence)
        logging.getLogger("inference").warning(f"{path}: {sentence}")
    if Path(path).is_file() and are_exchanged(cine.image):
        doubts.append(
            "The third axis changes as frames do, and the fourth as slices do: are slices and frames exchanged?"
        )
        logging.getLogger("inference").warning(
            f"{path}: its third axis of {cine.image.shape[2]} changes as frames do, and its fourth of {cine.frames} as slices "
            f"do; where they are exchanged, write `img = nibabel.load({Path(path).name!r}); nibabel.Nifti1Image("
            "img.dataobj[:].swapaxes(2, 3), img.affine)` to a new file."
        )
    exchanged = exchanged_frames(cine.image)
    if exchanged is not None:
        doubts.append("Frames {} and {} fit better in each other's place: are they exchanged?".format(*exchanged))
        logging.getLogger("inference").warning(f"{path}: {doubts[-1]}")
    if has_tags(cine.image[..., 0], cine.spacing[:2]):
        doubts.append("Regular lines cross the image: is it tagged? The network knows plain cines alone.")
        logging.getLogger("inference").warning(f"{path}: {doubts[-1]}")
    return {"doubts": "\n".join(doubts)} if doubts else {}


def _doubts_of_voxels(image: NDArray, spacing: Sequence[float]) -> list[str]:
    """Sentences on a stack (X, Y, Z) whose values, or whose voxels of a size in mm, no scanner would have chosen."""
    doubts, (width, height, gap) = [], map(float, spacing)
    values = np.unique(image[..., image.shape[2] // 2])
    if len(values) <= FEW_VALUES:
        doubts.append(f"A slice has {len(values)} different values in all: is it a label map or a mask?")
    if image.shape[2] > 1 and not GAPS_MM[0] <= gap <= GAPS_MM[1]:
        doubts.append(f"Slices are {gap:.3g} mm apart, on which volumes rest: are the file's voxel sizes right?")
    if max(width, height) > LONGEST * min(width, height):
        doubts.append(f"Pixels are {width:.3g} x {height:.3g} mm: are the file's voxel sizes right?")
    return doubts


def _check_areal(shape: Sequence[int], path: str | Path) -> None:
    """Stop at slices that are one pixel wide, on which a field has no gradient, and at more slices than pixels, which only
    axes in another order than (X, Y, Z) have.

    Raises:
        InputError: naming the file.
    """
    width = min(shape[:2])
    if width < 2:
        raise InputError(
            f"{path}: has slices of {shape[0]} x {shape[1]} pixels; give a stack of slices (X, Y, Z) of two pixels or more."
        )
    if shape[2] > width:
        raise InputError(
            f"{path}: has {shape[2]} slices of {shape[0]} x {shape[1]} pixels; are its axes in another order than (X, Y, Z) or "
            "(X, Y, Z, T)? Put them in that order, by numpy.moveaxis for example, in a new file."
        )


def _check_frames_seen(image: NDArray, path: str | Path) -> None:
    """Stop at a cine (X, Y, Z, T) of which some frames are blank: one without a heart would be its end systole.

    Raises:
        InputError: naming the file and the frames, counted from 1.
    """
    blank = [t + 1 for t in range(image.shape[3]) if np.ptp(image[..., t]) == 0]
    if 0 < len(blank) < image.shape[3]:
        raise InputError(
            f"{path}: holds nothing (one value all over) in frame {', '.join(map(str, blank))}; is it complete? Write the other "
            "frames to a new file."
        )


def _check_points(item: dict) -> dict:
    """The item, if its "points" can be read and lie in its images.

    Raises:
        InputError: naming the file of the points.
    """
    if "points" in item:
        names, positions = read_points(item["points"])
        grid = item.get("fixed", item["moving"])  # a cine has one for all its frames
        check_in_image(item["points"], names, positions, grid.shape[1:], grid.affine.double().numpy())
    return item


def in_parts(item: Mapping, voxels: int = 1 << 22) -> Iterator[dict]:
    """A loaded case in parts of some frames of "moving" and "segmented" (T, X, Y, Z), so that what is made of a part fits
    into memory.

    Each part also has "first_frame", counted from 0, and "frames", the number T of all.

    Args:
        item: as `LoadCase` gives it.
        voxels: of a part, at most; a single frame may have more.
    """
    moving = item["moving"]
    step = max(voxels // moving[0].numel(), 1)
    for first in range(0, len(moving), step):
        part = {key: item[key][first : first + step] for key in ("moving", "segmented") if key in item}
        yield {**item, **part, "first_frame": first, "frames": len(moving)}


class PairFrames(Transform):
    """Every frame beside the fixed image: (T, X, Y, Z) and (1, X, Y, Z) to "pair".

    Where the item has "valid" (X, Y, Z), a third channel is 1 where it and all its neighbors are, else 0.

    Args:
        axes: of what is registered at once: 2 for slices, which gives (2, X, Y, Z * T), frames fastest, or 3 for stacks, (2, X, Y,
            Z, T).
    """

    def __init__(self, axes: int = 2) -> None:
        self.axes = axes

    def __call__(self, data: Mapping) -> dict:
        moving, fixed = (data[key].as_tensor().movedim(0, -1) for key in ("moving", "fixed"))
        channels = [moving, fixed.expand_as(moving)]
        if "valid" in data:
            channels.append(_measured(data["valid"], fixed.shape[:2], self.axes).unsqueeze(-1).expand_as(moving))
        pair = torch.stack(channels)
        pair = pair.flatten(-2) if self.axes == 2 else pair
        return {**data, "pair": MetaTensor(pair, affine=data["fixed"].affine)}


def _measured(valid: Tensor, size: Sequence[int], axes: int) -> Tensor:
    """Voxels of a grid of `size` in-plane that hold a measurement and whose neighbors all do, so that no gradient of the
    image there knows others; 1 or 0, (X, Y, Z)."""
    slices = valid.float().movedim(-1, 0).unsqueeze(1)
    share = F.interpolate(slices, size=size, mode="bilinear", align_corners=False, antialias=True)
    inside = (share > 0.999).squeeze(1).movedim(0, -1).numpy()
    near = np.ones((3, 3, 3 if axes == 3 else 1), bool)
    return torch.from_numpy(binary_erosion(inside, near, border_value=1)).float()
