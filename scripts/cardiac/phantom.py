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

"""A beating heart with a known field: the embedded data set of the demo and of the tests.

Each frame is one material image (end diastole) pulled through the inverse of an analytic motion, so that the field
between any two frames is known and free of folds. About the center of the left ventricle, with s the squared radius in
mm² and phi the angle from the direction of the right ventricle, the motion takes s to

    sigma(s, phi) = s - a A g(s / s_i) exp(-(s / s_w)²) - a B exp(kappa (cos phi - 1)) (s / s_f)^n exp(n (1 - s / s_f))

and then turns the point by a tau exp(-sigma / s_w), where a in [0, 1] is the activation of the frame. The first term
empties the cavity (s < s_i; g is a softened min(s, 1)) and fades through the wall, which so gains about what the heart
loses in length; the second moves the free wall of the right ventricle (s = s_f) inward. A turn keeps areas, hence
det(grad motion) = d sigma / d s, which is positive. Slices move in their planes alone.

With `shortening`, the heart then moves along its axis as well: a point at the height l, 0 at the base and 1 at the tip of
the apex, goes to

    lambda = l + a S w (1 - l),    w = exp(-(r / r_a)^8)

where r is its distance from the axis, in-plane. So the base descends by the share S of the long axis, the apex stays, the
twist of each level rides along, and det(grad motion) = (1 - a S w) d sigma / d s. Above the base there are blood and fat.

    python -m scripts.cardiac.phantom --root DIR
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from scripts.errors import InputError
from tqdm import tqdm

# Mean signal and relative strength of the texture: those of a bright-blood cine.
TISSUES = {
    "fat": (560.0, 0.14),
    "muscle": (170.0, 0.25),
    "lung": (50.0, 0.90),
    "liver": (230.0, 0.16),
    "stomach": (330.0, 0.25),
    "vessel": (430.0, 0.08),
    "epicardium": (390.0, 0.25),
    "myocardium": (150.0, 0.20),
    "rv_blood": (430.0, 0.12),
    "lv_blood": (460.0, 0.10),
}
FIELD_OF_VIEW = 128.0  # mm, of the default spacing
ES_PHASE = 0.4  # of the cycle
KNOT = 4.5  # mm between the knots of the texture
KNOTS = 48  # knots along each axis of its period
SOFTNESS = 0.2  # of the ramp g
SHARPNESS = 8  # n, of the free wall's motion
BREADTH = 1.6  # kappa, of the same along the angle
RV_WALL = 3.0  # mm
BASE, LAST = 0.05, 0.82  # heights of the first and the last of several slices
TIP = 0.98  # above which all levels look alike
FORMAT = 1  # of the data set; a new number has old ones rewritten


@dataclass(frozen=True)
class Phantom:
    """One subject: sizes in mm at end diastole in the most basal slice, angles in degrees from array axis 0 toward axis
    1.

    Frames are counted from 1, as in ACDC's `Info.cfg`; frame 1 is end diastole. Stacks are (X, Y, Z), slices from base
    to apex. `Phantom.random` draws one.
    """

    seed: tuple[int, ...]
    size: tuple[int, int]
    slices: int
    frames: int
    spacing: tuple[float, float, float]
    """Voxel size in mm. The slices share out the long axis, whatever their distance."""
    center: tuple[float, float]
    """Of the left ventricle in the middle slice, from the center of the image."""
    tilt: tuple[float, float]
    """How far that center moves in-plane from base to apex."""
    cavity_radius: float
    wall: float
    """Thickness of the left ventricular wall."""
    rv_depth: float
    """From the septum to the free wall."""
    rv_radius: float
    """Of the free wall's curvature, relative to the left ventricle's outer radius."""
    rv_angle: float
    """Direction of the right ventricle."""
    shape: tuple[float, float, float, float]
    """Ellipticity of the cavity and of the outer border (relative), and their angles."""
    contraction: float
    """Share of the cavity's area that is gone at end systole: the ejection fraction."""
    rv_contraction: float
    """Share of the squared radius of the free wall that is gone at end systole."""
    twist: tuple[float, float]
    """Rotation about the center at end systole, basal and apical."""
    cycle: float
    """Seconds from beat to beat."""
    intensities: tuple[float, ...]
    """Signal of each of `TISSUES`."""
    noise: float
    """Standard deviation of the noise of each of the two channels whose magnitude is the image."""
    rotation: tuple[float, float, float] | None
    """Rotation vector in degrees away from a typical short-axis view; None lays the array axes along RAS."""
    shortening: float = 0.0
    """Share of the long axis by which the base descends at end systole; 0 moves slices in their planes alone."""

    @classmethod
    def random(
        cls,
        seed: int | Sequence[int],
        size: Sequence[int] = (64, 64),
        slices: int = 4,
        frames: int = 10,
        spacing: Sequence[float] | None = None,
        oblique: bool = True,
        shortening: float = 0.0,
    ) -> Phantom:
        """A subject drawn by seed, the same for every size and spacing.

        Args:
            seed: one integer >= 0 or several.
            size: in-plane size in voxels.
            slices: from base to apex.
            frames: of the cycle, at least 2.
            spacing: voxel size in mm; None shows 128 mm in-plane along the shorter axis, in slices 8 mm apart.
            oblique: whether the affine is that of a short-axis view; otherwise the array axes lie along RAS.
            shortening: share of the long axis by which the base descends, below 1; about 0.15 in a healthy heart.

        Raises:
            ValueError: for fewer than 2 frames, no slice, a size or spacing that is not positive, or such a shortening.
        """
        fits = frames >= 2 and slices >= 1 and len(size) == 2 and min(size) >= 1 and 0 <= shortening < 1
        if not fits or (spacing is not None and (len(spacing) != 3 or min(spacing) <= 0)):
            raise ValueError(
                f"no phantom of size {tuple(size)}, {slices} slices, {frames} frames and spacing {spacing} mm."
            )
        spacing = (FIELD_OF_VIEW / min(size),) * 2 + (8.0,) if spacing is None else spacing
        seed = tuple(np.atleast_1d(seed).tolist())
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))

        def draw(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        return cls(
            seed=seed,
            size=(int(size[0]), int(size[1])),
            slices=int(slices),
            frames=int(frames),
            spacing=tuple(float(s) for s in spacing),
            center=(draw(4, 14), draw(-9, 5)),
            tilt=(draw(-4, 4), draw(-4, 4)),
            cavity_radius=draw(19.5, 25),
            wall=draw(9, 12),
            rv_depth=draw(18, 25),
            rv_radius=draw(0.88, 1.05),
            rv_angle=draw(160, 205),
            shape=(draw(0, 0.06), draw(0, 0.05), draw(0, 180), draw(0, 180)),
            contraction=draw(0.42, 0.60),
            rv_contraction=draw(0.12, 0.21),
            twist=(draw(2, 6), draw(-14, -7)),
            cycle=draw(0.75, 1.05),
            intensities=tuple(mean * draw(0.88, 1.12) for mean, _ in TISSUES.values()),
            noise=draw(10, 18),
            rotation=(draw(-12, 12), draw(-12, 12), draw(-12, 12)) if oblique else None,
            shortening=float(shortening),
        )

    @property
    def end_systole(self) -> int:
        """Number of the end-systolic frame, counted from 1."""
        return 1 + max(round(ES_PHASE * self.frames), 1)

    def activation(self, frame: int) -> float:
        """How far the heart has contracted: 0 at end diastole, 1 at end systole.

        Raises:
            ValueError: for a frame outside 1 .. frames.
        """
        if not 1 <= frame <= self.frames:
            raise ValueError(f"frame is one of 1 .. {self.frames}, got {frame}.")
        if frame <= self.end_systole:
            return (1 - math.cos(math.pi * (frame - 1) / (self.end_systole - 1))) / 2
        left = (self.frames + 1 - frame) / (self.frames + 1 - self.end_systole)
        # Filling is fastest early on.
        return (1 + math.cos(math.pi * (1 - left) ** 0.8)) / 2

    @cached_property
    def grid(self) -> NDArray:
        """Voxel coordinates of the axes that move, (2, X, Y, Z), or with shortening (3, X, Y, Z)."""
        axes = 3 if self.shortening else 2
        shape = (*self.size, self.slices)
        return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")[:axes])

    def field(self, moving: int, fixed: int) -> NDArray:
        """The exact displacement that pulls one frame onto another: moved(x) = moving(x + u(x)).

        Args:
            moving: number of the moving frame.
            fixed: number of the fixed frame.

        Returns:
            (2, X, Y, Z), or with shortening (3, X, Y, Z), in voxels of the fixed grid, channel i along array axis i. Closed
            form where `fixed` is end diastole, otherwise exact to 1e-6 mm.
        """
        return self.to_frame(self.to_material(self.grid, fixed), moving) - self.grid

    def image(self, frame: int, noisy: bool = True) -> NDArray:
        """Signal of a frame, shape (X, Y, Z), in scanner units; without noise it is the material's, carried
        unchanged."""
        material = self.to_material(self.grid, frame)
        signal = self.around(material).signal(material[:2])
        if not noisy:
            return signal
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2, frame)))
        return np.hypot(
            signal + self.noise * rng.standard_normal(signal.shape), self.noise * rng.standard_normal(signal.shape)
        )

    def label(self, frame: int) -> NDArray[np.uint8]:
        """Structures of a frame at the voxel centers, shape (X, Y, Z): 1 RV, 2 myocardium, 3 LV cavity, 0 elsewhere."""
        material = self.to_material(self.grid, frame)
        there = self.around(material)
        distance = there.distances(material[:2])
        label = np.zeros((*self.size, self.slices), np.uint8)
        for value, name in ((1, "rv"), (2, "lv_wall"), (3, "lv")):
            label[(distance[name] < 0) & (there.level >= 0)] = value
        return label

    def around(self, points: NDArray) -> Phantom:
        """The subject as it is at the height of material points (3, ...), slice by slice for points (2, ..., Z)."""
        return self.at(self.height(points[2])) if len(points) == 3 else self

    def at(self, level: NDArray) -> Phantom:
        """The subject with other heights on the long axis than those of the slices: where a shape is called (Z,), that
        of these heights then."""
        other = replace(self)
        other.__dict__["level"] = np.minimum(level, TIP)
        return other

    @property
    def slices_of_axis(self) -> float:
        """Length of the long axis, from the base to the tip of the apex, in slices."""
        return (self.slices - 1) / (LAST - BASE) if self.slices > 1 else 12.0

    def height(self, number: NDArray) -> NDArray:
        """Height on the long axis of slices, counted from 0, which may lie between slices."""
        return (BASE if self.slices > 1 else 0.3) + number / self.slices_of_axis

    def descent(self, points: NDArray, activation: float) -> NDArray:
        """Share of its distance from the apex that a point (3, ...) in voxels descends."""
        middle = [(n - 1) / 2 + c / s for n, c, s in zip(self.size, self.center, self.spacing)]
        mm = [(x - m) * s for x, m, s in zip(points, middle, self.spacing)]
        reach = 1.1 * (self.cavity_radius + self.wall + self.rv_depth)
        return activation * self.shortening * np.exp(-(((mm[0] ** 2 + mm[1] ** 2) / reach**2) ** 4))

    def to_frame(self, points: NDArray, frame: int) -> NDArray:
        """Where material points lie in a frame; both (2, ..., Z) in voxels, the last axis along the slices, or (3, ...)."""
        activation = self.activation(frame)
        if activation == 0:
            return points.copy()
        if len(points) == 3:
            moved = np.stack([*self.around(points).to_frame(points[:2], frame), points[2]])
            share, level = self.descent(moved, activation), self.height(points[2])
            moved[2] += share * (1 - level) * self.slices_of_axis
            return moved
        p, s, cosine = self.polar(points)
        sigma = s - activation * self.inward(s, cosine)[0]
        return self.voxels(_rotate(p * np.sqrt(sigma / s), activation * self.turn(sigma)))

    def to_material(self, points: NDArray, frame: int) -> NDArray:
        """Which material lies at points of a frame, the inverse of `to_frame` to 1e-6 mm; both (2, ..., Z) or (3, ...) in
        voxels."""
        activation = self.activation(frame)
        if activation == 0:
            return points.copy()
        if len(points) == 3:
            share, level = self.descent(points, activation), self.height(points[2])
            number = points[2] - share * (1 - level) / (1 - share) * self.slices_of_axis
            material = np.stack([points[0], points[1], number])
            return np.stack([*self.around(material).to_material(points[:2], frame), number])
        p, sigma, _ = self.polar(points)
        p = _rotate(p, -activation * self.turn(sigma))
        cosine = self.rv_cosine(p, sigma)
        # Newton's method inside a shrinking bracket: sigma grows with s, and s >= sigma.
        s, low, high = sigma + activation * self.inward(sigma, cosine)[0], sigma, sigma + 1.2 * self.largest_shift
        for _ in range(60):
            shift, slope = self.inward(s, cosine)
            error = s - activation * shift - sigma
            if np.abs(error / np.sqrt(s)).max() < 1e-9:
                break
            low, high = np.where(error < 0, s, low), np.where(error > 0, s, high)
            s = s - error / (1 - activation * slope)
            s = np.where((s < low) | (s > high), (low + high) / 2, s)
        return self.voxels(p * np.sqrt(s / sigma))

    # --- geometry, in mm about the center of the left ventricle; what depends on the slice has the shape (Z,)

    @cached_property
    def level(self) -> NDArray:
        """Height of each slice on the long axis, 0 at the base and 1 at the tip of the apex."""
        return np.linspace(BASE, LAST, self.slices) if self.slices > 1 else np.array([0.3])

    @cached_property
    def inner(self) -> NDArray:
        """Radius of the cavity."""
        return self.cavity_radius * np.sqrt(1 - self.level**2)

    @cached_property
    def outer(self) -> NDArray:
        """Outer radius of the left ventricle."""
        return self.inner + self.wall * (1 - 0.2 * self.level)

    @cached_property
    def free_wall(self) -> NDArray:
        """Distance of the right ventricle's free wall."""
        return self.outer + self.rv_depth * np.sqrt(1 - self.level**2)

    @cached_property
    def window(self) -> NDArray:
        """Squared radius s_w over which motion and twist fade."""
        return (1.1 * self.outer) ** 2

    @cached_property
    def amplitudes(self) -> tuple[NDArray, NDArray]:
        """A and B: what the squared radius loses in the cavity and at the free wall."""
        s = self.inner**2
        return (
            self.contraction * s / (_ramp(1.0)[0] * np.exp(-((s / self.window) ** 2))),
            self.rv_contraction * self.free_wall**2,
        )

    @cached_property
    def largest_shift(self) -> NDArray:
        """A bound of what the squared radius loses."""
        return sum(self.amplitudes)

    @cached_property
    def rv_direction(self) -> NDArray:
        """Unit vector, shape (2,)."""
        return _unit_vector(self.rv_angle)

    def centers(self) -> NDArray:
        """Center of the left ventricle, (2, Z) in voxels."""
        middle = [(n - 1) / 2 + c / s for n, c, s in zip(self.size, self.center, self.spacing)]
        drift = np.multiply.outer(np.divide(self.tilt, self.spacing[:2]), self.level - 0.45)
        return np.array(middle).reshape(2, *[1] * self.level.ndim) + drift

    def centers_for(self, points: NDArray) -> NDArray:
        """The same, to be added to points (2, ..., Z)."""
        return self.centers().reshape(2, *[1] * (points.ndim - 1 - self.level.ndim), *self.level.shape)

    def polar(self, points: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Points (2, ..., Z) from voxels to mm about the center, with their squared radius and the cosine of their
        angle."""
        shape = (2, *[1] * (points.ndim - 2))
        p = (points - self.centers_for(points)) * np.array(self.spacing[:2]).reshape(*shape, 1)
        # A micrometer keeps the center itself out of divisions.
        s = np.maximum((p**2).sum(axis=0), 1e-6)
        return p, s, self.rv_cosine(p, s)

    def rv_cosine(self, p: NDArray, s: NDArray) -> NDArray:
        """Cosine of the angle from the direction of the right ventricle."""
        return np.tensordot(self.rv_direction, p, 1) / np.sqrt(s)

    def voxels(self, p: NDArray) -> NDArray:
        """From mm about the center to voxels, (2, ..., Z)."""
        shape = (2, *[1] * (p.ndim - 2))
        return p / np.array(self.spacing[:2]).reshape(*shape, 1) + self.centers_for(p)

    def inward(self, s: NDArray, cosine: NDArray) -> tuple[NDArray, NDArray]:
        """What the squared radius loses at full activation, and its derivative by s; mm² and 1."""
        (a, b), s_i, s_f = self.amplitudes, self.inner**2, self.free_wall**2
        g, dg = _ramp(s / s_i)
        w = s / self.window
        h = np.exp(-(w**2))
        q = s / s_f
        k = b * np.exp(BREADTH * (cosine - 1) + SHARPNESS * (np.log(q) + 1 - q))
        shift = a * g * h + k
        slope = a * h * (dg / s_i - 2 * g * w / self.window) + k * SHARPNESS * (1 / s - 1 / s_f)
        return shift, slope

    def turn(self, sigma: NDArray) -> NDArray:
        """Twist in radians at full activation, at a squared radius after contraction."""
        base, apex = np.deg2rad(self.twist)
        return (base + (apex - base) * self.level) * np.exp(-sigma / self.window)

    # --- material

    def distances(self, points: NDArray) -> dict[str, NDArray]:
        """Distance in mm of material points (2, ..., Z), in voxels, from the borders of the heart, negative inside."""
        p, s, _ = self.polar(points)
        r = np.sqrt(s)
        oval = {
            name: 2 * np.tensordot(_unit_vector(angle), p, 1) ** 2 / s - 1
            for name, angle in zip(("in", "out"), self.shape[2:])
        }
        lv = r - self.inner * (1 + self.shape[0] * oval["in"])
        lv_wall = np.minimum(r - self.outer * (1 + self.shape[1] * oval["out"]), lv - 4.0)
        radius = self.rv_radius * self.outer
        rv = _disk(p, self.rv_direction, self.free_wall - radius, radius)
        papillary = np.full_like(r, np.inf)
        for angle in (115, -110):
            thick = self.inner * (0.24 - 0.4 * np.abs(self.level - 0.4))
            papillary = np.minimum(papillary, _disk(p, _unit_vector(self.rv_angle + angle), 0.66 * self.inner, thick))
        # A smooth union fills the grooves where the ventricles meet.
        heart = -3.0 * np.logaddexp(-lv_wall / 3.0, -(rv - RV_WALL) / 3.0)
        return {"lv": lv, "lv_wall": lv_wall, "rv": rv, "papillary": papillary, "heart": heart}

    def signal(self, points: NDArray) -> NDArray:
        """Signal of material points (2, X, Y, Z), in voxels: tissues laid one over another, with borders about a voxel
        soft."""
        p = self.polar(points)[0]
        distance = self.distances(points)
        edge = 2.0 * max(self.spacing[:2])
        chest = _disk(p, -self.rv_direction, 46.0, 116.0)
        texture = self.texture(points)
        out = np.zeros(p.shape[1:])
        layers = (
            ("fat", chest),
            ("muscle", chest + 9.0),
            ("lung", chest + 15.0),
            ("liver", _disk(p, _unit_vector(self.rv_angle - 75), 96.0, 54.0)),
            ("stomach", _disk(p, _unit_vector(self.rv_angle - 130), 76.0, 26.0)),
            ("muscle", _disk(p, _unit_vector(self.rv_angle - 105), 49.0, 13.0)),
            ("vessel", _disk(p, _unit_vector(self.rv_angle - 105), 49.0, 10.0)),
            ("epicardium", distance["heart"] - 4.0),
            ("myocardium", distance["heart"]),
            ("rv_blood", distance["rv"]),
            ("myocardium", distance["lv_wall"]),
            ("lv_blood", distance["lv"]),
            ("myocardium", distance["papillary"]),
        )
        names = list(TISSUES)
        for name, border in layers:
            tissue = self.intensities[names.index(name)] * np.maximum(1 + TISSUES[name][1] * texture, 0.05)
            cover = np.clip(0.5 - border / edge, 0, 1)
            if name == "myocardium":
                cover = cover * (self.level >= 0)
            out += cover**2 * (3 - 2 * cover) * (tissue - out)
        return out

    @cached_property
    def knots(self) -> NDArray:
        """Coefficients of the texture's cubic B-splines, a periodic map a slice, shape (Z, knots, knots)."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1,)))
        white = rng.standard_normal((self.slices + 1, KNOTS, KNOTS))
        # Neighboring slices share half of their texture; 0.479 is the standard deviation of such a spline.
        return (white[1:] + white[:-1]) / math.sqrt(2) / 0.479

    def texture(self, points: NDArray) -> NDArray:
        """A smooth random function of the material points (2, X, Y, Z), in voxels; zero mean, unit variance, linear
        between slices."""
        mm = points * np.array(self.spacing[:2]).reshape(2, 1, 1, 1) / KNOT
        if self.level.ndim > 1:
            number = np.clip((self.level - self.height(0)) * self.slices_of_axis, 0, self.slices - 1)
            out = np.zeros(points.shape[1:])
            for z, c in enumerate(self.knots):
                near = np.abs(number - z) < 1
                share = 1 - np.abs(number[near] - z)
                out[near] += share * map_coordinates(c, mm[:, near], order=3, mode="grid-wrap", prefilter=False)
            return out
        maps = [
            map_coordinates(c, mm[..., z], order=3, mode="grid-wrap", prefilter=False) for z, c in enumerate(self.knots)
        ]
        return np.stack(maps, axis=-1)

    # --- files

    @property
    def affine(self) -> NDArray:
        """From voxels to mm in RAS, shape (4, 4); the center of the stack lies where a heart lies."""
        axes = np.eye(3)
        if self.rotation is not None:
            # NDArray axes to the lateral wall, down, and to the apex, of a typical short-axis view.
            down, apex = np.array([0.1, -0.34, -0.93]), np.array([-0.67, 0.66, -0.33])
            apex = apex - down * (apex @ down) / (down @ down)
            axes = np.stack([v / np.linalg.norm(v) for v in (-np.cross(down, apex), down, apex)], axis=1)
            axes = Rotation.from_rotvec(self.rotation, degrees=True).as_matrix() @ axes
        affine = np.eye(4)
        affine[:3, :3] = axes * self.spacing
        affine[:3, 3] = np.array([-30.0, 20.0, 10.0]) - affine[:3, :3] @ ((np.array([*self.size, self.slices]) - 1) / 2)
        return affine


def _ramp(q: NDArray | float) -> tuple[NDArray, NDArray]:
    """A softened min(q, 1) that is 0 at 0, and its derivative, which lies in (0, 1)."""
    root = np.sqrt((q - 1) ** 2 + SOFTNESS**2)
    return (q - root + math.hypot(1, SOFTNESS)) / 2, (1 - (q - 1) / root) / 2


def _unit_vector(degrees: float) -> NDArray:
    """Unit vector at an angle from array axis 0 toward axis 1, shape (2,)."""
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def _rotate(p: NDArray, angle: NDArray) -> NDArray:
    """Points (2, ...) turned about the origin by angles in radians, from axis 0 toward axis 1."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * p[0] - s * p[1], s * p[0] + c * p[1]])


def _disk(p: NDArray, direction: NDArray, distance: NDArray | float, radius: NDArray | float) -> NDArray:
    """Distance of points (2, ..., Z) from a circle whose center lies that far in that direction, negative inside."""
    return np.hypot(p[0] - direction[0] * distance, p[1] - direction[1] * distance) - radius


def write_phantom_dataset(
    root: str | Path,
    subjects: int = 40,
    seed: int = 0,
    size: Sequence[int] = (64, 64),
    slices: int = 4,
    frames: int = 10,
    spacing: Sequence[float] | None = None,
    oblique: bool = True,
    progress: bool = True,
    shortening: float = 0.0,
) -> Path:
    """Write phantoms in ACDC's layout, with a `splits.json` and the parameters in `phantom.json`.

    The folder appears at once when all is written. One that is complete and has the same parameters is left alone.

    Args:
        root: the data set's folder; what lies in it must be phantoms or nothing.
        subjects: number of subjects, at least 3; about 70 % train, 10 % val, 20 % test.
        seed: of the whole data set.
        size, slices, frames, spacing, oblique, shortening: see `Phantom.random`.
        progress: whether to show a progress bar.

    Returns:
        `root`, as a path.

    Raises:
        InputError: where the folder holds other files.
        ValueError: for fewer than three subjects.
    """
    if subjects < 3:
        raise ValueError(f"a data set needs three subjects or more, got {subjects}.")
    root = Path(root).resolve()
    drawn = [
        Phantom.random((seed, number), size, slices, frames, spacing, oblique, shortening)
        for number in range(1, subjects + 1)
    ]
    names = [f"phantom{number:03d}" for number in range(1, subjects + 1)]
    parameters = {
        "format": FORMAT,
        "subjects": subjects,
        "seed": seed,
        "size": list(drawn[0].size),
        "slices": slices,
        "frames": frames,
        "spacing": list(drawn[0].spacing),
        "oblique": oblique,
    } | ({"shortening": shortening} if shortening else {})
    files = [name for subject, phantom in zip(names, drawn) for name in _subject_files(subject, phantom)]
    if _is_complete(root, parameters, files):
        return root
    _refuse_other_files(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as temporary:
        new = Path(temporary) / "new"
        for subject, phantom in tqdm(
            list(zip(names, drawn)), desc="writing phantoms", disable=not progress, unit="subject"
        ):
            write_subject(new, subject, phantom)
        (new / "splits.json").write_text(json.dumps(_split_in_order(names), indent=1) + "\n")
        (new / "phantom.json").write_text(json.dumps(parameters, indent=1) + "\n")
        # Another process may have been faster.
        if not _is_complete(root, parameters, files):
            if root.exists():
                root.rename(Path(temporary) / "old")
            new.rename(root)
    return root


def _subject_files(subject: str, phantom: Phantom) -> list[str]:
    """Files of a subject, relative to the data set."""
    stems = [f"{subject}/{subject}_frame{frame:02d}" for frame in (1, phantom.end_systole)]
    return [f"{subject}/Info.cfg", f"{subject}/{subject}_4d.nii.gz"] + [
        f"{stem}{end}.nii.gz" for stem in stems for end in ("", "_gt")
    ]


def _is_complete(root: Path, parameters: dict, files: Sequence[str]) -> bool:
    """Whether a folder holds the data set of these parameters, with all its files."""
    try:
        same = json.loads((root / "phantom.json").read_text()) == parameters
    except (OSError, ValueError):
        return False
    return same and all((root / name).is_file() for name in (*files, "splits.json"))


def _refuse_other_files(root: Path) -> None:
    """Stop where writing would replace what is not a phantom's.

    Raises:
        InputError: naming one such file.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; give --root another folder.")
    known = ("phantom.json", "splits.json")
    others = sorted(
        p for p in root.glob("*") if p.name not in known and not (p.name[:7] == "phantom" and p.name[7:].isdigit())
    )
    if others:
        raise InputError(
            f"{others[0]}: is not a phantom's, and writing would replace the whole folder; give --root another one."
        )


def write_subject(root: Path, subject: str, phantom: Phantom) -> None:
    """Write the cine, the frames at end diastole and end systole with their labels, and `Info.cfg`."""
    folder = root / subject
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {phantom.end_systole}\nNbFrame: {phantom.frames}\n")
    cine = np.stack([phantom.image(frame).round() for frame in range(1, phantom.frames + 1)], axis=-1).astype(np.int16)
    write_phantom(folder / f"{subject}_4d.nii.gz", cine, phantom)
    for frame in (1, phantom.end_systole):
        stem = f"{subject}_frame{frame:02d}"
        write_phantom(folder / f"{stem}.nii.gz", cine[..., frame - 1], phantom)
        write_phantom(folder / f"{stem}_gt.nii.gz", phantom.label(frame), phantom)


def write_phantom(path: Path, array: NDArray, phantom: Phantom) -> None:
    """Write a stack (X, Y, Z) or a cine (X, Y, Z, T) in the type of the array, in mm and seconds."""
    image = nib.Nifti1Image(array, phantom.affine)
    image.set_sform(phantom.affine, code="scanner")
    image.set_qform(phantom.affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*phantom.spacing, phantom.cycle / phantom.frames)[: array.ndim])
    nib.save(image, path)


def _split_in_order(names: Sequence[str]) -> dict[str, list[str]]:
    """Train, val and test, about 70/10/20 % and at least one each; subjects are drawn alike, so their order serves."""
    val, test = max(len(names) // 10, 1), max(len(names) // 5, 1)
    return {"train": list(names[: -val - test]), "val": list(names[-val - test : -test]), "test": list(names[-test:])}


def main(argv: Sequence[str] | None = None) -> None:
    """Write a phantom data set from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cardiac.phantom", description="Write beating-heart phantoms in ACDC's layout."
    )
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="in-plane size in voxels, one number or two")
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--frames", type=int, default=10, help="of the cardiac cycle")
    parser.add_argument(
        "--spacing", type=float, nargs=3, help="voxel size in mm; default: 128 mm / size in-plane, 8 mm between slices"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--straight", action="store_true", help="an affine along RAS instead of a short-axis view")
    parser.add_argument(
        "--shortening", type=float, default=0.0, help="share of the long axis by which the base descends; default: none"
    )
    a = parser.parse_args(argv)
    size = a.size * 2 if len(a.size) == 1 else a.size
    try:
        root = write_phantom_dataset(
            a.root, a.subjects, a.seed, size, a.slices, a.frames, a.spacing, not a.straight, shortening=a.shortening
        )
    except ValueError as error:
        parser.error(str(error))
    print(f"{root}: {a.subjects} subjects")


if __name__ == "__main__":
    main()
