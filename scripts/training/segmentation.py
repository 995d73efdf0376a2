"""Training the segmentation network: labeled slices held as tensors, their augmentation, and the scores of stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from scripts.cardiac import segmentation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset


def labeled_frames(pairs: Sequence[dict]) -> list[dict]:
    """The labeled frames of the pairs of a data list, each once: "image", "label", "subject" and "phase"."""
    items = {}
    for pair in pairs:
        phases = str(pair.get("direction", "moving_to_fixed")).split("_to_")
        for role, phase in zip(("moving", "fixed"), phases):
            if f"{role}_label" in pair:
                key = (pair[role], pair.get(f"{role}_frame"))
                items[key] = {
                    "image": pair[role],
                    "label": pair[f"{role}_label"],
                    "subject": pair["subject"],
                    "phase": phase,
                }
    return list(items.values())


def load_frame(item: Mapping) -> dict:
    """An item of `labeled_frames` with "image" (X, Y, Z) in fp32, "label" in int8 and "spacing" in mm."""
    image, label = nib.load(item["image"]), nib.load(item["label"])
    return {
        **item,
        "image": torch.from_numpy(np.asarray(image.dataobj, np.float32)),
        "label": torch.from_numpy(np.asarray(label.dataobj).astype(np.uint8)),
        "spacing": torch.tensor([float(length) for length in image.header.get_zooms()[:3]]),
    }


class StackDataset(Dataset):
    """Labeled frames, one a time, whole and on their own grid.

    Args:
        data: items of `labeled_frames`.
    """

    def __init__(self, data: Sequence[dict]) -> None:
        self.items = [load_frame(item) for item in data]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


class LabeledSlices(Dataset):
    """All slices of labeled frames as one tensor, with neighbors, labels, and where the heart of each stack lies.

    Args:
        data: items of `labeled_frames`.
        spacing: mm; pixels of the network.
        size: pixels; slices are cropped about their center or padded with zeros to this.
    """

    def __init__(self, data: Sequence[dict], spacing: float, size: Sequence[int]) -> None:
        images, labels, below, above, centers, extents = [], [], [], [], [], []
        count = 0
        for item in data:
            frame = load_frame(item)
            slices = segmentation.prepare(frame["image"], frame["spacing"].tolist(), spacing)
            one_hot = F.one_hot(frame["label"].long(), 4).permute(2, 3, 0, 1).float()
            label = segmentation.resize(one_hot.contiguous(), slices.shape[2:]).argmax(dim=1, keepdim=True)
            extent = torch.tensor([min(n, m) for n, m in zip(slices.shape[2:], size)])
            slices, label = fit(slices, size), fit(label, size)
            heart = label.nonzero()[:, 2:].float()
            center = heart.mean(dim=0) if len(heart) else torch.tensor([n / 2 for n in size])
            lower, upper = segmentation.neighbors(len(slices), float(frame["spacing"][2]))
            below.append(lower + count)
            above.append(upper + count)
            count += len(slices)
            images.append(slices)
            labels.append(label.to(torch.uint8))
            centers.append(center.expand(len(slices), 2))
            extents.append(extent.expand(len(slices), 2))
        self.images, self.labels = torch.cat(images), torch.cat(labels)
        self.below, self.above = torch.cat(below), torch.cat(above)
        self.centers, self.extents = torch.cat(centers), torch.cat(extents).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Of a list of B slices "image" (B, 3, *size) with the neighbors, "label" (B, 1, *size), "center" and "extent"
        (B, 2) in pixels."""
        index = torch.as_tensor(index)
        image = torch.cat([self.images[self.below[index]], self.images[index], self.images[self.above[index]]], dim=1)
        return {
            "image": image,
            "label": self.labels[index],
            "center": self.centers[index],
            "extent": self.extents[index],
        }


def fit(slices: Tensor, size: Sequence[int]) -> Tensor:
    """Slices (N, C, X, Y) cropped about their center, or padded with zeros about it, to a size."""
    pads = []
    for old, new in zip(reversed(slices.shape[2:]), reversed(size)):
        first = (new - old) // 2
        pads += [first, new - old - first]
    return F.pad(slices, pads)


class RandomSliceAugmentation:
    """Augments a batch of slices at once, on its device: what scanners, coils, sites and patients change.

    A crop is drawn about the heart or anywhere in the image, turned, mirrored, magnified and deformed by one sampling;
    then its contrast, coil profile, sharpness and noise are changed.

    Args:
        size: pixels of a crop.
        off_center: share of the crops that lie anywhere in the image.
        jitter: pixels; standard deviation of the distance of the other ones from the heart's center, along each axis.
        mirror: chance of mirroring each axis, and of exchanging them.
        rotation: largest angle in degrees.
        zoom: standard deviation of the logarithm of the magnification.
        elastic: pixels; standard deviation of a smooth deformation at control points 32 pixels apart.
        alone: share of the slices that see copies of themselves for neighbors, as a single slice does.
        gamma: standard deviation of the logarithm of a gamma curve.
        gain: standard deviation of the logarithm of a factor of all intensities.
        offset: standard deviation of a constant added to all.
        bias: standard deviation of the logarithm of a smooth factor at control points 72 pixels apart.
        blur: largest share of a slice that is replaced by it blurred; up to half of that is added for sharpening.
        noise: largest standard deviation of noise, in half of the slices.
    """

    def __init__(
        self,
        size: Sequence[int] = (144, 144),
        off_center: float = 0.25,
        jitter: float = 16.0,
        mirror: float = 0.3,
        rotation: float = 30.0,
        zoom: float = 0.2,
        elastic: float = 2.0,
        alone: float = 0.15,
        gamma: float = 0.3,
        gain: float = 0.2,
        offset: float = 0.05,
        bias: float = 0.25,
        blur: float = 1.0,
        noise: float = 0.08,
    ) -> None:
        self.size = tuple(size)
        self.off_center, self.jitter, self.mirror = off_center, jitter, mirror
        self.rotation, self.zoom, self.elastic, self.alone = rotation, zoom, elastic, alone
        self.gamma, self.gain, self.offset, self.bias = gamma, gain, offset, bias
        self.blur, self.noise = blur, noise

    def __call__(self, image: Tensor, label: Tensor, center: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, *size) and their labels (B, 1, *size), as `LabeledSlices` gives what they are made of."""
        grid = self.draw_grid(image, center, extent)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        label = F.grid_sample(label.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return self.change_intensities(self.exchange_neighbors(image)), label.to(torch.uint8)

    def draw_grid(self, image: Tensor, center: Tensor, extent: Tensor) -> Tensor:
        """Where to sample (B, C, X, Y) for the crops, (B, *size, 2) in `grid_sample`'s coordinates."""
        batch, device = len(image), image.device
        whole = torch.tensor(image.shape[2:], device=device, dtype=torch.float32)
        near = center + torch.randn(batch, 2, device=device) * self.jitter
        anywhere = whole / 2 + (torch.rand(batch, 2, device=device) - 0.5) * extent
        center = torch.where(torch.rand(batch, 1, device=device) < self.off_center, anywhere, near)
        angle = torch.empty(batch, device=device).uniform_(-self.rotation, self.rotation).deg2rad()
        scale = torch.exp(-self.zoom * torch.randn(batch, device=device))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(batch, 2, 2)
        signs = 1 - 2 * (torch.rand(batch, 1, 2, device=device) < self.mirror).float()
        exchanged = torch.rand(batch, 1, 1, device=device) < self.mirror
        matrix = turn * signs * scale.view(batch, 1, 1)
        matrix = torch.where(exchanged, matrix.flip(2), matrix)
        points = torch.stack(
            torch.meshgrid(*(torch.arange(n, device=device) - (n - 1) / 2 for n in self.size), indexing="ij"), dim=-1
        )
        places = torch.einsum("bij,xyj->bxyi", matrix, points) + center.view(batch, 1, 1, 2)
        places = places + self.elastic * smooth_noise(batch, 2, self.size, 32.0, device).movedim(1, -1)
        return (2 * (places + 0.5) / whole - 1).flip(-1)

    def exchange_neighbors(self, image: Tensor) -> Tensor:
        """Stacks run from base to apex or from apex to base, and some slices are alone."""
        batch = len(image)
        turned = torch.rand(batch, 1, 1, 1, device=image.device) < 0.5
        alone = torch.rand(batch, 1, 1, 1, device=image.device) < self.alone
        image = torch.where(turned, image.flip(1), image)
        return torch.where(alone, image[:, 1:2], image)

    def change_intensities(self, image: Tensor) -> Tensor:
        """Contrast, coil profile, sharpness and noise of slices (B, 3, X, Y), each with its neighbors alike."""
        batch, device = len(image), image.device

        def each(draw: Callable[..., Tensor] = torch.randn) -> Tensor:
            return draw(batch, 1, 1, 1, device=device)

        image = image.clamp(min=0) ** torch.exp(self.gamma * each())
        image = image * torch.exp(self.gain * each() + self.bias * smooth_noise(batch, 1, self.size, 72.0, device))
        image = image + self.blur * (1.5 * each(torch.rand) - 0.5) * (blur(image) - image)
        noise = self.noise * (2 * each(torch.rand) - 1).clamp(min=0)
        image = image + self.offset * each() + noise * torch.randn_like(image)
        return image.clamp(0, segmentation.BRIGHTEST)


def smooth_noise(batch: int, channels: int, size: Sequence[int], spacing: float, device: torch.device) -> Tensor:
    """Noise (B, C, *size), standard normal at control points `spacing` pixels apart and cubic between them."""
    points = [max(round(n / spacing), 1) + 1 for n in size]
    noise = torch.randn(batch, channels, *points, device=device)
    return F.interpolate(noise, size=tuple(size), mode="bicubic", align_corners=True)


def blur(image: Tensor) -> Tensor:
    """Images (B, C, X, Y) averaged twice over 3 x 3 pixels, which is nearly a Gaussian of 1.15 pixels, and fast."""
    for _ in range(2):
        image = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return image


class PrepareSlices:
    """`prepare_batch` of MONAI's trainer for batches of `LabeledSlices`: (image, label), augmented.

    Args:
        augment: as `RandomSliceAugmentation`.
    """

    def __init__(self, augment: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.augment = augment

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys = ("image", "label", "center", "extent")
        image, label = self.augment(*(batchdata[key].to(device, non_blocking=non_blocking) for key in keys))
        return image.contiguous(memory_format=torch.channels_last), label


class PrecisionInferer(SimpleInferer):
    """A forward pass that computes in bfloat16 where wanted, and gives fp32.

    Args:
        bf16: whether to.
    """

    def __init__(self, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = super().__call__(inputs, network, *args, **kwargs)
        return prediction.float()


def prepare_stack(
    batchdata: Mapping, device: torch.device, non_blocking: bool = False, **kwargs: object
) -> tuple[Tensor, Tensor, tuple, dict]:
    """`prepare_batch` of MONAI's evaluator for stacks one a time: image and label (1, 1, X, Y, Z), and the spacing."""
    return batchdata["image"][:, None], batchdata["label"][:, None], (batchdata["spacing"][0].tolist(),), {}


class StackInferer(Inferer):
    """Probabilities (1, 4, X, Y, Z) of a stack (1, 1, X, Y, Z) of a spacing in mm, by
    `cardiac.segmentation.probabilities`.

    Args:
        spacing: mm; pixels of the network.
    """

    def __init__(self, spacing: float) -> None:
        super().__init__()
        self.spacing = spacing

    def __call__(self, inputs: Tensor, network: nn.Module, spacing: Sequence[float]) -> Tensor:
        return segmentation.probabilities(network, inputs[0, 0].cpu(), spacing, self.spacing)[None]


def of_structure(value: int) -> Callable[[list[dict]], tuple[list[Tensor], list[Tensor]]]:
    """An `output_transform` that takes one structure's channel of predictions and labels in one-hot form."""
    return lambda output: tuple([item[key][value : value + 1] for item in output] for key in ("pred", "label"))
