"""The sixteen figures of the paper, from the models of a study; one whose model is missing is left out.

Images are (N, 3, H, W) in [0, 1], pixels (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from autoencode.feature_maps import feature_maps
from autoencode.figures import image_grid, strip
from autoencode.figures.plots import comparison_figure, histogram_figure, png_of
from autoencode.generation import generate
from autoencode.morphing import mixed
from autoencode.paper.architecture import architecture_figure
from autoencode.pixels import to_float, to_pixels
from autoencode.report import pictures
from autoencode.report.page import Figure, figure_of

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.paper.claims import Results

SAMPLES = 16
SIGMAS = ("vae-0.1", "vae-0.01", "vae-0.001", "vae-auto")
WARMUPS = ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup")


def figures(results: Results) -> list[Figure]:
    """Return the figures for which there are models, in the paper's order."""
    return [draw(results) for needs, draw in _FIGURES if results.has(*needs)]


def _shown(results: Results, count: int) -> pictures.Rows:
    return pictures.some(results.pack.held_out().rows, count, results.plan.seed)


def _data(results: Results) -> Figure:
    return pictures.data_sheet(results.pack, "Figure 1", results.plan.seed)


def _architecture(results: Results) -> Figure:
    caption = (
        "The autoencoder, read off the network itself: each block is a layer, as tall as its maps and as "
        "wide as it has channels (both logarithmic), with what leaves it and how many weights it has."
    )
    return Figure(png_of(architecture_figure(results.models["ae"], "The autoencoder")), caption, "Figure 2")


def _transposed(results: Results) -> Figure:
    model = results.models["ae"]
    image = to_float(results.pack.pixels(_shown(results, 1)))
    module, before = _first_transposed(model, image)
    channel = int(before[0].flatten(1).norm(dim=1).argmax())
    spread = torch.zeros(1, 1, 2 * before.shape[2] - 1, 2 * before.shape[3] - 1)
    spread[0, 0, ::2, ::2] = before[0, channel]
    with torch.inference_mode():
        after = module(before)
    best = int(after[0].flatten(1).std(dim=1).argmax())
    kernel = module.weight[channel, best][None, None]
    maps = [before[:, channel : channel + 1], spread, kernel, after[:, best : best + 1]]
    names = ("map that enters", "spread by its stride", "the kernel", "map that leaves")
    tiles = [_grey(one) for one in maps]
    side = 144
    enlarged = [np.asarray(_resized(tile, side)) for tile in tiles]
    caption = (
        "A transposed convolution at work on a real image. Values of a map are set apart by the stride, "
        "zeros "
        f"between them, and every one paints the kernel. Map {channel} of {before.shape[1]} enters, map "
        f"{best} of "
        f"{after.shape[1]} leaves; what leaves is the sum over all maps that enter."
    )
    return figure_of(image_grid(np.stack(enlarged), captions=names, columns=4, scale=1), "Figure 3", caption)


def _losses(results: Results) -> Figure:
    caption = "Losses of the autoencoder. No overfitting would mean that the two lines stay together."
    return pictures.curves(results.records["ae"], "Figure 4", "Autoencoder", caption)


def _reconstructions(results: Results) -> Figure:
    shown = {name: results.models[name] for name in ("ae", "best") if results.has(name)}
    names = {"ae": "autoencoder", "best": "starts as PCA"}
    caption = (
        "Held-out images and what is made of the numbers each was squeezed into. Look at edges and details."
    )
    models = {names[name]: model for name, model in shown.items()}
    return pictures.reconstructions(models, results.pack, _shown(results, 12), "Figure 5", caption)


def _morph(results: Results) -> Figure:
    model = results.models["ae"]
    codes = model.encode(to_float(results.pack.pixels(_shown(results, 2))))
    if len(codes) < 2:
        codes = codes.repeat(2, 1)
    along, _ = mixed(codes, 9, "linear")
    caption = "From one held-out image to another along the line between their codes (equation 3)."
    return figure_of(strip(to_pixels(model.decode(along))), "Figure 6", caption)


def _features(results: Results) -> Figure:
    found = feature_maps(results.models["ae"], to_float(results.pack.pixels(_shown(results, 1))))
    caption = (
        "What the convolutions see of one image, shallow to deep: the most active maps of each layer, on "
        "one scale "
        "within a layer. Shallow maps keep edges, deep ones say where something is."
    )
    return figure_of(found.sheet, "Figure 7", caption)


def _neighbours(results: Results) -> Figure:
    pack, queries = results.pack, _shown(results, 3)
    searched = np.setdiff1d(pictures.some(pack.rows(), pictures.MOST_SEARCHED, 1), queries)
    names = {"ae": "codes", "best": "codes of best"}
    encoders: dict[str, Callable[[pictures.Rows], pictures.Vectors]] = {
        name: functools.partial(pictures.codes_of, results.models[run], pack)
        for run, name in names.items()
        if results.has(run)
    }
    encoders["pixels"] = lambda rows: _small(pack.pixels(rows))
    caption = (
        f"Held-out images, each followed by the nearest of {len(searched):,} by the angle between codes, "
        "and, for comparison, between the pixels themselves."
    )
    return pictures.neighbours(encoders, pack, queries, searched, "Figure 8", caption)


def _restored(name: str, corruption: str, title: str, caption: str) -> Callable[[Results], Figure]:
    def draw(results: Results) -> Figure:
        model, rows = results.models[name], _shown(results, 10)
        return pictures.restored(model, results.pack, rows, corruption, title, caption)

    return draw


def _vae_architecture(results: Results) -> Figure:
    model = results.models["vae-0.01"]
    caption = "The VAE: the same two halves, and a code of means and log-variances."
    return Figure(png_of(architecture_figure(model, "The VAE")), caption, "Figure 11")


def _sigma_samples(results: Results) -> Figure:
    grids = {
        name.replace("vae-", "sigma2 "): _normal_samples(results, name)
        for name in SIGMAS
        if results.has(name)
    }
    caption = (
        "Samples from N(0, I) for each sigma2. A wide likelihood gives one average image; a narrow one gives "
        "images of codes the decoder never saw."
    )
    return pictures.side_by_side(grids, "Figure 12", caption)


def _warmup(results: Results) -> Figure:
    runs = {name: results.records[name] for name in ("vae-warmup", "vae-long")}
    quantities = {"train_kl": "KL (nats an image)", "beta": "weight of the KL, β"}
    caption = "The KL while its weight rises, against a run where it is 1 from the start."
    return Figure(png_of(comparison_figure(runs, quantities, "KL and its weight")), caption, "Figure 13")


def _losses_of_warmup(results: Results) -> Figure:
    runs = {name: results.records[name] for name in WARMUPS if results.has(name)}
    quantities = {
        "val_mse": "validation mean squared error",
        "val_kl": "validation KL (nats an image)",
        "val_bits_per_dimension": "bits a dimension, at most",
    }
    caption = (
        "The paper compares the first with the last, and changes two things at once; here each is also seen "
        "alone, "
        "for as many epochs."
    )
    title = "Warm-up and batch normalisation"
    return Figure(png_of(comparison_figure(runs, quantities, title)), caption, "Figure 14")


def _samples_of_warmup(results: Results) -> Figure:
    names = {
        "vae-long": "neither",
        "vae-only-batch-norm": "batch norm",
        "vae-only-warmup": "warm-up",
        "vae-warmup": "both",
    }
    grids = {names[name]: _normal_samples(results, name) for name in WARMUPS if results.has(name)}
    caption = "Samples from N(0, I) with and without warm-up and batch normalisation, for as many epochs."
    return pictures.side_by_side(grids, "Figure 15", caption)


def _outliers(results: Results) -> Figure:
    reference = results.reference("vae-0.01")
    assert reference.median_kl_nats is not None
    groups = {
        split: scores["kl"]
        for split, scores in (("test", reference.calibration), ("validation", reference.validation))
        if len(scores.get("kl", ()))
    }
    figure = histogram_figure(groups, reference.median_kl_nats, "The paper's outlier score", "KL, nats")
    caption = (
        "KL of held-out images, all of them normal, and the paper's threshold, the median KL of training "
        "images: what lies to its right is called an outlier."
    )
    return Figure(png_of(figure), caption, "Figure 16")


def _normal_samples(results: Results, name: str) -> pictures.Pixels:
    return generate(results.models[name], SAMPLES, prior="normal", seed=results.plan.seed).pixels


def _first_transposed(model: Autoencoder, image: Tensor) -> tuple[nn.ConvTranspose2d, Tensor]:
    """Return the first transposed convolution and what enters it."""
    module = next(one for one in model.decoder.modules() if isinstance(one, nn.ConvTranspose2d))
    entered: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        model.reconstruct(image)
    finally:
        handle.remove()
    return module, entered[0]


def _grey(one: Tensor) -> pictures.Pixels:
    """(1, 1, H, W) to pixels (H, W, 3): darkest the smallest value, brightest the largest."""
    low, high = float(one.min()), float(one.max())
    scaled = (one - low) / (high - low) if high > low else torch.zeros_like(one)
    pixels: pictures.Pixels = to_pixels(scaled.detach().expand(1, 3, -1, -1))[0]
    return pixels


def _resized(pixels: pictures.Pixels, side: int) -> pictures.Pixels:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))


def _small(pixels: pictures.Pixels) -> pictures.Vectors:
    """Return pixels as vectors, averaged down to a side of about 16; mid-grey is 0."""
    step = max(1, min(pixels.shape[1:3]) // 16)
    height, width = pixels.shape[1] // step * step, pixels.shape[2] // step * step
    blocks = pixels[:, :height, :width].reshape(len(pixels), height // step, step, width // step, step, 3)
    vectors: pictures.Vectors = blocks.mean(axis=(2, 4)).reshape(len(pixels), -1).astype(np.float32) - 127.5
    return vectors


_NOISE = "Clean, with Gaussian noise of standard deviation 0.3, and restored."
_DROPPED = (
    "Clean, after a dropout layer of rate 0.3 (what is left is brighter, as in training), and restored."
)
_FIGURES: tuple[tuple[tuple[str, ...], Callable[[Results], Figure]], ...] = (
    ((), _data),
    (("ae",), _architecture),
    (("ae",), _transposed),
    (("ae",), _losses),
    (("ae",), _reconstructions),
    (("ae",), _morph),
    (("ae",), _features),
    (("ae",), _neighbours),
    (("denoise",), _restored("denoise", "gaussian:0.3", "Figure 9", _NOISE)),
    (("dropout",), _restored("dropout", "dropout:0.3", "Figure 10", _DROPPED)),
    (("vae-0.01",), _vae_architecture),
    (("vae-0.1", "vae-0.01", "vae-0.001"), _sigma_samples),
    (("vae-warmup", "vae-long"), _warmup),
    (("vae-warmup", "vae-long"), _losses_of_warmup),
    (("vae-warmup", "vae-long"), _samples_of_warmup),
    (("vae-0.01",), _outliers),
)
