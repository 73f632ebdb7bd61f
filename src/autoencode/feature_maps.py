"""Feature maps of an encoder, layer by layer: drawn (Kovenko & Bogach 2020, Fig. 7) or pooled.

Layers are found by running the encoder, not by name, so this works for every network.

Shapes: B batch, C channels, H and W of the image, h and w of a map. Images are (B, 3, H, W) in [0, 1], pixels
(H, W, 3) in 0..255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoencode.atomic import claim_folder, write_bytes
from autoencode.csv_files import csv_bytes
from autoencode.data.preprocessing import save_image
from autoencode.errors import ConfigError
from autoencode.figures import contact_sheet, image_grid, png
from autoencode.models.model_file import as_model
from autoencode.pixels import to_pixels

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits
    from autoencode.models.autoencoder import Autoencoder

# Number of parts per side that maps are pooled over. On digits, 4x4 distinguishes classes far better than 1x1
# and hardly better than 2x2; if objects may be anywhere, 1x1 needs fewer labels.
SQUARES = (1, 4)

Pair = tuple[int, int]


@dataclass
class Layer:
    """A convolution with all that follows it up to the next one: normalisation, pooling, activation, a sum.

    Attributes:
        name: of the convolution within the model, such as "encoder.layers.0".
        maps: (B, C, h, w) float32, the input of the next convolution.
        receptive_field_px: (height, width) of the rectangle of pixels that a value depends on. Near an edge a
            part of it lies outside the image.
        stride_px: (vertical, horizontal) pixels from one value to the next.
    """

    name: str
    maps: Tensor
    receptive_field_px: Pair
    stride_px: Pair

    def pooled(self, squares: int) -> Tensor:
        """Describe the maps by the mean and standard deviation of each channel in parts of the image.

        Args:
            squares: S, parts per side; 1 drops the position in the image.

        Returns:
            (B, 2 C S^2).
        """
        mean = F.adaptive_avg_pool2d(self.maps, squares)
        variance = F.adaptive_avg_pool2d(self.maps.square(), squares) - mean.square()
        return torch.cat([mean, variance.clamp(min=0).sqrt()], 1).flatten(1)


class Trace(NamedTuple):
    """One pass through the encoder: its `layers`, shallow to deep, and the `codes` (B, D) at its end."""

    layers: list[Layer]
    codes: Tensor


def trace(model: Autoencoder, images: Tensor) -> Trace:
    """Encode images and keep the output of each layer, on the CPU.

    Args:
        model: from `load_model`.
        images: (B, 3, H, W) float in [0, 1], a batch small enough to go through the model at once.

    Raises:
        ConfigError: the images have another shape or type than the model was trained on.
    """
    with _watching(model, (images.shape[-2], images.shape[-1])) as layers:
        codes = model.encode_at_once(images)
    for layer in layers:
        layer.maps = layer.maps.float().cpu()
    return Trace(layers, codes)


def descriptions(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the pooled maps of each layer, (B, F), by names such as "encoder.layers.0 4x4".

    Maps are pooled over the image (1x1) and over 4x4 parts of it, if they have more values than that.
    """
    return {
        f"{layer.name} {squares}x{squares}": layer.pooled(squares)
        for layer in layers
        for squares in SQUARES
        if squares == 1 or min(layer.maps.shape[2:]) > squares
    }


@contextmanager
def _watching(model: Autoencoder, image_size: Pair) -> Iterator[list[Layer]]:
    """Yield a list that fills with the layers of the encoder while it runs."""
    layers: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given: Tensor = inputs[0]
        if layers:
            field, stride = layers[-1].receptive_field_px, layers[-1].stride_px
        else:
            # A network may turn squares of pixels into channels first. Its first convolution then gets a
            # smaller image, of which each value depends on one such square.
            field = stride = (image_size[0] // given.shape[2], image_size[1] // given.shape[3])
        layers.append(Layer(names[module], given, field, stride))

    def keep(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        if not layers or output.ndim != 4:
            return
        layer = layers[-1]
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            layer.receptive_field_px, layer.stride_px = _widened(layer, module)
        layer.maps = output

    hooks = []
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(begin))
        hooks.append(module.register_forward_hook(keep))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _widened(layer: Layer, module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> tuple[Pair, Pair]:
    """Widen field and stride by one more window: Dumoulin & Visin 2016; Araujo et al. 2019, eq. 2.

    r' = r + (k - 1) * dilation * stride, stride' = stride * step. Where a sum joins two paths, the one with
    the convolutions decides: a skip connection widens nothing.
    """
    kernel, step = _pair(module.kernel_size), _pair(module.stride)
    dilation = _pair(getattr(module, "dilation", 1))
    field, stride = layer.receptive_field_px, layer.stride_px
    return (
        (
            field[0] + (kernel[0] - 1) * dilation[0] * stride[0],
            field[1] + (kernel[1] - 1) * dilation[1] * stride[1],
        ),
        (stride[0] * step[0], stride[1] * step[1]),
    )


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


TABLE_NAME, SHEET_NAME = "layers.csv", "layers.png"
GRID_CHANNELS, SHEET_CHANNELS = 63, 7  # with the image itself, 8 rows of 8 and rows of 8

# White is this quantile of a layer: relative to a single bright value the rest would be black.
WHITE_QUANTILE = 0.998
SHALLOW = 0.25  # negative values below this fraction of the largest get no colour of their own

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class LayerMaps:
    """The output of one layer for one image.

    Attributes:
        name: of the convolution within the model, such as "encoder.layers.0".
        maps: (C, h, w) float32, the input of the next layer; the most active channel first, by its mean
            absolute value.
        channels: (C,) number of each channel within the layer, in that order.
        receptive_field_px: (height, width) of the rectangle of pixels that each value depends on; larger than
            the image where the last layers see all of it.
        stride_px: (vertical, horizontal) pixels from one value to the next.
        range: values shown as black and white or, where a layer has negative values that matter, as blue and
            red around white; the same for every channel.
    """

    name: str
    maps: NDArray[np.float32]
    channels: NDArray[np.int64]
    receptive_field_px: tuple[int, int]
    stride_px: tuple[int, int]
    range: tuple[float, float]


@dataclass(frozen=True)
class FeatureMaps:
    """The feature maps of one image.

    Attributes:
        image: (H, W, 3) in 0..255, as the model sees it.
        layers: shallow to deep.
        sheet: (height, width, 3) in 0..255, the most active channels of every layer, one row per layer.
    """

    image: Pixels
    layers: list[LayerMaps]
    sheet: Pixels

    def _repr_png_(self) -> bytes:
        return png(self.sheet)


def features(
    model: Autoencoder | str | Path,
    image: str | Path,
    out: str | Path | None = None,
    *,
    limits: Limits | None = None,
) -> FeatureMaps:
    """Show an image through each convolution layer of the encoder.

    Args:
        model: from `load_model`, or its path; plain or a VAE.
        image: an image file.
        out: a folder for a grid of each layer's 63 most active channels, the sheet of all layers, and a
            table of the layers; made here. None writes nothing.
        limits: the largest file and image to accept.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: the image is one of those in `out`.
        ImageError: the image cannot be used.
        OutputError: `out` is not empty and holds no earlier features, or cannot be written.
    """
    model = as_model(model)
    if out is not None and Path(image).is_file() and Path(out).resolve() == Path(image).resolve().parent:
        raise ConfigError(f"{image} is in {out}, where images are replaced. Choose another --out.")
    found = feature_maps(model, model.read(image, limits))
    if out is not None:
        _write(Path(out), found)
    return found


def feature_maps(model: Autoencoder, image: Tensor) -> FeatureMaps:
    """Show an image (1, 3, H, W) in [0, 1] through each convolution layer of the encoder."""
    layers = [_most_active_first(layer) for layer in trace(model, image).layers]
    pixels = to_pixels(image)[0]
    return FeatureMaps(pixels, layers, _sheet(pixels, layers))


def layer_grid(found: FeatureMaps, index: int) -> Pixels:
    """Draw the image and the 63 most active channels of one layer: (height, width, 3)."""
    layer = found.layers[index]
    tiles = np.concatenate([found.image[None], _tiles(layer, GRID_CHANNELS, found.image.shape[:2])])
    captions = ["image", *(f"{channel}" for channel in layer.channels[:GRID_CHANNELS])]
    shown = "" if len(layer.maps) <= GRID_CHANNELS else f"the {GRID_CHANNELS} most active of "
    described = _description(layer, found.image.shape[:2])
    title = f"layer {index + 1} of {len(found.layers)}: {shown}{described}"
    return image_grid(tiles, captions=captions, title=title, columns=8, highlight_first=True)


def _most_active_first(layer: Layer) -> LayerMaps:
    maps = layer.maps[0].numpy()
    order = np.argsort(-np.abs(maps).mean(axis=(1, 2)), kind="stable")
    high = float(np.quantile(np.abs(maps), WHITE_QUANTILE)) or 1.0
    # If the only negative values are SiLU's shallow dip, grey reads better than two colours.
    low = -high if np.quantile(maps, 1 - WHITE_QUANTILE) < -SHALLOW * high else 0.0
    field, stride = layer.receptive_field_px, layer.stride_px
    return LayerMaps(layer.name, maps[order], order, field, stride, (low, high))


def _tiles(layer: LayerMaps, count: int, size: tuple[int, int]) -> Pixels:
    """Draw the first channels (N, H, W, 3), each value as the square of pixels that it covers."""
    import matplotlib

    low, high = layer.range
    colours = matplotlib.colormaps["RdBu_r" if low else "gray"]
    shown = colours(((layer.maps[:count] - low) / (high - low)).clip(0, 1), bytes=True)[..., :3]
    tall, wide = size[0] // shown.shape[1], size[1] // shown.shape[2]
    return shown.repeat(tall, axis=1).repeat(wide, axis=2)  # type: ignore[no-any-return]


def _sheet(image: Pixels, layers: list[LayerMaps]) -> Pixels:
    count = min(SHEET_CHANNELS, *(len(layer.maps) for layer in layers))
    tiles = np.stack([_tiles(layer, count, image.shape[:2]) for layer in layers])
    columns = [("image", image[None].repeat(len(layers), axis=0))]
    columns += [("most active" if at == 0 else f"{at + 1}", tiles[:, at]) for at in range(count)]
    captions = [
        f"layer {number}: {_description(layer, image.shape[:2])}" for number, layer in enumerate(layers, 1)
    ]
    return contact_sheet(columns, captions=captions, rows_per_block=len(layers))


def _description(layer: LayerMaps, size: tuple[int, int]) -> str:
    channels, height, width = layer.maps.shape
    field = layer.receptive_field_px
    seen = f"{field[0]}x{field[1]} px"
    if field[0] >= 2 * size[0] and field[1] >= 2 * size[1]:
        seen = "the whole image"  # from every position
    low, high = layer.range
    colours = f"blue {low:.2g} to red {high:.2g}" if low else f"black 0 to white {high:.2g}"
    return f"{channels} channels of {height}x{width}, a value sees {seen}, {colours}"


def _write(folder: Path, found: FeatureMaps) -> None:
    claim_folder(folder, TABLE_NAME, "features")
    write_bytes(folder / TABLE_NAME, _table(found))
    save_image(folder / SHEET_NAME, found.sheet)
    names = [f"layer-{index + 1:02}.png" for index in range(len(found.layers))]
    for index, name in enumerate(names):
        save_image(folder / name, layer_grid(found, index))
    # Files of an earlier call with a deeper model would look like layers of this one.
    for earlier in set(folder.glob("layer-*.png")) - {folder / name for name in names}:
        earlier.unlink()


def _table(found: FeatureMaps) -> bytes:
    rows: list[list[object]] = [
        ["layer", "name", "channels", "height", "width", "receptive_field_px", "stride_px", "low", "high"]
    ]
    for number, layer in enumerate(found.layers, 1):
        field, stride = ("x".join(map(str, pair)) for pair in (layer.receptive_field_px, layer.stride_px))
        low, high = (f"{value:.6g}" for value in layer.range)
        rows.append([number, layer.name, *layer.maps.shape, field, stride, low, high])
    return csv_bytes(rows)
