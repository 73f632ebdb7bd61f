"""What each convolution layer of the encoder sees in an image (Kovenko & Bogach 2020, Fig. 7).

Shapes: C channels, H and W of the image, h and w of a map. Pixels are (H, W, 3) in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.batches import to_pixels
from autoencode.data.images import Limits, save_image
from autoencode.errors import ConfigError, OutputError
from autoencode.evaluation.figures import contact_sheet, image_grid
from autoencode.files import csv_bytes, make_folder, write_bytes
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.layers import Layer, trace
from autoencode.models.modelfile import as_model

TABLE_NAME, SHEET_NAME = "layers.csv", "layers.png"
GRID_CHANNELS, SHEET_CHANNELS = 63, 7  # with the image itself, 8 rows of 8 and rows of 8

# White is reached at this quantile of a layer: a single bright value would leave the rest black.
WHITE_QUANTILE = 0.998
SHALLOW = 0.25  # of the largest values

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class LayerMaps:
    """What one layer made of the image.

    Attributes:
        name: of the convolution within the model, such as "encoder.layers.0".
        maps: (C, h, w) float32, what the next layer is given; the most active channel first, by its mean
            absolute value.
        channels: (C,) the number of each channel within the layer, in that order.
        receptive_field_px: (height, width) of the square of pixels that each value depends on; larger than
            the image where the last layers see all of it.
        stride_px: (vertical, horizontal) pixels from one value to the next.
        range: values shown as black and white, or, where a layer has negative values that matter, as
            blue and red around white; the same for every channel.
    """

    name: str
    maps: NDArray[np.float32]
    channels: NDArray[np.int64]
    receptive_field_px: tuple[int, int]
    stride_px: tuple[int, int]
    range: tuple[float, float]


@dataclass(frozen=True)
class FeatureMaps:
    """What `features` found.

    Attributes:
        image: (H, W, 3), as the model is given it.
        layers: shallow to deep.
        sheet: (height, width, 3), the most active channels of every layer, a row a layer.
    """

    image: Pixels
    layers: list[LayerMaps]
    sheet: Pixels


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
        limits: the largest file and picture to accept.

    Raises:
        ModelFileError: the path given leads to no model.
        ConfigError: the image is one of those in `out`.
        ImageError: the image cannot be used.
        OutputError: `out` is something else, or cannot be written.
    """
    model = as_model(model)
    if out is not None and Path(image).is_file() and Path(out).resolve() == Path(image).resolve().parent:
        raise ConfigError(f"{image} lies in {out}, where pictures are replaced. Choose another --out.")
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
    # Where SiLU's shallow dip below 0 is all there is, grey reads better than two colours.
    low = -high if np.quantile(maps, 1 - WHITE_QUANTILE) < -SHALLOW * high else 0.0
    field, stride = layer.receptive_field_px, layer.stride_px
    return LayerMaps(layer.name, maps[order], order, field, stride, (low, high))


def _tiles(layer: LayerMaps, count: int, size: tuple[int, int]) -> Pixels:
    """Draw the first channels (N, H, W, 3), each value as the square of pixels it stands for."""
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
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TABLE_NAME).exists():
        raise OutputError(f"{folder} is not empty and holds no earlier features. Choose another --out.")
    make_folder(folder)
    write_bytes(folder / TABLE_NAME, _table(found))
    save_image(folder / SHEET_NAME, found.sheet)
    names = [f"layer-{index + 1:02}.png" for index in range(len(found.layers))]
    for index, name in enumerate(names):
        save_image(folder / name, layer_grid(found, index))
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
