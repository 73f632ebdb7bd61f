"""What a checkpoint holds comes back as it was: values, and how they lie in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoencode import (
    Autoencoder,
    DivergedError,
    ModelConfig,
    Pack,
    Preprocessing,
    RunError,
    pack_folder,
)
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.pixels import to_float
from autoencode.training.checkpoint import (
    TrainState,
    load_checkpoint,
    save_checkpoint,
    start_from_images,
)
from autoencode.training.config import TrainConfig
from autoencode.training.run import CHECKPOINT_NAME
from autoencode.training.runtime import choose_runtime


def build(seed: int, steps: int, widths: tuple[int, ...] = (4, 8), *, averaged: bool = True) -> TrainState:
    """A small VAE with moments that are no longer zero."""
    torch.manual_seed(seed)
    model = Autoencoder(ModelConfig("vae", 6, widths=widths, batch_norm=True), Preprocessing(32, 32))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False) if averaged else model
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(2, 3, 32, 32), torch.randn(2, 6)).images.mean().backward()
        optimizer.step()
    return TrainState(model, average, optimizer, steps, torch.arange(4.0).double(), 1.5, 0.5)


def moments(state: TrainState) -> list[torch.Tensor]:
    by_parameter = sorted(state.optimizer.state_dict()["state"].items())
    return [tensor for _, values in by_parameter for _, tensor in sorted(values.items())]


@pytest.mark.parametrize("averaged", [True, False])
def test_everything_comes_back(tmp_path: Path, averaged: bool) -> None:
    saved, loaded = build(1, 3, averaged=averaged), build(2, 0, averaged=averaged)
    save_checkpoint(tmp_path, saved)
    load_checkpoint(tmp_path, loaded, TrainConfig(), choose_runtime("cpu", "fp32"))
    assert (loaded.step, loaded.seconds, loaded.waited) == (3, 1.5, 0.5)
    assert loaded.sums.tolist() == [0, 1, 2, 3]
    assert loaded.sums.dtype == torch.float64
    for name in ("model", "averaged"):
        expected = getattr(saved, name).state_dict()
        found = getattr(loaded, name).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert len(moments(loaded)) == len(moments(saved)) > 0
    for found_moment, expected_moment in zip(moments(loaded), moments(saved), strict=True):
        assert torch.equal(found_moment, expected_moment)


def test_moments_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    saved, loaded = build(1, 1), build(2, 0)
    save_checkpoint(tmp_path, saved)
    load_checkpoint(tmp_path, loaded, TrainConfig(), choose_runtime("cpu", "fp32"))
    strides = [tensor.stride() for tensor in moments(saved)]
    assert [tensor.stride() for tensor in moments(loaded)] == strides


@pytest.mark.parametrize("part", ["model", "averaged", "moments", "sums"])
def test_what_is_not_finite_is_not_saved_and_the_checkpoint_before_stays(tmp_path: Path, part: str) -> None:
    state = build(1, 2)
    save_checkpoint(tmp_path, state)
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    tensors = {
        "model": next(state.model.parameters()).data,
        "averaged": next(state.averaged.parameters()).data,
        "moments": moments(state)[1],
        "sums": state.sums,
    }
    tensors[part].view(-1)[-1] = float("inf")
    with pytest.raises(DivergedError):
        save_checkpoint(tmp_path, state)
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before


def test_a_checkpoint_of_another_network_is_rejected_in_one_line(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build(1, 1))
    with pytest.raises(RunError, match="not of this run's network") as caught:
        load_checkpoint(tmp_path, build(1, 0, widths=(4, 6)), TrainConfig(), choose_runtime("cpu", "fp32"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_an_earlier_version_is_rejected_in_one_line(tmp_path: Path) -> None:
    write_tensors(tmp_path / CHECKPOINT_NAME, "checkpoint", 1, {"sums": torch.zeros(4)}, {"step": 1})
    with pytest.raises(RunError, match=r"an earlier version .*format 1.* Start again in another") as caught:
        load_checkpoint(tmp_path, build(1, 0), TrainConfig(), choose_runtime("cpu", "fp32"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_a_part_is_rejected(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build(1, 1))
    path = tmp_path / CHECKPOINT_NAME
    tensors, _, _ = read_tensors(path, "checkpoint", 2, RunError)
    del tensors["sums"]
    write_tensors(path, "checkpoint", 2, tensors, {"step": 1, "seconds": 1.0, "waited": 0.0})
    with pytest.raises(RunError, match="not of this run's network"):
        load_checkpoint(tmp_path, build(1, 0), TrainConfig(), choose_runtime("cpu", "fp32"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors, content: content.update(step=-(2**62)),
        lambda tensors, content: content.update(step="1"),
        lambda tensors, content: content.update(step=True),
        lambda tensors, content: content.update(seconds=None),
        lambda tensors, content: content.update(perceptual=4.8),
        lambda tensors, content: tensors.update(sums=torch.zeros(3, dtype=torch.float64)),
        lambda tensors, content: tensors.update(sums=torch.zeros(4)),
        lambda tensors, content: tensors.pop(moment_in(tensors)),
        lambda tensors, content: tensors.update({moment_in(tensors): torch.zeros(7)}),
        lambda tensors, content: tensors.update({moment_in(tensors): torch.zeros(())}),
        lambda tensors, content: tensors.update({step_in(tensors): torch.tensor(-1e30)}),
        lambda tensors, content: tensors.update({step_in(tensors): torch.zeros(3)}),
        lambda tensors, content: tensors.update({"optimizer/999/step": torch.zeros(())}),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_rejected(
    spoil: Callable[[dict[str, torch.Tensor], dict[str, Any]], object], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, build(1, 1))
    path = tmp_path / CHECKPOINT_NAME
    tensors, _, _ = read_tensors(path, "checkpoint", 2, RunError)
    content: dict[str, Any] = {"step": 1, "seconds": 1.0, "waited": 0.0}
    write_tensors(path, "checkpoint", 2, tensors, content)
    load_checkpoint(tmp_path, build(1, 0), TrainConfig(), choose_runtime("cpu", "fp32"))
    spoil(tensors, content)
    write_tensors(path, "checkpoint", 2, tensors, content)
    with pytest.raises(RunError, match="not of this run's network") as caught:
        load_checkpoint(tmp_path, build(1, 0), TrainConfig(), choose_runtime("cpu", "fp32"))
    assert "\n" not in str(caught.value)


def moment_in(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.startswith("optimizer/") and tensors[name].ndim)


def test_a_file_that_is_no_checkpoint_is_rejected(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"PK\x03\x04 a pickle or anything else")
    with pytest.raises(RunError, match="is not a checkpoint file, or is cut short or damaged"):
        load_checkpoint(tmp_path, build(1, 0), TrainConfig(), choose_runtime("cpu", "fp32"))


def step_in(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.startswith("optimizer/") and name.endswith("/step"))


@pytest.fixture(params=["mirrored", "one-sided"])
def pack_and_symmetry(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Pack, bool]:
    """A pack of images that may as well be mirrored, or that never are; and whether they may."""
    generator = np.random.default_rng(0)
    for index in range(60):
        pixels = np.zeros((32, 32, 3))
        for left, top in generator.integers(0, 16, (4, 2)):
            # One-sided images are dark on the right.
            left = left if request.param == "mirrored" else left // 2
            pixels[top : top + 12, left : left + 8] += generator.uniform(20, 60, 3)
        pixels = pixels[:, ::-1] if request.param == "mirrored" and index % 2 else pixels
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index}.png")
    return pack_folder(tmp_path, tmp_path / "images.pack", size=32), request.param == "mirrored"


@pytest.mark.parametrize("horizontal_flip", [True, False])
def test_the_start_knows_mirror_images_if_training_flips_and_held_out_images_gain(
    pack_and_symmetry: tuple[Pack, bool], horizontal_flip: bool
) -> None:
    pack, may_be_mirrored = pack_and_symmetry
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig("autoencoder", 6, "residual", widths=(4, 8)), Preprocessing(32, 32))
    state = TrainState(model, model, torch.optim.Adam(model.parameters()), 0, torch.zeros(4))
    config, rows = TrainConfig(horizontal_flip=horizontal_flip), pack.rows("train")
    start_from_images(
        state, choose_runtime("cpu", "fp32"), config, pack, rows, pack.held_out("validation").rows
    )
    images = to_float(pack.pixels(rows))
    restored, mirrored = model.reconstruct(images), model.reconstruct(images.flip(3)).flip(3)
    knows_both = horizontal_flip and may_be_mirrored
    assert torch.allclose(restored, mirrored, atol=1e-4) == knows_both
