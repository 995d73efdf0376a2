"""A case, cine or pair, loaded and laid out as one stack of slice pairs for a 2-D network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.cines import ESTIMATED, LABELS, largest_cavity
from scripts.errors import InputError
from scripts.itk_fields import check_in_image, check_one_place, check_right_angles, read_points
from scripts.readers import check_slices_last, read_cine, shape_of
from scripts.transforms import AFFINE_TOLERANCE_MM, LoadCased, check_order

CONVERTED_MM = 0.1
"""Millimeters that a label drawn on a converter's copy of DICOM may lie off: its affine comes from other slices or
rounded positions."""


class LoadCase(Transform):
    """Load a case of a data list: a cine with its reference frame, or a pair of images.

    A cine item has "cine" (a 4-D NIfTI file, or a folder of DICOM files), and may have "reference" (frame, counted from
    1), "reference_basis" and "reference_label". The item gains "moving" (T, X, Y, Z), "fixed" (1, X, Y, Z), "times" (Z,
    T) in ms where known, and "reference", 0 for a pair. Either may have "points", a CSV of landmarks of the fixed
    image. One with an "error" raises it.

    Args:
        resample_moving: whether a moving image on another grid than the fixed one is resampled onto it.

    Raises:
        InputError: naming file and cure.
    """

    def __init__(self, resample_moving: bool = False) -> None:
        self.load = LoadCased(resample_moving=resample_moving)

    def __call__(self, data: Mapping) -> dict:
        if "error" in data:
            raise data["error"]
        if "cine" not in data:
            item = self.load(data)
            check_right_angles(item["fixed"].affine.double().numpy(), data["fixed"])
            check_areal(item["fixed"].shape[1:3], data["fixed"])
            check_slices_last(data["fixed"])
            for key in ("fixed", "moving", "moving_label"):
                if key in data:
                    check_one_place(data[key])
            if "moving_label" in item:
                check_order(item["moving_label"], data["moving_label"])
            label = {"reference_label": item.pop("moving_label")} if "moving_label" in item else {}
            return check_points({**item, **label, "reference": 0, "reference_basis": "the fixed image of the pair"})
        cine = read_cine(data["cine"])
        check_right_angles(cine.affine, data["cine"])
        check_areal(cine.image.shape[:2], data["cine"])
        item = {**data, "reference_basis": data.get("reference_basis", "given")}
        if "reference" not in data:
            item["reference"] = largest_cavity(cine.image)
            item["reference_basis"] = ESTIMATED
        if not 1 <= item["reference"] <= cine.frames:
            given = f"{item['reference']} ({item['reference_basis']})"
            raise InputError(
                f"{data['cine']}: has the frames 1 to {cine.frames}, no reference frame {given}; correct that number."
            )
        images = torch.from_numpy(cine.image).movedim(-1, 0)
        item["moving"] = MetaTensor(
            images, affine=torch.from_numpy(cine.affine), meta={"filename_or_obj": str(data["cine"])}
        )
        item["fixed"] = item["moving"][item["reference"] - 1 : item["reference"]].clone()
        if cine.times is not None:
            item["times"] = torch.from_numpy(cine.times)
        if "reference_label" in data:
            name = f"frame {item['reference']} of {data['cine']}"
            # A file may hold a label of each frame, most of them 0.
            frame = item["reference"] - 1 if shape_of(data["reference_label"])[3:] == (cine.frames,) else None
            tolerance = CONVERTED_MM if Path(data["cine"]).is_dir() else AFFINE_TOLERANCE_MM
            item["reference_label"] = self.load.load_label(
                data["reference_label"], item["fixed"], name, frame, tolerance
            )
            check_one_place(data["reference_label"])
            check_order(item["reference_label"], data["reference_label"])
            if not item["reference_label"].any():
                raise InputError(f"{data['reference_label']}: is 0 everywhere; give the label of {name}.")
            if item["reference_label"].max() == LABELS["rv"]:
                logging.getLogger("inference").warning(
                    f"{data['reference_label']}: holds 1 alone, so that figures are the RV's; where that is the LV's "
                    "cavity, make it 3."
                )
        return check_points(item)


def check_areal(size: Sequence[int], path: str | Path) -> None:
    """Stop at slices that are one pixel wide: a field on them has no gradient.

    Raises:
        InputError: naming the file.
    """
    if min(size) < 2:
        raise InputError(
            f"{path}: has slices of {size[0]} x {size[1]} pixels; give a stack of slices (X, Y, Z) of two pixels or more."
        )


def check_points(item: dict) -> dict:
    """The item, if its "points" can be read and lie in its "fixed" image.

    Raises:
        InputError: naming the file of the points.
    """
    if "points" in item:
        names, positions = read_points(item["points"])
        check_in_image(item["points"], names, positions, item["fixed"].shape[1:], item["fixed"].affine.double().numpy())
    return item


class PairFrames(Transform):
    """Every frame's slices beside the fixed ones: (T, X, Y, Z) and (1, X, Y, Z) to "pair" (2, X, Y, Z * T), frames
    fastest."""

    def __call__(self, data: Mapping) -> dict:
        moving, fixed = (data[key].as_tensor().movedim(0, -1) for key in ("moving", "fixed"))
        pair = torch.stack([moving, fixed.expand_as(moving)]).flatten(-2)
        return {**data, "pair": MetaTensor(pair, affine=data["fixed"].affine)}
