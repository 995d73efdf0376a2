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

"""What a checkpoint needs beside MONAI's: random states to resume with, and weights that are refused with a reason."""

from __future__ import annotations

import atexit
import hashlib
import random
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from scripts.errors import InputError, NotFiniteError
from scripts.files import claimed, whole_file
from scripts.registration.networks import inflate, is_smaller
from torch import Tensor, nn


class RandomState:
    """Random states of Python, torch and its CUDA devices, as an object that checkpoints save and load."""

    def state_dict(self) -> dict:
        version, words, gauss = random.getstate()
        return {
            "python": [version, list(words), gauss],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        torch.set_rng_state(state["torch"].cpu())
        if idist.get_rank():
            # The state is the first process's; another one must not augment alike.
            torch.manual_seed(int(torch.randint(2**31, ())) + idist.get_rank())
            random.seed(torch.initial_seed())
            return
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.cpu(), device)


def load_weights(network: nn.Module, path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a flat state_dict, as training writes and `models/` holds it, into a network; returns the network.

    A network of volumes takes the weights of one of slices, too, and one that sees maps those of one that does not; it is
    that one then (`networks.inflate`).

    Raises:
        InputError: naming the file, for one that is not there, not readable, of another network, or of NaN.
    """
    weights = read_checkpoint(path, device)
    try:
        network.load_state_dict(inflate(weights, network) if is_smaller(weights, network) else weights)
    except (RuntimeError, TypeError, ValueError) as error:
        detail = textwrap.shorten(str(error).splitlines()[-1], 200)
        raise InputError(
            f"{path}: holds the weights of another network than the config's network_def; give the weights that belong to it "
            f"or the network_def they were trained with ({detail})"
        ) from error
    return network


def start_weights(network: nn.Module, path: str | Path | None) -> nn.Module:
    """The network, with the weights of a file where one is given; errors as of `load_weights`."""
    return load_weights(network, path) if path else network


def _require_checkpoint(path: str | Path | None) -> None:
    """Stop where a checkpoint is not a file.

    Raises:
        InputError: naming it.
    """
    if not path or not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or give the path of one.")


def hash_checkpoint(path: str | Path | None) -> str:
    """SHA-256 of a checkpoint; empty for None.

    Raises:
        InputError: naming the file, for one that is not there.
    """
    if path is None:
        return ""
    _require_checkpoint(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """A checkpoint's content, tensors and plain values only.

    Raises:
        InputError: naming the file, for one that is not there, not readable, or holds NaN or infinite values.
    """
    _require_checkpoint(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: is not a readable checkpoint{_what_instead(path, error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no weights by name ({type(content).__name__}); give another checkpoint.")
    if bad := _first_not_finite(content):
        raise InputError(f"{path}: holds NaN or Inf in {bad}; give that of an earlier epoch, or train again.")
    return content


def _what_instead(path: str | Path, error: Exception) -> str:
    """What a file seems to be that is no checkpoint, with the cure."""
    with Path(path).open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return " but a pointer of Git LFS; run `git lfs pull`."
    if head.startswith(b"<"):
        return " but a web page; download the file that it links to."
    return f" of weights ({type(error).__name__}); is the file complete? Give another one."


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in a state of nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def _first_not_finite(state: Mapping) -> str:
    """The first entry of a state with a NaN or infinite value; empty without one. Waits for the device."""
    for name, value in state.items():
        finite = [tensor.isfinite().all() for tensor in _tensors(value)]
        if finite and not torch.stack(finite).all():
            return str(name)
    return ""


def check_unused(output_dir: str | Path, resume: str | Path | None, overwrite: bool = False) -> None:
    """Stop where a training would remove what another one left, or is still writing.

    Args:
        output_dir: folder of the training.
        resume: checkpoint that it goes on from.
        overwrite: whether the other one may go.

    Raises:
        InputError: for a folder with a checkpoint that the training does not go on from, or in use by another process; for
            a checkpoint to go on from that cannot be read, or is none of a training.
    """
    if resume and "optimizer" not in read_checkpoint(resume):
        raise InputError(f"{resume}: lacks optimizer; resume from a checkpoint named last_checkpoint_epoch=N.pt.")
    # Only a look: `LastCheckpoint` claims the folder when training starts.
    if Path(output_dir).is_dir() and idist.get_rank() == 0:
        with claimed(output_dir):
            pass
    left = sorted(Path(output_dir).glob("last_checkpoint_epoch=*.pt"))
    if left and not overwrite and not resume:
        raise InputError(
            f"{left[-1]}: is of an earlier training, which this one would replace; go on from it by --resume, give another "
            "--output_dir, or --overwrite True."
        )


def how_to_go_on(folder: str | Path | None, epoch: int) -> str:
    """What to do where a training met NaN in an epoch, counted from 1: its last checkpoint in a folder is of the one
    before."""
    last = Path(folder or "") / f"last_checkpoint_epoch={epoch - 1}.pt"
    if not (folder and last.is_file()):
        return "no epoch is complete: check the images for NaN, or train again with a lower --learning_rate."
    best = last.with_name("model.pt")
    start = f", from --initial_weights {best}" if best.is_file() else ""
    # A checkpoint is resumed with its own learning rate alone.
    return (
        f"check the images for NaN and go on by --resume {last}, or train into another folder with a lower "
        f"--learning_rate{start}."
    )


def _save(state: dict, path: Path, epoch: int) -> None:
    """Write a state that is finite, whole or not at all, in an epoch counted from 1."""
    if bad := _first_not_finite(state):
        raise NotFiniteError(f"{path}: was not written, since {bad} is not finite; {how_to_go_on(path.parent, epoch)}")
    # To a file of Python's, whose errors say that the disk is full; torch's own do not.
    with whole_file(path) as part, part.open("wb") as file:
        torch.save(state, file)


class BestWeights:
    """Writes a network's weights, a flat state_dict, when an evaluator's key metric is better than ever; a resumed
    training knows it.

    Args:
        path: `model.pt`; the whole file or none.
        network: whose weights are written.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network
        self.score = float("-inf")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if score > self.score:
            self.score = score
            if idist.get_rank() == 0:
                _save(self.network.state_dict(), self.path, engine.state.epoch)

    def state_dict(self) -> dict:
        return {"score": self.score}

    def load_state_dict(self, state: dict) -> None:
        # Where the folder has no such weights, there is no score to beat: else they might never be written.
        if self.path.is_file():
            self.score = state["score"]


def _of_trainer(engine: Engine) -> dict:
    """What a checkpoint holds of the trainer itself: its counts and, for fp16, the scale of its losses."""
    scaler = getattr(engine, "scaler", None)
    return {"trainer": engine} | ({} if scaler is None else {"scaler": scaler})


class LastCheckpoint:
    """Writes the whole training state every epoch as `last_checkpoint_epoch=N.pt`, finite and whole or not at all, and
    then removes older ones. From start to end of the training its folder is claimed, so that no other one writes there.

    MONAI's `CheckpointSaver` removes the old one first, and both are lost where the disk is full.

    Args:
        save_dir: folder of the checkpoint.
        save_dict: the objects to save; the trainer itself is added as "trainer", and its GradScaler, if any, as
            "scaler".

    Raises:
        NotFiniteError: for NaN or infinite values in the state; the checkpoint before stays.
        InputError: on a full disk, where the checkpoint before stays; for a folder that another training writes to.
    """

    def __init__(self, save_dir: str, save_dict: dict) -> None:
        self.save_dir = Path(save_dir)
        self.save_dict = dict(save_dict)
        self.claim = ExitStack()
        atexit.register(self.claim.close)

    def attach(self, engine: Engine) -> None:
        self.save_dict |= _of_trainer(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.claim.close())

    def _start(self, engine: Engine) -> None:
        self.claim.close()
        self.claim.enter_context(claimed(self.save_dir))

    def __call__(self, engine: Engine) -> None:
        path = self.save_dir / f"last_checkpoint_epoch={engine.state.epoch}.pt"
        _save({name: thing.state_dict() for name, thing in self.save_dict.items()}, path, engine.state.epoch)
        for older in self.save_dir.glob("last_checkpoint_epoch=*.pt"):
            if older != path:
                older.unlink()


def _optimizer_options(engine: Engine) -> dict[str, object]:
    """Numbers that the trainer's optimizer was made with, by name, as its first group has them; the rate before any
    schedule."""
    group = engine.optimizer.param_groups[0]
    numbers = {name: group.get(f"initial_{name}", value) for name, value in group.items() if name != "initial_lr"}
    return {name: value for name, value in numbers.items() if isinstance(value, (float, tuple))}


class ResumeHandler(CheckpointLoader):
    """Restores what `LastCheckpoint` wrote when training starts; a path of None starts afresh.

    Args:
        load_path: a `last_checkpoint_epoch=N.pt`, or None.
        load_dict: the objects to restore, as `LastCheckpoint` was given them.
        map_location: device to load to.

    Raises:
        InputError: naming the file, for one that is not there, not readable or not of this training: another network,
            other options of the optimizer, epochs of another length or more than `max_epochs` of them.
    """

    def __init__(self, load_path: str | None, load_dict: dict, map_location: str | torch.device = "cpu") -> None:
        super().__init__(load_path=load_path or "", load_dict=dict(load_dict), map_location=map_location)

    def attach(self, engine: Engine) -> None:
        if self.load_path:
            self.load_dict |= _of_trainer(engine)
            super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        missing = set(self.load_dict) - set(read_checkpoint(self.load_path, self.map_location))
        if missing:
            raise InputError(
                f"{self.load_path}: lacks {', '.join(sorted(missing))}; resume from a checkpoint named last_checkpoint_epoch=N.pt."
            )
        options, epochs = _optimizer_options(engine), engine.state.max_epochs
        try:
            super().__call__(engine)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            if epochs is not None and engine.state.epoch > epochs:
                raise InputError(
                    f"{self.load_path}: has had {engine.state.epoch} epochs, and --max_epochs is {epochs}; give a larger one."
                ) from error
            raise InputError(
                f"{self.load_path}: belongs to another network or optimizer; resume with its own config."
            ) from error
        for name, saved in _optimizer_options(engine).items():
            if name in options and saved != options[name]:
                raise InputError(
                    f"{self.load_path}: was trained with the optimizer's {name} {saved}, and now it is "
                    f"{options[name]}; resume with its own, or start from its weights with --initial_weights."
                )
        saved, now = engine.state.epoch_length, len(engine.state.dataloader or engine.data_loader)
        if saved and saved != now:
            raise InputError(
                f"{self.load_path}: has epochs of {saved} steps, and these data and --batch_size make {now}; resume with its own."
            )
