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

"""What segments: the bundle's own network, or another MONAI bundle in the model zoo's layout.

Another bundle's config runs code: expressions and any class that it names. Give only a bundle that you trust.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Invertd
from numpy.typing import NDArray
from scripts.cardiac.cines import LABELS
from scripts.cardiac.segmentation import Segmenter, make_network
from scripts.errors import InputError
from scripts.training.checkpoints import load_weights, read_checkpoint

Segment = Callable[[NDArray, Sequence[float]], NDArray[np.uint8]]
NETWORKS = {"network": 1, "paired": 2}  # of `Segmenter`, and the phases that each sees
NAMES = {"rv": r"\brv\b|right", "myo": r"\bmyo", "lv": r"\blv\b|left"}


def load_segmenter(path: str | Path, device: str | torch.device = "cpu") -> Segment:
    """What labels a frame (X, Y, Z) or a cine (X, Y, Z, T) with voxels of a spacing in mm: 1 RV, 2 myocardium, 3 LV.

    Args:
        path: weights of `cardiac.segmentation.make_network` that see one phase, or of both networks of
            `cardiac.segmentation.Segmenter` under their names, or the folder of a MONAI bundle.
        device: where the network runs.

    Raises:
        InputError: naming the file, for weights that are not there or another network's, and as `BundleSegmenter`.
    """
    if not Path(path).exists():
        raise InputError(
            f"--segmentation {path}: no such file; give weights, the folder of a MONAI bundle, or none for no segmentation."
        )
    if Path(path).is_dir():
        return BundleSegmenter(path, device)
    networks = torch.nn.ModuleDict({name: make_network(phases=phases) for name, phases in NETWORKS.items()})
    if not any(name.startswith("paired.") for name in read_checkpoint(path, device)):
        networks = torch.nn.ModuleDict({"network": load_weights(networks["network"], path, device)})
    else:
        load_weights(networks, path, device)
    return Segmenter(**networks.to(device, memory_format=torch.channels_last))


class BundleSegmenter:
    """Another MONAI bundle's network, with its own preprocessing and inferer; its labels are renamed to this project's.

    Args:
        folder: of the bundle: `configs/inference.json` (or .yaml) with "network_def", "preprocessing" of "image" and
            "inferer"; `configs/metadata.json` whose "channel_def" names the structures; `models/model.pt`.
        device: where the network runs.

    Raises:
        InputError: naming the file that is missing or cannot be used.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        folder = Path(folder)
        configs = [folder / "configs" / f"inference.{end}" for end in ("json", "yaml", "yml")]
        config = next((path for path in configs if path.is_file()), None)
        if config is None:
            raise InputError(f"{folder}: has no configs/inference.json; give weights, or the folder of a MONAI bundle.")
        metadata = folder / "configs" / "metadata.json"
        if not metadata.is_file():
            raise InputError(f"{metadata}: no such file; it must name the structures of the bundle's channels.")
        parser = ConfigParser()
        parser.read_config(str(config))
        parser.read_meta(str(metadata))
        parser.update({"bundle_root": str(folder), "device": f"$torch.device('{device}')"})
        lacking = [key for key in ("network_def", "preprocessing", "inferer") if key not in parser.get()]
        if lacking:
            raise InputError(f"{config}: has no {' and no '.join(lacking)}; another bundle is needed.")
        self.values = _label_values(parser.get("_meta_", {}), metadata)
        self.device = torch.device(device)
        self.network = parser.get_parsed_content("network_def").to(self.device).eval()
        weights = folder / "models" / "model.pt"
        content = read_checkpoint(weights, device)
        try:
            self.network.load_state_dict(content.get("model", content))
        except RuntimeError as error:
            raise InputError(f"{weights}: does not belong to the network_def of {config}.") from error
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        self.restore = Invertd(keys="pred", transform=self.preprocessing, orig_keys="image", nearest_interp=False)

    def __call__(self, image: NDArray, spacing: Sequence[float]) -> NDArray[np.uint8]:
        """Labels in the shape of an image (X, Y, Z) or (X, Y, Z, T)."""
        if image.ndim == 4:
            return np.stack([self(image[..., t], spacing) for t in range(image.shape[3])], axis=-1)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            # The bundle's preprocessing reads a file.
            path = Path(folder) / "frame.nii"
            nib.save(nib.Nifti1Image(np.asarray(image, np.float32), np.diag([*map(float, spacing), 1.0])), path)
            item = self.preprocessing({"image": str(path)})
            item["pred"] = self.inferer(item["image"][None].to(self.device), self.network)[0]
            found = self.restore(item)["pred"].argmax(dim=0).cpu().numpy()
        if found.shape != image.shape:
            raise InputError(
                f"the bundle's labels have the shape {found.shape} and the frame {image.shape}; give another --segmentation."
            )
        return self.values[found]


def _label_values(metadata: Mapping, path: Path) -> NDArray[np.uint8]:
    """This project's label of each of a bundle's channels, by their names in its metadata.

    Raises:
        InputError: where they do not name each of RV, myocardium and LV once.
    """
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    channels = {int(key): str(name) for key, name in outputs.get("pred", {}).get("channel_def", {}).items()}
    values = np.zeros(max(channels, default=0) + 1, np.uint8)
    for structure, pattern in NAMES.items():
        # The myocardium may be called that of the left ventricle.
        named = [
            key
            for key, name in channels.items()
            if re.search(pattern, name.lower().replace("_", " "))
            and (structure == "myo" or not re.search(NAMES["myo"], name.lower().replace("_", " ")))
        ]
        if len(named) != 1:
            raise InputError(
                f"{path}: its channel_def {channels} does not name the {structure.upper()} once; correct it."
            )
        values[named[0]] = LABELS[structure]
    return values
