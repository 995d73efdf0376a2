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

"""Surgery inside MONAI's trainer against the same step by hand: two backward passes of two forward passes, then
NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.networks.nets import BasicUNet, RegUNet, SwinUNETR, VoxelMorphUNet
from scripts.errors import InputError
from scripts.registration.losses import SmoothnessLoss, WarpedSimilarity
from scripts.registration.networks import PyramidNetwork, RegistrationUNet
from scripts.surgery.handler import GradientSurgeryHandler
from scripts.surgery.rules import STRATEGIES
from surgery_by_hand import RECORDS, Gradients, assert_close, parameters_of
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from training_runs import (
    DDP_CASES,
    LEARNING_RATE,
    WithUnused,
    ddp_network,
    ddp_process,
    make_pairs,
    make_unet,
    recorded_decisions,
    train,
)

TAU = 1e-5


def warped_mse(field: Tensor, pair: Tensor) -> Tensor:
    """Mean squared difference of the moved and the fixed image, for a field in voxels along the array axes."""
    sizes = field.shape[2:]
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in sizes], indexing="ij"))
    where = torch.stack([(grid[i] + field[:, i]) * 2 / (n - 1) - 1 for i, n in enumerate(sizes)][::-1], dim=-1)
    moved = F.grid_sample(pair[:, :1], where, mode="bilinear", padding_mode="border", align_corners=True)
    error = moved - pair[:, 1:]
    if len(sizes) == 3:
        # What comes from beyond the first or the last slice is not known.
        error = error * (where[..., 0].abs() <= 1)[:, None]
    return (error**2).mean()


def l1_smoothness(field: Tensor) -> Tensor:
    """Mean absolute forward difference, averaged over the axes."""
    terms = []
    for axis in range(2, field.ndim):
        size = field.shape[axis]
        terms.append((field.narrow(axis, 1, size - 1) - field.narrow(axis, 0, size - 1)).abs().mean())
    return sum(terms) / len(terms)


def backward(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], shards: Sequence[Tensor]) -> Gradients:
    """Gradient of the loss, averaged over shards that pass the network apart; NaN where it does not reach a
    parameter."""
    network = copy.deepcopy(network).train()
    network.zero_grad()
    for shard in shards:
        torch.autograd.backward(loss(network(shard), shard) / len(shards))
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return {name: np.full(p.shape, np.nan) if p.grad is None else p.grad.numpy() for name, p in named}


def both_gradients(
    network: nn.Module,
    shards: Sequence[Tensor],
    similarity: Callable[[Tensor, Tensor], Tensor] = warped_mse,
    smoothness: Callable[[Tensor], Tensor] = l1_smoothness,
) -> tuple[Gradients, Gradients]:
    """Gradients s of the similarity and r of the smoothness, from a forward pass each."""
    return backward(network, similarity, shards), backward(network, lambda field, _: smoothness(field), shards)


def group_of(name: str, granularity: str) -> str:
    return {"tensor": name, "module": name.rpartition(".")[0], "vector": ""}[granularity]


def project(s: Gradients, r: Gradients, granularity: str = "tensor", tau: float = TAU) -> Gradients:
    """GSMorph's rule in NumPy, group by group."""
    groups = {
        group: [n for n in s if group_of(n, granularity) == group] for group in {group_of(n, granularity) for n in s}
    }
    flat = lambda g, names: np.concatenate([g[n].ravel() for n in names]).astype(np.float64)
    largest = max(np.linalg.norm(flat(r, names)) for names in groups.values())
    settled = dict(s)
    for names in groups.values():
        a, b = flat(s, names), flat(r, names)
        if a @ b < 0 and np.linalg.norm(b) >= tau * largest:
            settled.update({n: s[n] - (a @ b) / (b @ b) * r[n] for n in names})
    return settled


def rounding_noise(r: Gradients) -> list[str]:
    """Tensors whose smoothness gradient is zero but for rounding."""
    largest = max(np.linalg.norm(g) for g in r.values())
    return [name for name, g in r.items() if np.linalg.norm(g) < 1e-10 * largest]


def assert_conflicts_and_agreements(s: Gradients, r: Gradients) -> None:
    """The comparison means something: some tensors are projected by more than the tolerance, others are not."""
    cosine = np.array(
        [np.vdot(s[n], r[n]) / np.linalg.norm(s[n]) / np.linalg.norm(r[n]) for n in s.keys() - set(rounding_noise(r))]
    )
    assert cosine.min() < -1e-3
    assert cosine.max() > 1e-3


def descend(network: nn.Module, gradients: Gradients) -> None:
    """One step of SGD by hand."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in gradients:
                parameter -= LEARNING_RATE * torch.from_numpy(gradients[name])


class PatchTransformer(nn.Module):
    """Patches of 4 voxels through a transformer layer of torch's and back."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        into = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        back = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[spatial_dims]
        self.embed = into(2, 8, 4, stride=4)
        self.attend = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.head = back(8, spatial_dims, 4, stride=4)

    def forward(self, pair: Tensor) -> Tensor:
        patches = self.embed(pair)
        tokens = self.attend(patches.flatten(2).transpose(1, 2))
        return self.head(tokens.transpose(1, 2).view_as(patches))


def make_network(name: str, spatial_dims: int) -> tuple[nn.Module, int]:
    """A small backbone in float64 and a size of image that it takes."""
    torch.manual_seed(2)
    d = spatial_dims
    if name == "VoxelMorphUNet":
        return VoxelMorphUNet(d, 2, d, channels=(4, 4, 6, 6, 4, 4), final_conv_channels=(4,)).double(), 16
    if name == "RegUNet":
        return RegUNet(d, 2, num_channel_initial=4, depth=2, out_channels=d).double(), 16
    if name == "BasicUNet":
        return BasicUNet(d, 2, d, features=(4, 4, 4, 6, 6, 4)).double(), 32
    if name == "PatchTransformer":
        return PatchTransformer(d).double(), 16
    if name == "PyramidNetwork":
        norm = ("group", {"num_groups": 2})
        return PyramidNetwork(d, features=(4, 6), hidden=4, norm=norm, norm_window=12, flow_std=0.2).double(), 16
    if name == "SwinUNETR":
        pytest.importorskip("einops", reason="MONAI's transformers need einops")
        options = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
        return SwinUNETR(2, d, spatial_dims=d, norm_name=("group", {"num_groups": 2}), **options).double(), 32
    return make_unet(name.partition("-")[2], d), 16


NETWORKS = (
    "VoxelMorphUNet",
    "RegUNet",
    "BasicUNet",
    "SwinUNETR",
    "PatchTransformer",
    "PyramidNetwork",
    "RegistrationUNet-batch",
    "RegistrationUNet-instance",
)


@pytest.mark.parametrize(
    ("spatial_dims", "memory_format"),
    [(2, torch.contiguous_format), (2, torch.channels_last), (3, torch.contiguous_format)],
    ids=["2-D", "2-D channels_last", "3-D"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_step_equals_two_backward_passes_and_a_projection(
    name: str, spatial_dims: int, memory_format: torch.memory_format
) -> None:
    network, size = make_network(name, spatial_dims)
    pairs = make_pairs(1 if size > 16 and spatial_dims == 3 else 2, [size] * spatial_dims)
    s, r = both_gradients(network, [pairs])
    assert_conflicts_and_agreements(s, r)
    for tau in (0.0, TAU):
        trained, expected = copy.deepcopy(network).to(memory_format=memory_format), copy.deepcopy(network)
        (found,), _ = train(trained, [pairs.contiguous(memory_format=memory_format)], {"tau": tau})
        by_hand = project(s, r, tau=tau)
        # The smoothness does not see the flow head's bias, nor any loss a bias before a norm: without tau, s is
        # projected on rounding noise, which no two implementations share. It can only shorten s.
        noise = rounding_noise(r) if tau == 0 else []
        assert_close(found, by_hand, skip=noise)
        for tensor in noise:
            assert found[tensor].norm().item() <= np.linalg.norm(s[tensor]) * (1 + 1e-10) + 1e-12
        descend(expected, {n: found[n].numpy() if n in noise else by_hand[n] for n in by_hand})
        assert_close(parameters_of(trained), {n: p.numpy() for n, p in parameters_of(expected).items()})


@pytest.mark.parametrize("granularity", ["module", "vector"])
def test_granularity(granularity: str) -> None:
    network, _ = make_network("VoxelMorphUNet", 2)
    pairs = make_pairs(2, (16, 16))
    s, r = both_gradients(network, [pairs])
    by_hand = project(s, r, granularity)
    with pytest.raises(AssertionError):
        assert_close({n: torch.from_numpy(g) for n, g in project(s, r).items()}, by_hand)
    (found,), _ = train(network, [pairs], {"granularity": granularity})
    assert_close(found, by_hand)


def test_agreement_keeps_entries_of_equal_sign() -> None:
    network = make_unet()
    pairs = make_pairs(2, (16, 16))
    s, r = both_gradients(network, [pairs])
    (found,), _ = train(network, [pairs], {"strategy": "agreement"})
    assert_close(found, {n: np.where(s[n] * r[n] > 0, s[n], 0) for n in s}, skip=rounding_noise(r))


def test_weighted_sum_equals_one_backward_pass_of_the_sum() -> None:
    network = make_unet()
    pairs = make_pairs(2, (16, 16))
    total = backward(network, lambda field, pair: warped_mse(field, pair) + 0.3 * l1_smoothness(field), [pairs])
    (found,), _ = train(network, [pairs], {"strategy": "weighted_sum", "weight": 0.3})
    assert_close(found, total)


def test_grad_scaler_gives_the_unscaled_projection() -> None:
    network = make_unet()
    pairs = make_pairs(2, (16, 16))
    by_hand = project(*both_gradients(network, [pairs]))
    # The weighted sum is not invariant to the scale of r, so it shows that r is scaled as s is.
    s, r = both_gradients(network, [pairs])
    for surgery, expected in (
        ({}, by_hand),
        ({"strategy": "weighted_sum", "weight": 2.0}, {n: s[n] + 2 * r[n] for n in s}),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
        (found,), _ = train(copy.deepcopy(network), [pairs], surgery, scaler=scaler)
        assert_close(found, expected)


class Autocast(nn.Module):
    """A network whose forward pass runs in half precision on the CPU; its field is in half precision too."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, pair: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.network(pair)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_the_same_autocast_by_hand(dtype: torch.dtype) -> None:
    network = Autocast(make_unet().float(), dtype)
    pairs = make_pairs(2, (16, 16)).float()
    assert network(pairs).dtype == dtype
    # The losses are the trainer's own: a last bit of fp32 in the cotangent would become one of half precision in the
    # gradient.
    similarity, smoothness, scale = WarpedSimilarity(nn.MSELoss()), SmoothnessLoss(), 1024.0
    s = backward(network, lambda field, pair: scale * similarity(field, pair), [pairs])
    r = backward(network, lambda field, _: scale * smoothness(field), [pairs])
    assert_conflicts_and_agreements(s, r)
    by_hand = {n: g / scale for n, g in project(s, r).items()}
    (found,), _ = train(network, [pairs], scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    assert_close(found, by_hand, tolerance=1e-5)


def test_constraint_runs_in_full_precision_under_autocast() -> None:
    def gram(field: Tensor) -> Tensor:
        product = field.float() @ field.float().mT
        assert product.dtype == torch.float32
        return product.square().mean()

    network = make_unet().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, trainer = train(network, [make_pairs(1, (16, 16)).float()], {"constraint": gram})
    assert trainer.state.output["smoothness"].dtype == torch.float32


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("spoiled", ["similarity", "smoothness"])
def test_scaler_skips_the_step_of_an_overflow(spoiled: str, strategy: str) -> None:
    def spoil(loss: Tensor, name: str, field: Tensor) -> Tensor:
        # The square root at zero is finite and has no finite gradient: an overflow that the loss itself does not show.
        return loss + (0.0 * field).sqrt().sum() if name == spoiled else loss

    network = make_unet().float()
    before = parameters_of(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    similarity, smoothness = WarpedSimilarity(nn.MSELoss()), SmoothnessLoss()
    _, trainer = train(
        network,
        [make_pairs(2, (16, 16)).float()],
        {
            "constraint": lambda field: spoil(smoothness(field), "smoothness", field),
            "strategy": strategy,
            "weight": float(strategy == "weighted_sum"),
        },
        scaler=scaler,
        loss_function=lambda field, pair: spoil(similarity(field, pair), "similarity", field),
    )
    assert torch.isfinite(trainer.state.output["loss"] + trainer.state.output["smoothness"])
    assert scaler.get_scale() == 512.0
    # The epoch's means are of the steps that were taken: of none here.
    assert [trainer.state.metrics[name] for name in ("conflict_ratio", "cosine", "ill_posed")] == [0.0] * 3
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "surgery", [{}, {"strategy": "weighted_sum", "weight": 2.0}], ids=["projection", "weighted sum"]
)
def test_accumulation_equals_the_full_batch(surgery: dict) -> None:
    network, size = make_unet(), (16, 16)
    batches = list(make_pairs(5 * 2, size).split(2))
    expected = copy.deepcopy(network)
    train(network, batches, surgery, accumulation_steps=2, max_epochs=2)
    for _ in range(2):
        for first in (0, 2, 4):
            step = torch.cat(batches[first : first + 2])
            s, r = both_gradients(expected, [step])
            settled = {n: s[n] + 2 * r[n] for n in s} if surgery else project(s, r)
            # MONAI divides by accumulation_steps where an epoch's last step has fewer batches, too.
            descend(expected, {n: g * len(step) / 4 for n, g in settled.items()})
    assert_close(parameters_of(network), {n: p.numpy() for n, p in parameters_of(expected).items()})


@pytest.fixture(scope="module")
def ddp_pairs() -> Tensor:
    """Four batches of four pairs."""
    return make_pairs(16, (16, 16)).view(4, 4, 2, 16, 16)


@pytest.fixture(scope="module")
def ddp_results(ddp_pairs: Tensor, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple]]:
    """Trained parameters by name, and decisions, of each case of either process."""
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(ddp_process, (folder, ddp_pairs), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", DDP_CASES)
def test_ranks_agree(case: str, ddp_results: list[dict[str, tuple]]) -> None:
    (first, _), (second, _) = (result[case] for result in ddp_results)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("case", [case for case in DDP_CASES if case != "single precision"])
def test_two_processes_equal_the_full_batch(case: str, ddp_results: list[dict[str, tuple]], ddp_pairs: Tensor) -> None:
    options = DDP_CASES[case]
    network = ddp_network(options.get("norm", "instance"), options.get("unused", False))
    for step in ddp_pairs.split(options.get("accumulation_steps", 1)):
        batch = step.flatten(0, 1)
        # BatchNorm sees a process's own shard, so the shards pass apart and their gradients are averaged before the
        # projection.
        shards = [batch[rank::2] for rank in range(2)] if case == "batch norm" else [batch]
        gradients = [
            {n: g for n, g in gradient.items() if n != "unused"} for gradient in both_gradients(network, shards)
        ]
        assert_conflicts_and_agreements(*gradients)
        settled = project(*gradients, options.get("surgery", {}).get("granularity", "tensor"))
        if "unused" in options:
            settled = {n: g + 0.1 * network.get_parameter(n).detach().numpy() for n, g in settled.items()}
        descend(network, settled)
    assert_close(ddp_results[0][case][0], {n: p.numpy() for n, p in parameters_of(network).items()})


def test_two_processes_decide_as_one_in_single_precision(
    ddp_results: list[dict[str, tuple]], ddp_pairs: Tensor
) -> None:
    network = ddp_network(dtype=torch.float32)
    with recorded_decisions() as decisions:
        train(network, ddp_pairs.float())
    parameters, found = ddp_results[0]["single precision"]
    assert torch.equal(torch.stack(found), torch.stack(decisions))
    assert 0 < torch.stack(decisions).float().mean() < 1
    assert_close(parameters, {n: p.numpy() for n, p in parameters_of(network).items()}, 1e-4)


def test_each_loss_is_exchanged_once_a_step(ddp_results: list[dict[str, tuple]]) -> None:
    assert [result["exchanges"] for result in ddp_results] == [2 * 3] * 2


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_all_processes_skip_the_step_that_is_not_finite_in_one(what: str, ddp_results: list[dict[str, tuple]]) -> None:
    """As on several GPUs, where nothing waits: all end alike, with the weights of the last good step."""
    (first, reason), (second, other) = (result[f"skipped {what}"] for result in ddp_results)
    assert "not finite at step 1 to 5 (epoch 1)" in reason
    assert reason == other
    assert len(first) == len(second) == 5
    for name, value in first[1].items():
        assert not torch.equal(value, first[0][name]) or "bias" in name
        for state in (*first[2:], *second[1:]):
            assert torch.equal(state[name], value), name


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_all_processes_stop_at_the_step_that_is_not_finite_in_one(
    what: str, ddp_results: list[dict[str, tuple]]
) -> None:
    """On CPUs, where waiting costs nothing."""
    for states, reason in (result[f"stopped at {what}"] for result in ddp_results):
        assert "not finite at step 3 (epoch 1)" in reason
        assert len(states) == 2


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("bare", [False, True], ids=["attach", "start"])
def test_static_graph_is_refused_with_a_reason(bare: bool) -> None:
    network = make_unet()
    before = parameters_of(network)
    wrapped = DistributedDataParallel(network, static_graph=True)
    with pytest.raises(ValueError, match=r"static_graph=True.*two, and the gradients would be wrong"):
        train(wrapped, [make_pairs(1, (16, 16))], {"network": network if bare else wrapped})
    assert_close(parameters_of(network), {n: p.numpy() for n, p in before.items()})


@pytest.mark.usefixtures("process_group")
def test_sharded_parameters_are_refused() -> None:
    network = make_unet()
    fully_shard(network, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match="needs whole gradient tensors"):
        train(network, [make_pairs(1, (16, 16))])


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategy": "pcgrad"},
        {"granularity": "layer"},
        {"tau": 2.0},
        *({"strategy": "weighted_sum", "weight": weight} for weight in (-1.0, float("nan"), "abc")),
    ],
)
def test_unknown_options_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match=r"is (one of|at least|a number from) .*got"):
        GradientSurgeryHandler(make_unet(), SmoothnessLoss(), **arguments)


def test_a_weight_for_a_strategy_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy 'projection' has no weight, got 0\.1; weighted_sum has one"):
        GradientSurgeryHandler(make_unet(), SmoothnessLoss(), weight=0.1)


def test_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        GradientSurgeryHandler(make_unet().requires_grad_(False), SmoothnessLoss())


def test_unused_and_frozen_parameters_stay() -> None:
    network = WithUnused(make_unet())
    frozen = network.network.flow.bias.requires_grad_(False)
    before = parameters_of(network)
    pairs = make_pairs(2, (16, 16))
    by_hand = project(
        *({n: g for n, g in gradient.items() if n != "unused"} for gradient in both_gradients(network, [pairs]))
    )
    # Weight decay moves every parameter that has a gradient, be it zero: an unused one has none, as without surgery.
    (found,), _ = train(network, [pairs], weight_decay=0.1)
    assert network.unused.grad is None
    assert frozen.grad is None
    assert_close(found, by_hand)
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == by_hand.keys()


@pytest.mark.parametrize(
    "surgery", [{}, {"granularity": "vector"}, {"strategy": "weighted_sum", "weight": 2.0}], ids=str
)
def test_parameters_reached_by_one_loss_only(surgery: dict) -> None:
    network = make_unet()
    network.gain = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    network.stiffness = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    pairs = make_pairs(2, (16, 16))
    s, r = both_gradients(network, [pairs])
    # d(gain * L)/d gain is L, and the other loss does not know the gain.
    with torch.no_grad():
        losses = warped_mse(network(pairs), pairs).item(), l1_smoothness(network(pairs)).item()
    s = {n: g * 1.5 for n, g in s.items()} | {"gain": np.array([losses[0]]), "stiffness": np.zeros(1)}
    r = {n: g * 0.5 for n, g in r.items()} | {"gain": np.zeros(1), "stiffness": np.array([losses[1]])}
    weighted = "weight" in surgery
    by_hand = {n: s[n] + 2 * r[n] for n in s} if weighted else project(s, r, surgery.get("granularity", "tensor"))
    (found,), _ = train(
        network,
        [pairs],
        surgery | {"constraint": lambda field: network.stiffness.squeeze() * SmoothnessLoss()(field)},
        loss_function=lambda field, pair: network.gain.squeeze() * warped_mse(field, pair),
    )
    assert_close(found, by_hand)


@pytest.mark.parametrize(
    "network",
    [
        RegistrationUNet(features=(2, 2), flow_std=0.2, norm="instance"),
        # Three levels of the shipped network: with activations in place, the coarser two get no gradient at this size.
        PyramidNetwork(2, (8, 8, 8), 8, 1, integration_steps=0, smoothing=0.7, flow_std=0.2, antisymmetric=False),
    ],
    ids=["unet", "pyramid"],
)
def test_compiled_network_equals_eager(network: nn.Module) -> None:
    torch_cpp = pytest.importorskip("torch._inductor.cpp_builder")
    try:
        torch_cpp.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"torch.compile finds no C++ compiler: {error}")
    network, pairs = network.double(), make_pairs(1, (32, 32))
    by_hand = project(*both_gradients(network, [pairs]))
    compiled = copy.deepcopy(network)
    (found,), trainer = train(compiled, [pairs], compile=True)
    assert trainer.network is not compiled
    assert_close(found, by_hand, tolerance=1e-8)


def test_meta_tensors() -> None:
    network = make_unet()
    pairs = make_pairs(2, (16, 16))
    by_hand = project(*both_gradients(network, [pairs]))
    (found,), trainer = train(network, [MetaTensor(pairs)])
    assert isinstance(trainer.state.output["pred"], MetaTensor)
    assert {type(gradient) for gradient in found.values()} == {Tensor}
    assert_close(found, by_hand)


def records_by_hand(network: nn.Module, pairs: Tensor) -> dict[str, float]:
    s, r = both_gradients(network, [pairs])
    noise = rounding_noise(r)
    dots = {n: np.vdot(s[n], r[n]) for n in s.keys() - set(noise)}
    with torch.no_grad():
        field = copy.deepcopy(network).train()(pairs)
    return {
        "similarity": warped_mse(field, pairs).item(),
        "smoothness": l1_smoothness(field).item(),
        "conflict_ratio": float(np.mean([dot < 0 for dot in dots.values()])),
        "cosine": float(np.mean([dot / np.linalg.norm(s[n]) / np.linalg.norm(r[n]) for n, dot in dots.items()])),
        "ill_posed": float(len(noise)),
    }


def test_records_equal_those_by_hand() -> None:
    network = make_unet()
    batches = list(make_pairs(6, (16, 16)).split(2))
    expected, found, state = [], [], copy.deepcopy(network)
    for batch in batches:
        expected.append(records_by_hand(state, batch))
        descend(state, project(*both_gradients(state, [batch])))

    class Recorder:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: found.append(e.state.output))

    _, trainer = train(network, batches, handlers=[Recorder()])
    for output, by_hand in zip(found, expected, strict=True):
        values = {"similarity": output["loss"]} | {name: output[name] for name in RECORDS[1:4]}
        assert {name: float(value) for name, value in values.items()} == pytest.approx(
            {name: by_hand[name] for name in values}, rel=1e-5, abs=1e-7
        )
    means = {name: np.mean([by_hand[name] for by_hand in expected]) for name in RECORDS}
    assert means["ill_posed"] > 0
    assert {name: trainer.state.metrics[name] for name in RECORDS} == pytest.approx(means, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("steps", [2, 4])
def test_means_under_accumulation_are_of_its_settlements(steps: int) -> None:
    # Weights that stay make each settlement that of its own batches alone.
    network, batches = make_unet(), list(make_pairs(6 * 2, (16, 16)).split(2))
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    each = [records_by_hand(network, batch) for batch in batches]
    parts = [torch.cat(batches[first : first + steps]) for first in range(0, 6, steps)]
    settled = [records_by_hand(network, part) for part in parts]
    _, trainer = train(network, batches, optimizer=still, accumulation_steps=steps, max_epochs=2)
    expected = {name: np.mean([row[name] for row in (each if name in RECORDS[:2] else settled)]) for name in RECORDS}
    assert expected["ill_posed"] > 0
    assert expected["conflict_ratio"] > 0
    assert {name: trainer.state.metrics[name] for name in RECORDS} == pytest.approx(expected, rel=1e-5, abs=1e-7)


class Clip:
    """Scales the gradients down to a norm, as a user's handler does."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED, lambda e: nn.utils.clip_grad_norm_(e.network.parameters(), 1e-3)
        )


def test_clipping_attached_after_sees_the_settled_gradients() -> None:
    network = make_unet()
    pairs = make_pairs(2, (16, 16))
    settled = project(*both_gradients(network, [pairs]))
    norm = np.sqrt(sum(np.vdot(g, g) for g in settled.values()))
    assert norm > 2e-3
    (found,), _ = train(network, [pairs], handlers=[Clip()])
    assert_close(found, {n: g * 1e-3 / norm for n, g in settled.items()}, tolerance=1e-5)
