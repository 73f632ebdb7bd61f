"""The sixteen figures of the paper, drawn from the models of a study; a figure without its model is left out.

Images are (N, 3, H, W) in [0, 1], pixels (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from autoencode.feature_maps import feature_maps
from autoencode.figures import contact_sheet, image_grid, plots, strip
from autoencode.generation import generate
from autoencode.models.convolutions import Bias
from autoencode.morphing import interpolated
from autoencode.pixels import to_float, to_pixels
from autoencode.report import pictures
from autoencode.report.page import Figure, figure_of

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes

    from autoencode.models.autoencoder import Autoencoder
    from autoencode.paper.results import Results

SAMPLES = 16  # as many as fit beside each other for four models
SIGMAS = ("vae-0.1", "vae-0.01", "vae-0.001", "vae-auto")  # the paper's from wide to narrow, then the learned
WARMUPS = {
    "vae-long": "neither",
    "vae-only-batch-norm": "batch norm",
    "vae-only-warmup": "warm-up",
    "vae-warmup": "both",
}

BLOCKS_PER_ROW = 7  # the paper's encoder in one row, and captions still readable on a page
_KINDS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Conv2d: ("convolution", plots.BLUE),
    nn.ConvTranspose2d: ("transposed\nconvolution", plots.VERMILION),
    nn.Linear: ("linear", plots.GREEN),
}
_ROLES = {"to_mean": "linear: the code", "to_log_variance": "linear: its log-variance"}
_FOLLOWERS: dict[type[nn.Module], str] = {
    Bias: "bias",
    nn.BatchNorm2d: "batch norm",
    nn.MaxPool2d: "max-pool",
    nn.ReLU: "ReLU",
    nn.SiLU: "SiLU",
}


def draw_figures(results: Results) -> list[Figure]:
    """Return the figures for which there are models, in the paper's order."""
    return [draw(results) for needs, draw in _FIGURES if results.has(*needs)]


def _shown(results: Results, count: int) -> pictures.Rows:
    return pictures.some(results.pack.held_out().rows, count, results.plan.seed)


def _data(results: Results) -> Figure:
    return pictures.data_sheet(results.pack, "Figure 1", results.plan.seed)


def _architecture(name: str, label: str, title: str, caption: str) -> Callable[[Results], Figure]:
    return lambda results: _plot(architecture_figure(results.models[name], label), caption, title)


def _transposed(results: Results) -> Figure:
    model = results.models["ae"]
    image = to_float(results.pack.pixels(_shown(results, 1)))
    module, before = _first_transposed(model, image)
    # The most active channel: most others are nearly black and would show nothing.
    channel = int(before[0].flatten(1).norm(dim=1).argmax())
    # A transposed convolution of stride 2 is a convolution of the map with zeros set between its values.
    spread = torch.zeros(1, 1, 2 * before.shape[2] - 1, 2 * before.shape[3] - 1)
    spread[0, 0, ::2, ::2] = before[0, channel]
    with torch.inference_mode():
        after = module(before)
    best = int(after[0].flatten(1).std(dim=1).argmax())
    kernel = module.weight[channel, best][None, None]
    maps = [before[:, channel : channel + 1], spread, kernel, after[:, best : best + 1]]
    names = ("map that enters", "spread by its stride", "the kernel", "map that leaves")
    side = 144  # the kernel is 4 pixels wide: enlarged, it can be seen
    nearest = Image.Resampling.NEAREST
    enlarged = [np.asarray(Image.fromarray(tile).resize((side, side), nearest)) for tile in map(_grey, maps)]
    caption = (
        "A transposed convolution of a real image. It sets the values of a map apart by its stride, with "
        "zeros between them, and each value adds the kernel, scaled. Shown are input map "
        f"{channel} of {before.shape[1]} and output map {best} of {after.shape[1]}, the sum over all inputs."
    )
    return figure_of(image_grid(np.stack(enlarged), captions=names, columns=4, scale=1), "Figure 3", caption)


def _losses(results: Results) -> Figure:
    caption = "Losses of the autoencoder. No overfitting would mean that the two lines stay together."
    return pictures.curves(results.records["ae"], "Figure 4", "Autoencoder", caption)


def _reconstructions(results: Results) -> Figure:
    shown = {name: results.models[name] for name in ("ae", "best") if results.has(name)}
    names = {"ae": "autoencoder", "best": "starts as PCA"}
    caption = "Held-out images and their reconstructions. Look at edges and details."
    images = to_float(results.pack.pixels(_shown(results, 12)))
    columns = [("original", to_pixels(images))]
    columns += [(names[name], to_pixels(model.reconstruct(images))) for name, model in shown.items()]
    return figure_of(contact_sheet(columns), "Figure 5", caption)


def _morph(results: Results) -> Figure:
    model = results.models["ae"]
    codes = model.encode(to_float(results.pack.pixels(_shown(results, 2))))
    if len(codes) < 2:  # a study of one image
        codes = codes.repeat(2, 1)
    along, _ = interpolated(codes, 9, "linear")  # equation 3 is linear; `morph` itself offers other paths
    caption = "From one held-out image to another along the line between their codes (equation 3)."
    return figure_of(strip(to_pixels(model.decode(along))), "Figure 6", caption)


def _features(results: Results) -> Figure:
    found = feature_maps(results.models["ae"], to_float(results.pack.pixels(_shown(results, 1))))
    caption = (
        "Feature maps of one image, shallow to deep: the most active maps of each layer, on one scale within "
        "a layer. Shallow maps keep edges; deep maps show where something is."
    )
    return figure_of(found.sheet, "Figure 7", caption)


def _neighbours(results: Results) -> Figure:
    pack, queries = results.pack, _shown(results, 3)
    # Without the queries, each of which would be its own nearest neighbour.
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


def _restored(
    name: str, restorer: str, corruption: str, title: str, caption: str
) -> Callable[[Results], Figure]:
    def draw(results: Results) -> Figure:
        models: dict[str, Callable[[Tensor], Tensor]] = {name: results.models[name].reconstruct}
        if restorer in results.restorers:
            models[restorer] = results.restorers[restorer].restore
        return pictures.restored(models, results.pack, _shown(results, 10), corruption, title, caption)

    return draw


def _sigma_samples(results: Results) -> Figure:
    shown = [name for name in SIGMAS if results.has(name)]
    grids = {name.replace("vae-", "sigma2 "): _normal_samples(results, name) for name in shown}
    caption = (
        "Samples from N(0, I) for each sigma2. A wide likelihood gives one average image; a narrow one gives "
        "images of codes the decoder never saw."
    )
    return _side_by_side(grids, "Figure 12", caption)


def _warmup(results: Results) -> Figure:
    runs = {name: results.records[name] for name in ("vae-warmup", "vae-long")}
    quantities = {"train_kl": "KL (nats per image)", "beta": "weight of the KL, β"}
    caption = "The KL while its weight rises, against a run where it is 1 from the start."
    return _plot(plots.comparison_figure(runs, quantities, "KL and its weight"), caption, "Figure 13")


def _losses_of_warmup(results: Results) -> Figure:
    runs = {name: results.records[name] for name in WARMUPS if results.has(name)}
    quantities = {
        "val_mse": "validation mean squared error",
        "val_kl": "validation KL (nats per image)",
        "val_bits_per_dimension": "bits per dimension, at most",
    }
    caption = (
        "The paper compares the first with the last and changes two things at once; here each change is also "
        "seen alone, for as many epochs."
    )
    title = "Warm-up and batch normalisation"
    return _plot(plots.comparison_figure(runs, quantities, title), caption, "Figure 14")


def _samples_of_warmup(results: Results) -> Figure:
    grids = {shown: _normal_samples(results, name) for name, shown in WARMUPS.items() if results.has(name)}
    caption = "Samples from N(0, I) with and without warm-up and batch normalisation, for as many epochs."
    return _side_by_side(grids, "Figure 15", caption)


def _outliers(results: Results) -> Figure:
    reference = results.reference("vae-0.01")
    assert reference.median_kl_nats is not None
    measured = {"test": reference.calibration, "validation": reference.validation}
    # Both splits: the threshold was fitted to neither, so about half of each lies to its right.
    groups = {split: scores["kl"] for split, scores in measured.items() if len(scores.get("kl", ()))}
    figure = plots.histogram_figure(groups, reference.median_kl_nats, "The paper's outlier score", "KL, nats")
    caption = (
        "KL of held-out images, all of them normal, and the paper's threshold, the median KL of training "
        "images: images to its right are called outliers."
    )
    return _plot(figure, caption, "Figure 16")


def _side_by_side(grids: Mapping[str, pictures.Pixels], title: str, caption: str) -> Figure:
    # Blocks of eight: with four models the sheet stays as wide as a page.
    return figure_of(contact_sheet(list(grids.items()), rows_per_block=8), title, caption)


def _plot(drawn: matplotlib_figure.Figure, caption: str, title: str) -> Figure:
    return Figure(plots.png_of(drawn), caption, title)


def _normal_samples(results: Results, name: str) -> pictures.Pixels:
    return generate(results.models[name], SAMPLES, prior="normal", seed=results.plan.seed).pixels


def _first_transposed(model: Autoencoder, image: Tensor) -> tuple[nn.ConvTranspose2d, Tensor]:
    """Return the first transposed convolution and its input."""
    module = next(one for one in model.decoder.modules() if isinstance(one, nn.ConvTranspose2d))
    entered: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        model.reconstruct(image)
    finally:
        handle.remove()
    return module, entered[0]


def _grey(one: Tensor) -> pictures.Pixels:
    """Return (1, 1, H, W) as pixels (H, W, 3) from black, the smallest value, to white, the largest."""
    low, high = float(one.min()), float(one.max())
    # A map of one value has no range to spread.
    scaled = (one - low) / (high - low) if high > low else torch.zeros_like(one)
    pixels: pictures.Pixels = to_pixels(scaled.detach().expand(1, 3, -1, -1))[0]
    return pixels


def _small(pixels: pictures.Pixels) -> pictures.Vectors:
    """Return pixels as vectors, averaged down to a side of about 16; mid-grey is 0."""
    # Averaged: at full size, neighbours by pixels need the same pixel in the same place.
    step = max(1, min(pixels.shape[1:3]) // 16)
    height, width = pixels.shape[1] // step * step, pixels.shape[2] // step * step
    blocks = pixels[:, :height, :width].reshape(len(pixels), height // step, step, width // step, step, 3)
    vectors: pictures.Vectors = blocks.mean(axis=(2, 4)).reshape(len(pixels), -1).astype(np.float32) - 127.5
    return vectors


_LAYERS = (
    "The autoencoder, drawn from the network itself: each block is a layer, as tall as its maps and as wide "
    "as it has channels (both logarithmic), with the shape of its output and its number of weights."
)
_HALVES = "The VAE: the same two halves, and a code of means and log-variances."
_NOISE = (
    "Clean, with Gaussian noise of standard deviation 0.3, and restored by the paper's network, through a "
    "code, and by one with skips around the bottleneck."
)
_DROPPED = (
    "Clean, after a dropout layer of rate 0.3 (kept values are brighter, as in training), and restored by "
    "both networks."
)
_FIGURES: tuple[tuple[tuple[str, ...], Callable[[Results], Figure]], ...] = (
    ((), _data),
    (("ae",), _architecture("ae", "The autoencoder", "Figure 2", _LAYERS)),
    (("ae",), _transposed),
    (("ae",), _losses),
    (("ae",), _reconstructions),
    (("ae",), _morph),
    (("ae",), _features),
    (("ae",), _neighbours),
    (("denoise",), _restored("denoise", "restore-noise", "gaussian:0.3", "Figure 9", _NOISE)),
    (("dropout",), _restored("dropout", "restore-dropout", "dropout:0.3", "Figure 10", _DROPPED)),
    (("vae-0.01",), _architecture("vae-0.01", "The VAE", "Figure 11", _HALVES)),
    (("vae-0.1", "vae-0.01", "vae-0.001"), _sigma_samples),
    (("vae-warmup", "vae-long"), _warmup),
    (("vae-warmup", "vae-long"), _losses_of_warmup),
    (("vae-warmup", "vae-long"), _samples_of_warmup),
    (("vae-0.01",), _outliers),
)


@dataclass
class Block:
    """A layer with weights and the layers without weights that follow it.

    Attributes:
        name: name of the module, such as "encoder.layers.0".
        kind: such as "3x3 convolution".
        shape: shape of its output, after the followers: (C, H, W) or (C,).
        parameters: its number of weights, with those of a following batch normalisation.
        followers: such as ["max-pool", "ReLU"].
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    colour: str
    followers: list[str] = field(default_factory=list)


@torch.inference_mode()
def blocks_of(model: Autoencoder) -> list[Block]:
    """Return the layers in the order in which an image passes through them."""
    blocks: list[Block] = []

    def seen(name: str, module: nn.Module) -> Any:  # noqa: ANN401 - a hook
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:  # noqa: ANN401
            count = sum(parameter.numel() for parameter in module.parameters())
            shape = tuple(output.shape[1:])
            if type(module) in _KINDS:
                kind, colour = _KINDS[type(module)]
                sides = getattr(module, "kernel_size", None)
                kind = f"{sides[0]}x{sides[1]} {kind}" if sides else f"{_ROLES.get(name, kind)}"
                blocks.append(Block(name, kind, shape, count, colour))
            elif blocks:
                blocks[-1].followers.append(_FOLLOWERS.get(type(module), type(module).__name__))
                blocks[-1].shape, blocks[-1].parameters = shape, blocks[-1].parameters + count

        return module.register_forward_hook(hook)

    handles = [seen(name, leaf) for name, leaf in model.named_modules() if not list(leaf.children())]
    training = model.training
    try:
        size = (model.preprocessing.height, model.preprocessing.width)
        model.eval()(torch.zeros(1, 3, *size, device=model.to_mean.weight.device))
    finally:  # the model is the caller's, and may be in training
        model.train(training)
        for handle in handles:
            handle.remove()
    return blocks


def architecture_figure(model: Autoencoder, title: str) -> matplotlib_figure.Figure:
    """Draw the layers as blocks, as tall as their maps and as wide as their channels, both logarithmic.

    Args:
        model: any.
        title: a line above the drawing.
    """
    blocks = blocks_of(model)
    rows = _rows(blocks)
    count = sum(block.parameters for block in blocks)
    size_inches = 1.65 * max(map(len, rows)), 2.6 * len(rows) + 0.5
    drawn = plots.new_figure(*size_inches, f"{title}: {count:,} parameters")
    for index, row in enumerate(rows):
        axes = drawn.add_subplot(len(rows), 1, index + 1)
        axes.set_xlim(-0.6, max(map(len, rows)) - 0.4)
        axes.set_ylim(-1.35, 1.1)
        axes.axis("off")
        _draw_row(axes, row)
    return drawn


def _rows(blocks: Sequence[Block]) -> list[Sequence[Block]]:
    """Return the rows of the drawing; the decoder starts a new one."""
    # A decoder below its encoder shows the symmetry of the two.
    split = next(index for index, block in enumerate(blocks) if block.name.startswith("decoder."))
    halves = blocks[:split], blocks[split:]
    return [
        half[start : start + BLOCKS_PER_ROW]
        for half in halves
        for start in range(0, len(half), BLOCKS_PER_ROW)
    ]


def _draw_row(axes: Axes, row: Sequence[Block]) -> None:
    for position, block in enumerate(row):
        # Logarithmic: 128 pixels beside 4 would leave nothing to see of the small maps.
        side = block.shape[1] if len(block.shape) == 3 else 1
        height, width = 0.3 + 0.17 * math.log2(side + 1), 0.06 + 0.045 * math.log2(block.shape[0])
        outline: dict[str, Any] = {"edgecolor": plots.INK, "linewidth": 0.6, "alpha": 0.75}
        axes.bar(position, height, width, bottom=0.3 - height / 2, color=block.colour, **outline)
        if position:
            arrow = {"arrowstyle": "-|>", "mutation_scale": 7, "color": plots.ORANGE}
            axes.annotate("", (position - 0.26, 0.3), (position - 0.78, 0.3), arrowprops=arrow)
        shape = " × ".join(map(str, block.shape))
        lines = [block.kind, *([", ".join(block.followers)] if block.followers else []), shape]
        lines.append(f"{block.parameters:,} weights")
        axes.text(position, -0.5, "\n".join(lines), ha="center", va="top", fontsize=7.5, color=plots.INK)
