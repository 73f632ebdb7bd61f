"""Figures shared by the page of a run and the page of the paper, each with a caption.

Pixels are (N, H, W, 3) in 0..255, codes (N, D). Rows are rows of a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode import projection
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import batches, random_seed
from autoencode.figures import contact_sheet, image_grid
from autoencode.figures.plots import curves_figure, png_of
from autoencode.generation import generate
from autoencode.metrics.images import mean_squared_error
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.pixels import to_float, to_pixels
from autoencode.report.page import Figure, figure_of

if TYPE_CHECKING:
    from torch import Tensor

    from autoencode.configuration import PriorName
    from autoencode.data.pack import Pack

MOST_SEARCHED = 20_000  # images searched for neighbours: the codes of more would take minutes on a CPU
# A map has room for 576 tiles; of 2,000 images most cells have one, and the pixels of more are not needed.
MAP_SIDE_PX, MAP_TILE_PX, MAP_IMAGES = 960, 40, 2_000

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]


def some(rows: Rows, count: int, seed: int) -> Rows:
    """Return a random choice of `count` distinct rows, or all if there are fewer."""
    # Distinct rows: of copies only one is drawn.
    generator = np.random.default_rng(random_seed("pictures", seed))
    return generator.permutation(np.unique(rows))[:count]


def codes_of(model: Autoencoder, pack: Pack, rows: Rows) -> Vectors:
    """Return the codes (N, D) of rows; posterior means of a VAE."""
    parts = [model.encode(images) for images in batches(pack, rows, INFERENCE_BATCH)]
    return torch.cat(parts).numpy()


def data_sheet(pack: Pack, title: str, seed: int = 0) -> Figure:
    """Draw a random choice of the images."""
    rows = some(pack.rows(), 48, seed)  # four rows of twelve: the whole sheet fits on a screen
    size = f"{pack.preprocessing.height}x{pack.preprocessing.width}"
    return figure_of(
        image_grid(pack.pixels(rows), columns=12, scale=1),
        title,
        f"{len(rows)} of {len(pack):,} images, drawn at random, at {size}, the size the model takes.",
    )


def curves(records: Sequence[Mapping[str, Any]], title: str, name: str, caption: str) -> Figure:
    """Draw the curves of a run."""
    return Figure(png_of(curves_figure(records, name)), caption, title)


def best_median_worst(model: Autoencoder, pack: Pack, rows: Rows, title: str) -> Figure:
    """Draw the four images with the best, the median and the worst reconstructions."""
    images = to_float(pack.pixels(rows))
    restored = model.reconstruct(images)
    errors = mean_squared_error(restored, images)
    order = errors.argsort()
    middle = len(order) // 2
    # A set: with fewer than twelve images the three groups overlap.
    places = sorted({*range(4), *range(middle - 2, middle + 2), *range(len(order) - 4, len(order))})
    picked = order[[place for place in places if 0 <= place < len(order)]]
    columns = [("original", to_pixels(images[picked])), ("reconstruction", to_pixels(restored[picked]))]
    captions = [f"mse {float(errors[index]):.4f}" for index in picked]
    return figure_of(
        contact_sheet(columns, captions=captions, rows_per_block=4),
        title,
        f"The best, median and worst of {len(rows):,} held-out images by mean squared error. A feature that "
        "the worst have in common is one the model has not learned.",
    )


def restored(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    pack: Pack,
    rows: Rows,
    corruption: str,
    title: str,
    caption: str,
) -> Figure:
    """Draw images clean, corrupted, and restored by each model, a function of images (B, 3, H, W)."""
    clean = to_float(pack.pixels(rows))
    # Seeded by the corruption: a page written again shows the same noise.
    generator = torch.Generator().manual_seed(random_seed("pictures", corruption))
    seen = corrupt(clean, parse_corruptions([corruption]), generator, training=True)
    columns = [("clean", to_pixels(clean)), (corruption, to_pixels(seen))]
    columns += [(name, to_pixels(restore(seen))) for name, restore in models.items()]
    return figure_of(contact_sheet(columns), title, caption)


def samples(
    model: Autoencoder, prior: PriorName, title: str, caption: str, *, count: int = 24, seed: int = 0
) -> Figure:
    """Draw images decoded from samples of a prior."""
    made = generate(model, count, prior=prior, seed=seed)
    return figure_of(image_grid(made.pixels, columns=12, scale=1), title, caption)


def scored(pack: Pack, rows: Rows, scores: NDArray[np.float64], title: str, caption: str) -> Figure:
    """Draw images with their scores (N,)."""
    captions = [f"{score:.2f}" for score in scores]
    return figure_of(image_grid(pack.pixels(rows), captions=captions, columns=6), title, caption)


def neighbours(
    encoders: Mapping[str, Callable[[Rows], Vectors]],
    pack: Pack,
    queries: Rows,
    searched: Rows,
    title: str,
    caption: str,
) -> Figure:
    """Draw a few images, each followed by its nearest neighbours by several kinds of vectors.

    Args:
        encoders: functions from rows (N,) to vectors (N, F), by name; vectors are compared by their angle.
        pack: the pack of the images.
        queries: (Q,) rows.
        searched: (S,) rows.
        title: title of the figure.
        caption: caption of the figure.
    """
    count = min(6, len(searched))  # seven tiles per row can still be seen on a phone
    tiles: dict[tuple[int, str], Pixels] = {}
    for name, encode in encoders.items():
        similarity = _unit(encode(queries)) @ _unit(encode(searched)).T
        for query, near in enumerate(np.argsort(-similarity, axis=1, kind="stable")[:, :count]):
            tiles[query, name] = pack.pixels(np.concatenate([queries[query : query + 1], searched[near]]))
    shown = [(query, name) for query in range(len(queries)) for name in encoders]
    captions = [text for _, name in shown for text in (name, *map(str, range(1, count + 1)))]
    grid = image_grid(np.concatenate([tiles[key] for key in shown]), captions=captions, columns=count + 1)
    return figure_of(grid, title, caption)


def code_map(model: Autoencoder, pack: Pack, rows: Rows, title: str) -> Figure:
    """Draw images at the first two principal components of their codes."""
    rows = rows[:MAP_IMAGES]
    plane, explained = projection.code_map(model, codes_of(model, pack, rows))
    canvas = _scattered(plane, pack.pixels(rows))
    return figure_of(
        canvas,
        title,
        f"{len(rows):,} images by the first two principal components of their codes, which hold "
        f"{explained:.0%} of the variance. Images with similar codes lie near each other; of images that "
        "overlap, one is shown.",
    )


def _scattered(plane: NDArray[np.float64], pixels: Pixels) -> Pixels:
    from PIL import Image

    spread = np.abs(plane).max(axis=0)
    # Limits at a percentile: one stray code must not press the others into a corner.
    limit = np.maximum(np.percentile(np.abs(plane), 99, axis=0), 1e-9 + 0 * spread)
    at = (np.clip(plane / limit, -1, 1) + 1) / 2 * (MAP_SIDE_PX - MAP_TILE_PX)
    canvas = Image.new("RGB", (MAP_SIDE_PX, MAP_SIDE_PX), "white")
    taken: set[tuple[int, int]] = set()
    for (x, y), image in zip(at, pixels, strict=True):
        cell = (int(x) // MAP_TILE_PX, int(y) // MAP_TILE_PX)
        if cell in taken:  # a pile of overlapping tiles would show only the last
            continue
        taken.add(cell)
        tile = Image.fromarray(image)
        tile.thumbnail((MAP_TILE_PX - 2, MAP_TILE_PX - 2))
        canvas.paste(tile, (cell[0] * MAP_TILE_PX, cell[1] * MAP_TILE_PX))
    return np.asarray(canvas)


def _unit(vectors: Vectors) -> Vectors:
    # In 64 bits: the codes of a model that learned nothing may be too large to square in 32.
    wide = vectors.astype(np.float64)
    unit: Vectors = (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit
