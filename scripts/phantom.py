"""A beating heart with a known displacement field: short-axis cines with LV, myocardium and RV, written in ACDC's layout.

Tissue is described once, at end-diastole, in closed form. A frame is that tissue seen through the inverse of a motion, which twists and
contracts about the LV center and contracts about the RV center. Both parts are monotone in the radius and inverted to rounding, so the
field between any two frames is exact and has no fold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

RV, MYO, LV = 1, 2, 3
BLOOD, MUSCLE, FAT, ORGAN, LUNG = 0.85, 0.32, 0.95, 0.45, 0.12
EDGE = 0.6
SCALE = 1200.0


@dataclass(frozen=True)
class Phantom:
    """One subject. Lengths are pixels of the slice, angles radians, intensities in units of bright fat.

    Args:
        seed: of the texture and the noise.
        size: in-plane shape of a slice.
        slices: number of slices, base first.
        frames: number of frames in a cycle, end-diastole first.
        center: LV center along the two array axes.
        rv_angle: direction from the LV center to the RV center.
        epicardium: outer radius of the myocardium at the base, at end-diastole.
        wall: thickness of the myocardium at end-diastole.
        lv_contraction: share by which the middle of the LV shortens in radius at end-systole, in (0, 1).
        rv_contraction: the same about the RV center.
        twist: rotation of the LV at end-systole, largest at its center, of opposite sign at base and apex.
        noise: standard deviation of each channel of the Rician noise.
    """

    seed: int
    size: tuple[int, int]
    slices: int
    frames: int
    center: tuple[float, float]
    rv_angle: float
    epicardium: float
    wall: float
    lv_contraction: float
    rv_contraction: float
    twist: float
    noise: float = 0.03

    @classmethod
    def random(cls, seed: int, size: tuple[int, int] = (64, 64), slices: int = 4, frames: int = 10) -> Phantom:
        """A subject drawn from a seed: position, size, wall, contraction and twist differ."""
        draw = np.random.default_rng(seed).uniform
        unit = min(size) / 64
        epicardium = draw(13.0, 16.5) * unit
        return cls(
            seed=seed,
            size=size,
            slices=slices,
            frames=frames,
            center=(size[0] / 2 + draw(-4, 4) * unit, size[1] / 2 + draw(0, 6) * unit),
            rv_angle=np.pi * 1.5 + draw(-0.4, 0.4),
            epicardium=epicardium,
            wall=epicardium * draw(0.28, 0.38),
            lv_contraction=draw(0.26, 0.42),
            rv_contraction=draw(0.22, 0.4),
            twist=draw(0.1, 0.3),
        )

    @property
    def end_systole(self) -> int:
        """The most contracted frame, counted from 1."""
        return 1 + int(np.argmax([self.activation(frame) for frame in range(1, self.frames + 1)]))

    def activation(self, frame: int) -> float:
        """Contraction of a frame (counted from 1) in [0, 1]: up over 40 % of the cycle, then down."""
        phase = (frame - 1) / self.frames
        phase = phase / 0.8 if phase < 0.4 else 0.5 + (phase - 0.4) / 1.2
        return 0.5 * (1 - np.cos(2 * np.pi * phase))

    def taper(self, index: int) -> float:
        """Size of a slice relative to the base."""
        return 1.0 - 0.35 * index / max(self.slices - 1, 1)

    def geometry(self, index: int) -> tuple[np.ndarray, np.ndarray, float, float]:
        """LV center, RV center, epicardial radius and RV radius of a slice at end-diastole."""
        outer = self.epicardium * self.taper(index)
        center = np.array(self.center)
        toward_rv = np.array([np.cos(self.rv_angle), np.sin(self.rv_angle)])
        return center, center + 0.85 * outer * toward_rv, outer, 0.95 * outer

    def motions(self, frame: int, index: int) -> list[tuple[np.ndarray, float, float, float]]:
        """(center, reach, contraction, twist) of the two parts of the motion, in the order that they act on the tissue."""
        lv, rv, outer, rv_radius = self.geometry(index)
        a = self.activation(frame)
        level = 1.0 - 2.0 * index / max(self.slices - 1, 1)
        return [
            (rv, 1.2 * rv_radius, a * self.rv_contraction, 0.0),
            (lv, 0.93 * outer, a * self.lv_contraction, a * self.twist * level),
        ]

    def forward(self, points: np.ndarray, frame: int, index: int) -> np.ndarray:
        """Where tissue at `points` (..., 2) of end-diastole lies in a frame; pixels."""
        for center, reach, contraction, twist in self.motions(frame, index):
            offset = points - center
            radius = np.linalg.norm(offset, axis=-1)
            scale = 1.0 - contraction * bump(radius, reach)
            points = center + rotate(offset * scale[..., None], twist * bump(radius, reach))
        return points

    def backward(self, points: np.ndarray, frame: int, index: int) -> np.ndarray:
        """The inverse of `forward`: which end-diastolic point is seen at `points` (..., 2) of a frame."""
        for center, reach, contraction, twist in reversed(self.motions(frame, index)):
            offset = points - center
            radius = np.linalg.norm(offset, axis=-1)
            source = invert_radius(radius, reach, contraction)
            scale = 1.0 / (1.0 - contraction * bump(source, reach))
            points = center + rotate(offset * scale[..., None], -twist * bump(source, reach))
        return points

    def grid(self) -> np.ndarray:
        """Pixel positions, shape (X, Y, 2)."""
        return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in self.size), indexing="ij"), axis=-1)

    def field(self, moving: int, fixed: int) -> np.ndarray:
        """The exact in-plane displacement (2, X, Y, Z) that pulls frame `moving` onto frame `fixed`; pixels of the fixed frame.

        Tissue seen at x in the fixed frame lies at x + u(x) in the moving frame. Frames are counted from 1.
        """
        x = self.grid()
        slices = [self.forward(self.backward(x, fixed, z), moving, z) - x for z in range(self.slices)]
        return np.stack(slices, axis=-1).transpose(2, 0, 1, 3)

    def label(self, frame: int) -> np.ndarray:
        """Labels (X, Y, Z) of a frame: 1 RV, 2 myocardium, 3 LV cavity."""
        return np.stack([self.tissue_label(self.backward(self.grid(), frame, z), z) for z in range(self.slices)], axis=-1)

    def image(self, frame: int, noisy: bool = True) -> np.ndarray:
        """Magnitude image (X, Y, Z) of a frame, with Rician noise unless `noisy` is False."""
        clean = np.stack([self.intensity(self.backward(self.grid(), frame, z), z) for z in range(self.slices)], axis=-1)
        if not noisy:
            return clean
        real, imaginary = np.random.default_rng([self.seed, frame]).normal(0, self.noise, (2, *clean.shape))
        return np.hypot(clean + real, imaginary)

    def distances(self, points: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distances (negative inside) of end-diastolic points to endocardium, epicardium and the RV's outline."""
        lv, rv, outer, rv_radius = self.geometry(index)
        radius = np.linalg.norm(points - lv, axis=-1)
        rv_distance = np.linalg.norm(points - rv, axis=-1) - rv_radius
        return radius - (outer - self.wall), radius - outer, np.maximum(rv_distance, outer + 0.5 - radius)

    def tissue_label(self, points: np.ndarray, index: int) -> np.ndarray:
        """Labels of end-diastolic points (..., 2)."""
        inner, outer, right = self.distances(points, index)
        return np.select([inner < 0, outer < 0, right < 0], [LV, MYO, RV], 0).astype(np.uint8)

    def intensity(self, points: np.ndarray, index: int) -> np.ndarray:
        """Noise-free intensity of end-diastolic points (..., 2), with soft borders and texture in every tissue."""
        random = np.random.default_rng([self.seed, 1000 + index])
        unit = min(self.size) / 64
        coarse, fine = (waves(points, random, wavelength * unit) for wavelength in (22, 6))
        inner, outer, right = (inside(distance) for distance in self.distances(points, index))
        value = LUNG + (ORGAN - LUNG) * inside(-4 * coarse)
        edge = np.array(self.size) / 2
        body = np.linalg.norm((points - edge) / edge, axis=-1)
        value = value + (FAT - value) * inside((0.97 - body) * 20) * inside((body - 1.12) * 20)
        for share, level in ((right, BLOOD), (outer, MUSCLE), (inner, BLOOD)):
            value = value + (level - value) * share
        return value * (1 + 0.18 * fine) + 0.03


def bump(radius: np.ndarray, reach: float) -> np.ndarray:
    """exp(-(radius / reach)^3): near 1 inside, gone at twice the reach."""
    return np.exp(-((radius / reach) ** 3))


def invert_radius(radius: np.ndarray, reach: float, contraction: float) -> np.ndarray:
    """R with R (1 - contraction bump(R)) = radius, to rounding: a table, then Newton's steps. The left side grows with R."""
    table = np.linspace(0.0, radius.max() / (1.0 - contraction) + 1.0, 2000)
    source = np.interp(radius, table * (1.0 - contraction * bump(table, reach)), table)
    for _ in range(3):
        share = contraction * bump(source, reach)
        source = source - (source * (1.0 - share) - radius) / (1.0 - share + 3.0 * share * (source / reach) ** 3)
    return source


def rotate(offset: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Vectors (..., 2) turned from the first axis towards the second."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([cosine * offset[..., 0] - sine * offset[..., 1], sine * offset[..., 0] + cosine * offset[..., 1]], axis=-1)


def inside(distance: np.ndarray) -> np.ndarray:
    """1 where a signed distance is negative, 0 where positive, over about a pixel."""
    return 1.0 / (1.0 + np.exp(np.clip(distance / EDGE, -40, 40)))


def waves(points: np.ndarray, random: np.random.Generator, wavelength: float, number: int = 24) -> np.ndarray:
    """A smooth random texture of unit variance: a sum of cosines of about one wavelength, in pixels."""
    angle, phase = random.uniform(0, 2 * np.pi, (2, number))
    frequency = 2 * np.pi / (wavelength * random.uniform(0.7, 1.5, number))
    along = points[..., :1] * np.cos(angle) + points[..., 1:] * np.sin(angle)
    return np.cos(along * frequency + phase).sum(axis=-1) * np.sqrt(2 / number)


def oblique_affine(spacing: Sequence[float]) -> np.ndarray:
    """A short-axis plane as a scanner has it: rotated about two axes, voxel size in mm, RAS."""
    a, b = 0.6, -0.4
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag(spacing)
    affine[:3, 3] = (-40.0, 25.0, 10.0)
    return affine


def write_subject(phantom: Phantom, folder: Path, spacing: Sequence[float], frame_time: float) -> None:
    """One subject in ACDC's layout: Info.cfg, the cine, and ED and ES with labels; int16 and mm, the cine's frame time in s."""
    folder.mkdir(parents=True)
    name, affine = folder.name, oblique_affine(spacing)
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {phantom.end_systole}\nNbFrame: {phantom.frames}\n")
    frames = [np.round(phantom.image(t) * SCALE).astype(np.int16) for t in range(1, phantom.frames + 1)]
    cine = nib.Nifti1Image(np.stack(frames, axis=-1), affine)
    cine.header.set_zooms((*spacing, frame_time))
    cine.header.set_xyzt_units("mm", "sec")
    nib.save(cine, folder / f"{name}_4d.nii.gz")
    for frame in (1, phantom.end_systole):
        for array, suffix in ((frames[frame - 1], ""), (phantom.label(frame), "_gt")):
            image = nib.Nifti1Image(array, affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / f"{name}_frame{frame:02d}{suffix}.nii.gz")


def write_phantom_dataset(
    root: str | Path,
    subjects: int = 40,
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    slices: int = 4,
    frames: int = 10,
    spacing: Sequence[float] = (1.8, 1.8, 8.0),
    frame_time: float = 0.05,
    progress: bool = True,
) -> Path:
    """Write a data set in ACDC's layout with a `splits.json`; one that is there with the same parameters is kept.

    Args:
        root: folder to write; whatever a data set of other parameters left there is replaced.
        subjects: how many; 70 % train, 10 % val, 20 % test, at least one each.
        seed: of the first subject.
        size: in-plane shape in pixels.
        slices: slices a subject.
        frames: frames a cycle.
        spacing: voxel size in mm.
        frame_time: seconds between frames.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for fewer than three subjects, or a folder that holds anything but such a data set.
    """
    root = Path(root)
    if subjects < 3:
        raise ValueError(f"a data set needs three subjects or more, got {subjects}.")
    parameters = {"subjects": subjects, "seed": seed, "size": list(size), "slices": slices, "frames": frames}
    parameters |= {"spacing": list(spacing), "frame_time": frame_time, "version": 1}
    record = root / "phantom.json"
    if record.exists() and json.loads(record.read_text())["parameters"] == parameters:
        return root
    if root.exists() and any(root.iterdir()) and not record.exists():
        raise ValueError(f"{root}: holds something else than a phantom data set; give another folder.")
    partial = root.with_name(root.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    phantoms = [Phantom.random(seed + n, tuple(size), slices, frames) for n in range(subjects)]
    names = [f"phantom{n + 1:03d}" for n in range(subjects)]
    for name, phantom in zip(tqdm(names, desc="phantoms", unit="subject", disable=not progress), phantoms):
        write_subject(phantom, partial / name, spacing, frame_time)
    val, test = max(subjects // 10, 1), max(subjects // 5, 1)
    splits = {"train": names[: -val - test], "val": names[-val - test : -test], "test": names[-test:]}
    (partial / "splits.json").write_text(json.dumps(splits, indent=1) + "\n")
    content = {"parameters": parameters, "phantoms": [asdict(phantom) for phantom in phantoms]}
    (partial / "phantom.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(root, ignore_errors=True)
    os.replace(partial, root)
    return root


def main() -> None:
    """Command line of `write_phantom_dataset`."""
    parser = argparse.ArgumentParser(description=write_phantom_dataset.__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder to write")
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels along each in-plane axis")
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--frames", type=int, default=10)
    a = parser.parse_args()
    print(write_phantom_dataset(a.root, a.subjects, a.seed, (a.size, a.size), a.slices, a.frames))


if __name__ == "__main__":
    main()
