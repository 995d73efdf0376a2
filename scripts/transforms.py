"""Dictionary transforms that MONAI lacks: checked loading of a pair, intensity scaling by slice, batch augmentation."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import scale_affine
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import binary_dilation
from scripts.cines import LABELS
from scripts.errors import InputError
from scripts.fields import resize_field
from scripts.files import is_dicom, read_voxels, unreadable
from scripts.itk_fields import pull
from torch import Tensor
from torch.nn import functional as F

AFFINE_TOLERANCE_MM = 1e-3
SMALLEST = 8
"""Pixels along an axis that are left of a resampled image at least."""


class LoadCased(MapTransform):
    """Load the NIfTI files of a pair, channel first, as (1, X, Y, Z) MetaTensors in fp32, checked one by one and
    together.

    Where an item has "moving_frame" or "fixed_frame", that frame (from 0) of a cine and of its label is loaded; where
    it has "label_values", labels are renamed by it (see `datalists`).

    Args:
        keys: keys that hold paths; absent keys are skipped.
        resample_moving: whether a moving image (and its label) on another grid is resampled onto the fixed one's; the
            native ones stay under "moving_native" and "moving_label_native".

    Raises:
        InputError: naming the file, for one that cannot be read, has more than three axes, holds NaN or Inf, a label
            that holds anything but the integers 0 to 3, or a file whose shape or affine (to 1e-3 mm; of a label, after
            turning its axes) is not that of the image it belongs to, or, resampled, that lies apart from it in space.
    """

    def __init__(
        self, keys: Sequence[str] = ("moving", "fixed", "moving_label", "fixed_label"), resample_moving: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.resample_moving = resample_moving

    def __call__(self, data: Mapping[Hashable, str]) -> dict:
        item = dict(data)
        for key in self.key_iterator(data):
            is_label, frame = str(key).endswith("_label"), data.get(f"{str(key).removesuffix('_label')}_frame")
            item[key] = self.load(data[key], is_label, frame)
            if is_label:
                check_structures(item[key], data[key])
                if not item[key].any():
                    where = "" if frame is None else f" in frame {frame}, counted from 0"
                    logging.getLogger("data").warning(f"{data[key]}: holds no structure{where}, and gives no scores.")
                if "label_values" in data:
                    item[key] = rename_labels(item[key], data["label_values"])
        for key, reference in (("moving_label", "moving"), ("fixed_label", "fixed")):
            if key in item and reference in item:
                item[key] = turn_to(item[key], item[reference])
                check_same_grid(item[key], data[key], item[reference], data[reference])
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
        return item

    def load(self, path: str, is_label: bool = False, frame: int | None = None) -> MetaTensor:
        """One checked image (1, X, Y, Z): a file, or one frame, counted from 0, of a file (X, Y, Z, T)."""
        if Path(path).is_dir() or is_dicom(path):
            raise InputError(
                f"{path}: is a folder or DICOM, where a NIfTI file is needed; convert it, by `dcm2niix` for example."
            )
        try:
            image = read_image(path) if frame is None else read_frame(path, frame)
        except InputError:
            raise
        except Exception as error:
            raise unreadable(path, error) from error
        check_image(image, path, is_label)
        return image

    def load_label(
        self, path: str, image: MetaTensor, name: str, frame: int | None = None, tolerance: float = AFFINE_TOLERANCE_MM
    ) -> MetaTensor:
        """One checked label (1, X, Y, Z) that lies on the grid of an image to a tolerance in mm, which messages call
        `name`; see `load`."""
        label = turn_to(self.load(path, is_label=True, frame=frame), image)
        check_same_grid(label, path, image, name, tolerance=tolerance)
        check_structures(label, path)
        return label


def read_image(path: str) -> MetaTensor:
    """A NIfTI file (X, Y, Z) as (1, X, Y, Z), with the affine that its header gives.

    MONAI's reader takes the qform for the affine where the sform disagrees with the voxel sizes, whatever its code
    says.
    """
    file = nib.load(path)
    array = read_voxels(file)
    # A lone slice has two axes, and some writers add axes of length 1.
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim)) if array.ndim < 3 else array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return MetaTensor(torch.from_numpy(array.copy())[None], affine=file.affine, meta={"filename_or_obj": str(path)})


def read_frame(path: str, frame: int) -> MetaTensor:
    """One frame, counted from 0, of a NIfTI file (X, Y, Z, T), as (1, X, Y, Z).

    Raises:
        InputError: for a file without that frame.
    """
    file = nib.load(path)
    if file.ndim != 4 or not 0 <= frame < file.shape[3]:
        raise InputError(
            f"{path}: has no frame {frame}, counted from 0, in the shape {file.shape}; correct its ED and ES in the table."
        )
    return MetaTensor(
        torch.from_numpy(read_voxels(file, frame))[None], affine=file.affine, meta={"filename_or_obj": str(path)}
    )


def rename_labels(label: MetaTensor, values: Sequence[int]) -> MetaTensor:
    """A label map whose voxels of value n get the n-th of the values."""
    return MetaTensor(torch.tensor(values, dtype=label.dtype)[label.as_tensor().long()], meta=dict(label.meta))


def turn_to(label: MetaTensor, image: MetaTensor) -> MetaTensor:
    """A label (1, X, Y, Z) with its axes in the order and direction of an image's: converters turn the rows of DICOM
    over."""
    affines = [one.affine.double().numpy() for one in (label, image)]
    if not all((voxel_sizes(affine) > 0).all() for affine in affines):
        return label  # `check_same_grid` says so.
    # Of the one relative to the other: near 45 degrees each for itself may round to another axis.
    turn = io_orientation(np.linalg.inv(affines[1]) @ affines[0])
    if tuple(np.take(label.shape[1:], np.argsort(turn[:, 0]))) != tuple(image.shape[1:]):
        return label  # the message names the shape of the file
    array = apply_orientation(label[0].numpy(), turn)
    affine = affines[0] @ inv_ornt_aff(turn, label.shape[1:])
    return MetaTensor(torch.from_numpy(array.copy())[None], affine=affine, meta=dict(label.meta))


def resample(image: MetaTensor, reference: MetaTensor, is_label: bool) -> MetaTensor:
    """An image or a label (1, X, Y, Z) on the grid of another one, see `itk_fields.pull`; within its slices it repeats
    its border.

    A slice of the grid that the image does not reach is 0: nothing can be registered there.
    """
    native, affine = image.affine.double().numpy(), reference.affine.double().numpy()
    still = np.zeros((3, *reference.shape[1:]))
    array = pull(image[0].numpy(), native, still, affine, is_label, repeat_border=True)
    reached = pull(np.ones(image.shape[1:], np.float32), native, still, affine).any(axis=(0, 1))
    # A dict of its own: a MetaTensor writes its affine into the one that it is given.
    return MetaTensor(
        torch.from_numpy(array * reached)[None].to(image.dtype), affine=reference.affine, meta=dict(image.meta)
    )


def check_image(image: Tensor, path: str, is_label: bool = False) -> None:
    """Stop at an image that is not a stack of slices or holds NaN, Inf or, as a label, a fraction.

    Raises:
        InputError: naming the file.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        shape = tuple(image.shape[1:]) + tuple(image.shape[:1]) * (image.shape[0] > 1)
        raise InputError(
            f"{path}: has the shape {shape}; one stack of slices (X, Y, Z) is needed: pick one frame of a cine."
        )
    if not torch.isfinite(image).all():
        raise InputError(f"{path}: holds NaN or Inf; replace those voxels.")
    if is_label and not torch.equal(image, image.round()):
        raise InputError(f"{path}: holds fractions, so it is not a label image; labels are the integers {LABELS}.")


def check_structures(label: Tensor, path: str) -> None:
    """Stop at a label map that holds other values than the heart's structures.

    Raises:
        InputError: naming the file.
    """
    if not 0 <= label.min() <= label.max() <= max(LABELS.values()):
        names = ", ".join(f"{value} {name.upper()}" for name, value in LABELS.items())
        raise InputError(
            f"{path}: holds {label.min():g} to {label.max():g}; give them these values: {names}, and 0 elsewhere."
        )


def check_order(label: Tensor, path: str) -> None:
    """Stop at a label map (1, X, Y, Z) in which the myocardium encloses 1 instead of 3, as in M&Ms' order (1 LV, 2
    myocardium, 3 RV), or 1 encloses 2, as where the LV alone was labeled (1 myocardium, 2 cavity).

    Raises:
        InputError: naming the file.
    """
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[..., None]
    values = torch.as_tensor(label)[0].cpu().numpy()
    enclosed = {}
    rv, myo, lv = (LABELS[name] for name in ("rv", "myo", "lv"))
    for value, around in ((rv, myo), (lv, myo), (myo, rv)):
        mask = values == value
        rim = values[binary_dilation(mask, cross) & ~mask]
        enclosed[value] = (rim == around).mean() if len(rim) else np.nan
    if enclosed[myo] > 0.8:
        raise InputError(
            f"{path}: has 1 around 2; make the myocardium 2 and the cavity of the LV 3, for here 1 is the RV."
        )
    # NaN where there is no 3.
    if enclosed[rv] > 0.8 and not enclosed[lv] >= 0.5:
        raise InputError(
            f"{path}: has the myocardium (2) around 1 and not around 3, as M&Ms has; exchange both, for here 1 is the "
            "RV and 3 the LV."
        )


def check_same_grid(
    image: MetaTensor,
    path: str,
    reference: MetaTensor,
    reference_path: str,
    cure: str = "resample one onto the other's grid",
    tolerance: float = AFFINE_TOLERANCE_MM,
) -> None:
    """Stop where two images do not lie on one grid, their corners within a tolerance in mm.

    Raises:
        InputError: naming both files.
    """
    if image.shape != reference.shape:
        shapes = f"{tuple(image.shape[1:])} and {tuple(reference.shape[1:])}"
        raise InputError(f"{path} and {reference_path}: have different shapes, {shapes}; {cure}.")
    # The affines agree where they put the corners of the image within the tolerance.
    extent = torch.tensor([*reference.shape[1:], 1.0], dtype=torch.float64)
    gap = ((image.affine.double() - reference.affine.double()).abs() * extent)[:3].sum(dim=1).max().item()
    if not gap <= tolerance:  # NaN, too
        raise InputError(f"{path} and {reference_path}: have affines up to {gap:.3g} mm apart; {cure}.")


def check_meets(
    image: MetaTensor, path: str | Path, reference: MetaTensor, reference_path: str | Path, cure: str
) -> None:
    """Stop at an image whose box, on whatever grid, lies outside that of a reference, both (1, X, Y, Z).

    Raises:
        InputError: naming both files.
    """
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in reference.shape[1:]))))
    to_image = torch.linalg.solve(image.affine.double(), reference.affine.double()).numpy()
    index = to_image @ np.vstack([corners.T, np.ones(len(corners))])
    low, high = index[:3].min(axis=1), index[:3].max(axis=1)
    if (low >= np.array(image.shape[1:]) - 0.5).any() or (high <= -0.5).any():
        raise InputError(f"{path}: lies apart from {reference_path} in space; {cure}.")


class ScaleSlicesd(MapTransform):
    """Scale each slice of a stack (1, X, Y, Z) to [0, 1], so that scanner units and 8-bit copies give the same input.

    Intensities are clipped at a percentile of the stack (of each frame's, in a cine), then each slice is scaled min-max
    (the published protocol scales its 8-bit, clipped slices min-max; clipping those again changes nothing).

    Args:
        keys: images to scale.
        clip_percentile: upper clip, in percent of the stack's voxels; 100 clips nothing.

    Raises:
        InputError: naming the file, for an image that is constant in every slice; for an invalid percentile.
    """

    def __init__(self, keys: Sequence[str], clip_percentile: float = 99.0) -> None:
        super().__init__(keys)
        if (
            isinstance(clip_percentile, bool)
            or not isinstance(clip_percentile, (int, float))
            or not 0 < clip_percentile <= 100
        ):
            raise InputError(f"--clip_percentile {clip_percentile}: must be a percentage above 0; 100 clips nothing.")
        self.clip_percentile = clip_percentile

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        item = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            name = image.meta.get("filename_or_obj", key) if isinstance(image, MetaTensor) else key
            item[key] = scale_slices(image, self.clip_percentile)
            if not item[key].any():
                raise InputError(
                    f"{name}: the {key} image is constant in every slice, at least below the "
                    f"{self.clip_percentile:g}th percentile; give another image, another --reference_frame, or "
                    "--clip_percentile 100."
                )
        return item


def scale_slices(image: Tensor, clip_percentile: float = 100.0) -> Tensor:
    """Each slice of (..., X, Y, Z) scaled min-max to [0, 1], after clipping at a percentile of its stack; a constant
    one is 0."""
    if clip_percentile < 100:
        # NumPy's: torch.quantile stops at 16 million voxels.
        limit = np.percentile(
            torch.as_tensor(image).numpy(), clip_percentile, axis=(-3, -2, -1), keepdims=True, method="higher"
        )
        image = image.clamp(max=torch.from_numpy(np.asarray(limit)))
    low, high = image.amin(dim=(-3, -2), keepdim=True), image.amax(dim=(-3, -2), keepdim=True)
    return (image - low) / torch.where(high > low, high - low, 1.0)


def vary(images: Tensor) -> Tensor:
    """Which of the images (N, C, *spatial) are not constant, (N, C): what a network makes of a constant one is
    arbitrary."""
    axes = tuple(range(2, images.ndim))
    return images.amax(axes) > images.amin(axes)


class ResizeToSpacingd(MapTransform):
    """Resample stacks (1, X, Y, Z) in-plane to a working spacing; the outer pixel edges stay where they are.

    A network knows hearts of the size in pixels that it was trained on; scanners differ in their pixels by a factor of
    two.

    Args:
        keys: images to resample.
        spacing: in-plane pixel size in mm; None or False leaves the native pixels (the published protocol).
        tolerance: pixels within a factor of 1 + tolerance stay as they are: resampling blurs, and networks bear that
            much.

    Raises:
        InputError: for a spacing that is not a length, or that leaves next to nothing of an image.
    """

    def __init__(self, keys: Sequence[str], spacing: float | None = None, tolerance: float = 0.15) -> None:
        super().__init__(keys)
        if spacing is True or (spacing and not (isinstance(spacing, (int, float)) and spacing > 0)):
            raise InputError(
                f"--working_spacing {spacing}: must be a pixel size in mm, or False for the images' own pixels."
            )
        self.spacing = spacing or None
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict:
        item, keys = dict(data), list(self.key_iterator(data))
        if self.spacing is None or not keys:
            return item
        # By the first image for all: affines that are one grid's may differ in their last digits.
        shape, pixels = data[keys[0]].shape[1:3], data[keys[0]].pixdim.tolist()
        factors = [length / self.spacing for length in pixels[:2]]
        if all(1 / (1 + self.tolerance) <= factor <= 1 + self.tolerance for factor in factors):
            return item
        size = [max(round(n * factor), 1) for n, factor in zip(shape, factors)]
        if min(size) < SMALLEST <= min(shape):
            raise InputError(
                f"--working_spacing {self.spacing:g}: leaves {size[0]} x {size[1]} pixels of {tuple(shape)}; give a smaller one."
            )
        for key in keys:
            image = data[key]
            slices = F.interpolate(
                image.as_tensor().movedim(-1, 0), size=size, mode="bilinear", align_corners=False, antialias=True
            )
            affine = image.affine @ torch.from_numpy(scale_affine(image.shape[1:], (*size, image.shape[-1])))
            item[key] = MetaTensor(slices.movedim(0, -1).contiguous(), meta=dict(image.meta))
            item[key].affine = affine
        return item


class FieldToNatived(Transform):
    """Bring an in-plane field (2, X, Y, Z) from the working grid to the native one, in voxels of the native grid.

    Args:
        field: key of the field.
        reference: key of the image whose grid is the native one.
    """

    def __init__(self, field: str = "pred", reference: str = "fixed_image") -> None:
        self.field = field
        self.reference = reference

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict:
        field = torch.as_tensor(data[self.field]).detach().cpu().float()
        slices = resize_field(field.movedim(-1, 0), data[self.reference].shape[1:3])
        return {**data, self.field: slices.movedim(0, -1)}


class RandomPairAugmentation(Transform):
    """Augments a batch of pairs (B, 2, *spatial) at once, on its device; both images of a pair alike, and its labels as
    its images.

    Args:
        size: spatial size of a random crop, for each pair its own; None takes all.
        swap: whether to exchange moving and fixed in half of the pairs, so that the network learns both directions.
        flip: whether to flip half of the pairs along each axis and to rotate the batch by a random multiple of 90
            degrees.
        gamma: standard deviation of the logarithm of a gamma curve, one a pair, applied to intensities in [0, 1]; 0 is
            none.
        rotation: largest angle in degrees of a random rotation, one a pair, 2-D only; 0 is none.
        zoom: standard deviation of the logarithm of a random magnification, one a pair, 2-D only; 0 is none.
        elastic: standard deviation in pixels of a smooth random deformation, one a pair, 2-D only; 0 is none.
        elastic_spacing: pixels between its control points; folds begin where `elastic` comes near a third of it.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        swap: bool = True,
        flip: bool = True,
        gamma: float = 0.2,
        rotation: float = 0.0,
        zoom: float = 0.0,
        elastic: float = 0.0,
        elastic_spacing: float = 32.0,
    ) -> None:
        self.size = size
        self.swap = swap
        self.flip = flip
        self.gamma = gamma
        self.rotation = rotation
        self.zoom = zoom
        self.elastic = elastic
        self.elastic_spacing = elastic_spacing

    def __call__(self, pair: Tensor, label: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The augmented pair; with labels (B, 2, *spatial) of its images, of an integer type, the pair and its
        labels."""
        batch, axes, device = pair.shape[0], pair.ndim - 2, pair.device
        images = [pair] if label is None else [pair, label]

        def each(values):
            return values.view(-1, *[1] * (axes + 1))

        def half():
            return each(torch.rand(batch, device=device) < 0.5)

        if self.rotation or self.zoom or self.elastic:
            angle = torch.deg2rad(torch.empty(batch, device=device).uniform_(-self.rotation, self.rotation))
            grid = sampling_grid(pair, angle, torch.exp(torch.randn(batch, device=device) * self.zoom))
            if self.elastic:
                grid = grid + smooth_noise(pair, self.elastic, self.elastic_spacing)
            images = [sample_slices(image, grid) for image in images]
        if self.size is not None:
            starts = [
                torch.randint(old - new + 1, (batch, 1), device=device) for old, new in zip(pair.shape[2:], self.size)
            ]
            images = [crop_each(image, starts, self.size) for image in images]
        if self.flip:
            if images[0].shape[2] == images[0].shape[3]:
                turns = random.randrange(4)
                images = [torch.rot90(image, turns, (2, 3)) for image in images]
            for axis in range(axes):
                chosen = half()
                images = [torch.where(chosen, image.flip(axis + 2), image) for image in images]
        if self.swap:
            chosen = half()
            images = [torch.where(chosen, image.flip(1), image) for image in images]
        if self.gamma:
            images[0] = images[0].clamp(0, 1) ** each(torch.exp(torch.randn(batch, device=device) * self.gamma))
        return images[0] if label is None else (images[0], images[1])


def sampling_grid(pair: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Where to sample (B, C, X, Y) to rotate each pair about the center by its angle (B,) in radians and to magnify it
    by its zoom (B,).

    Returns:
        (B, X, Y, 2) in `grid_sample`'s coordinates without aligned corners: y before x, -1 and 1 at the outer pixel
        edges.
    """
    height, width = pair.shape[2:]
    cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros_like(angle)
    # affine_grid's coordinates reach from -1 to 1 on each axis: hence the aspect ratio.
    rows = [
        torch.stack([cos, -sin * height / width, zero], dim=1),
        torch.stack([sin * width / height, cos, zero], dim=1),
    ]
    return F.affine_grid(torch.stack(rows, dim=1), list(pair.shape), align_corners=False)


def smooth_noise(pair: Tensor, deviation: float, spacing: float) -> Tensor:
    """A random displacement for each pair of (B, C, X, Y): normal at control points `spacing` pixels apart, cubic
    between them.

    Args:
        pair: gives shape, type and device.
        deviation: standard deviation at the control points, in pixels.
        spacing: pixels.

    Returns:
        (B, X, Y, 2) in the coordinates of `sampling_grid`.
    """
    height, width = pair.shape[2:]
    points = [max(round(n / spacing), 1) + 1 for n in (height, width)]
    noise = torch.randn(len(pair), 2, *points, device=pair.device, dtype=pair.dtype)
    noise = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
    # Channel 0 of the grid is y; an axis of n pixels is 2 long.
    return torch.stack([noise[:, 1] * (2 * deviation / width), noise[:, 0] * (2 * deviation / height)], dim=-1)


def sample_slices(image: Tensor, grid: Tensor) -> Tensor:
    """(B, C, X, Y) at the points of a grid (`sampling_grid`), its border repeated; linear, nearest for labels of an
    integer type."""
    if image.is_floating_point():
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    sampled = F.grid_sample(image.to(grid.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return sampled.to(image.dtype)


def crop_each(image: Tensor, starts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """(B, C, *spatial) -> (B, C, *size): of each image the piece that starts at its own voxel, (B, 1) along each
    axis."""
    for axis, (start, new) in enumerate(zip(starts, size), start=2):
        index = start + torch.arange(new, device=start.device)
        shape = [len(image)] + [new if a == axis else 1 for a in range(1, image.ndim)]
        expanded = [*image.shape[:axis], new, *image.shape[axis + 1 :]]
        image = image.gather(axis, index.view(shape).expand(expanded))
    return image


class PreparePair:
    """`prepare_batch` of MONAI's engines for pairs: (network input, loss target), both the pair (B, 2, *spatial).

    Where the batch holds labels of its images under "label" (`SliceDataset` with labels), the target is (pair, label),
    augmented alike.

    Args:
        augment: a function of the pair, or of the pair and its labels, or None.
        channels_last: whether to hand the network its input in channels-last memory format (2-D).
    """

    def __init__(self, augment: Transform | None = None, channels_last: bool = False) -> None:
        self.augment = augment
        self.channels_last = channels_last

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        pair = batchdata["pair"].to(device=device, non_blocking=non_blocking, **kwargs)
        # Gradients of MetaTensors are MetaTensors, and slow.
        pair = pair.as_tensor() if isinstance(pair, MetaTensor) else pair
        label = batchdata.get("label")
        if label is None:
            pair = pair if self.augment is None else self.augment(pair)
        else:
            label = label.to(device=device, non_blocking=non_blocking)
            pair, label = (pair, label) if self.augment is None else self.augment(pair, label)
        if self.channels_last and pair.ndim == 4:
            pair = pair.contiguous(memory_format=torch.channels_last)
        return pair, pair if label is None else (pair, label)
