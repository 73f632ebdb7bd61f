"""Curves of a run, histograms of scores and confusion matrices, as PNG files.

Matplotlib is imported where it draws, since that takes a while, and never through pyplot, whose global state
holds a caller's own figures.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import atomic_file
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


INK = "#1a1a1a"
# The palette of Okabe and Ito 2008, distinguishable with every common colour blindness.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DOTS_PER_INCH = 160
MOST_MARKERS = 25  # more would cover the line
FEWEST_BINS, MOST_BINS = 12, 60
LONGEST_NAME, MOST_COUNTED = 24, 30  # letters of a class; classes whose counts are still legible


class _Panel(NamedTuple):
    """One set of axes: the quantity of its vertical axis, and the keys of its curves in the records."""

    quantity: str
    training: str | None
    validation: str | None
    # Only errors may be: a logarithmic axis bends the linear warm-up of a schedule.
    may_be_logarithmic: bool = False


LOSS = _Panel("loss", "train_loss", "val_loss", may_be_logarithmic=True)
PANELS = (
    LOSS,
    _Panel("validation mean squared error", None, "val_mse", may_be_logarithmic=True),
    _Panel("reconstruction term", "train_reconstruction", "val_reconstruction", may_be_logarithmic=True),
    _Panel("KL divergence (nats)", "train_kl", "val_kl"),
    _Panel("error of discriminator features, log", "feature_loss", None),
    _Panel("discriminator's loss", "discriminator_loss", None),
    _Panel("adversarial loss of the decoder", "adversarial_loss", None),
    _Panel("validation bits per dimension", None, "val_bits_per_dimension"),
    _Panel("active code dimensions", None, "active_units"),
    _Panel("weight of the KL, β", "beta", None),
    _Panel("observation variance, σ²", "sigma2", None, may_be_logarithmic=True),
    _Panel("perceptual distance of the sharp decoder", "train_perceptual", "val_perceptual"),
    _Panel("loss of its critic", "critic_loss", None),
    _Panel("learning rate", "learning_rate", None),
)


def loss_curves(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the curves of a run as a PNG, a panel for each quantity in its records.

    Args:
        records: one mapping per epoch, in order, with `epoch` and any of the keys in `PANELS`; a value that
            is missing, None or not finite leaves a gap. The epoch of least validation loss is marked.
        path: the PNG to write.
        title: a line above the panels.

    Raises:
        ConfigError: no record holds anything to draw.
        OutputError: `path` cannot be written.
    """
    write_png(curves_figure(records, title), path)


def histogram(
    scores: Mapping[str, NDArray[np.floating[Any]]],
    threshold: float | None,
    path: Path,
    *,
    title: str,
    score_name: str,
) -> None:
    """Draw the distribution of scores in each group, and a threshold, as a PNG.

    The bars of a group add up to 100 %, so that groups of different sizes compare.

    Args:
        scores: (n,) finite scores of each group, by its name.
        threshold: the score above which an image counts as an outlier; None draws none.
        path: the PNG to write.
        title: a line above the figure.
        score_name: what the scores are, with their unit: the label of the horizontal axis.

    Raises:
        ConfigError: no group, or one that is empty or holds a score that is not finite.
        OutputError: `path` cannot be written.
    """
    write_png(histogram_figure(scores, threshold, title, score_name), path)


def confusion_matrix(
    counts: NDArray[np.integer[Any]], classes: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw a confusion matrix as a PNG.

    Args:
        counts: (K, K) images, a row a true class, a column a predicted one. Colours show the share of the
            row, so that rare classes are as legible as common ones.
        classes: K names.
        path: the PNG to write.
        title: a line above the figure.

    Raises:
        ConfigError: the shape of the counts does not match the number of classes.
        OutputError: `path` cannot be written.
    """
    if counts.shape != (len(classes), len(classes)) or not len(classes):
        raise ConfigError(f"A confusion matrix of {len(classes)} classes cannot have shape {counts.shape}.")
    write_png(confusion_figure(counts, classes, title), path)


def curves_figure(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Return what `loss_curves` draws."""
    panels = [panel for panel in PANELS if _has_news(panel, records)]
    if not panels:
        raise ConfigError(
            "There is nothing to draw: no epoch has a finite loss. Train for at least one epoch."
        )
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)  # four as a square, not three and one
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(
        5.6 if columns == 1 else 3.6 * columns, (3.6 if columns == 1 else 2.7 * rows) + 0.4, title
    )
    for position, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, position), panel, records)
    return figure


def _has_news(panel: _Panel, records: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the panel has a point to show that the panel of the loss does not."""
    drawn = _curve(records, panel.training), _curve(records, panel.validation)
    if not np.isfinite(drawn).any():
        return False
    # The validation loss of a plain autoencoder is its mean squared error, up to the order of the sums.
    loss = _curve(records, LOSS.validation)
    return panel is LOSS or not np.allclose(drawn[1], loss, rtol=1e-3, atol=0, equal_nan=True)


def _curve(records: Sequence[Mapping[str, Any]], key: str | None) -> NDArray[np.float64]:
    """Return the values of one key, (epochs,), NaN where there is none."""
    values = [record.get(key) if key else None for record in records]
    curve = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(curve), curve, math.nan)


def _draw_panel(axes: Axes, panel: _Panel, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = np.array([record["epoch"] for record in records])
    training, validation = _curve(records, panel.training), _curve(records, panel.validation)
    marker = "o" if len(epochs) <= MOST_MARKERS else ""
    # Dashes as well as colours: the curves are distinguishable in print without colour.
    dashes = "--" if panel.validation else "-"
    if np.isfinite(training).any():
        axes.plot(epochs, training, dashes, color=BLUE, marker=marker, markersize=3.5, label="training")
    if np.isfinite(validation).any():
        axes.plot(epochs, validation, "-", color=VERMILION, marker=marker, markersize=3.5, label="validation")
        if panel is LOSS:
            best = int(np.nanargmin(validation))
            # A minus sign as on the axes: Matplotlib writes those with U+2212.
            label = f"best: {validation[best]:.4g}, epoch {epochs[best]}".replace("-", "−")
            axes.plot(
                epochs[best], validation[best], "o", color=INK, fillstyle="none", markersize=8, label=label
            )
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel(panel.quantity, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    drawn = np.concatenate([training, validation])
    lowest, highest = np.nanmin(drawn), np.nanmax(drawn)
    if panel.may_be_logarithmic and _spans_a_decade(lowest, highest):
        axes.set_yscale("log")
        _label_plainly(axes.yaxis, lowest, highest)
    elif lowest == highest > 0:
        axes.set_ylim(0, 2 * highest)  # of a constant Matplotlib shows a range of a millionth, with an offset
    tidy(axes)


def histogram_figure(
    scores: Mapping[str, NDArray[np.floating[Any]]], threshold: float | None, title: str, score_name: str
) -> Figure:
    """Return what `histogram` draws."""
    groups = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in scores.items()}
    for name, values in groups.items():
        if not values.size or not np.isfinite(values).all():
            raise ConfigError(f"The scores of {name!r} are {'not all finite' if values.size else 'missing'}.")
    if not groups:
        raise ConfigError("There is no group of scores to draw.")
    figure = new_figure(6.4, 4.0, title)
    axes = figure.add_subplot()
    shown = np.concatenate([*groups.values(), [] if threshold is None else [threshold]])
    edges = _bin_edges(shown)
    for position, (name, values) in enumerate(groups.items()):
        label = f"{name}: {values.size:,} images"
        if threshold is not None:
            label += f", {(values > threshold).mean():.1%} above"
        colour = PALETTE[position % len(PALETTE)]
        percent = 100 * np.histogram(values, edges)[0] / values.size
        # An outline on a tint, so that overlapping groups are both visible.
        axes.stairs(percent, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(
            percent, edges, color=colour, linewidth=1.5, linestyle=("-", "--")[position % 2], label=label
        )
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=":", label=f"threshold: {threshold:.4g}")
    if _spans_a_decade(shown.min(), shown.max()):
        axes.set_xscale("log")
        _label_plainly(axes.xaxis, shown.min(), shown.max())
    axes.set_xlabel(score_name, fontsize=9, parse_math=False)
    axes.set_ylabel("share of the group (%)", fontsize=9)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of groups and runs are a user's, and may hold a $
    tidy(axes)
    return figure


def comparison_figure(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], quantities: Mapping[str, str], title: str
) -> Figure:
    """Draw the same quantities of several runs, a panel a quantity and a line a run.

    Args:
        runs: the records of each run, by its name.
        quantities: label of the vertical axis by the key of the records, such as {"val_mse": "validation
            mean squared error"}. A run without a quantity is left out of its panel.
        title: a line above the panels.

    Raises:
        ConfigError: no run has any of the quantities.
    """
    drawn = {
        key: {
            name: _curve(records, key)
            for name, records in runs.items()
            if np.isfinite(_curve(records, key)).any()
        }
        for key in quantities
    }
    drawn = {key: curves for key, curves in drawn.items() if curves}
    if not drawn:
        raise ConfigError("There is nothing to draw: no run has any of the quantities.")
    figure = new_figure(4.6 * len(drawn), 3.4, title)
    handles: dict[str, Any] = {}
    for position, (key, curves) in enumerate(drawn.items(), start=1):
        axes = figure.add_subplot(1, len(drawn), position)
        for name, curve in curves.items():
            index = list(runs).index(name)
            style = ("-", "--", "-.", ":")[index % 4]
            epochs = [record["epoch"] for record in runs[name]]
            [handles[name]] = axes.plot(epochs, curve, style, color=PALETTE[index % len(PALETTE)], label=name)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel(quantities[key], fontsize=9)
        tidy(axes)
    legend = figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def confusion_figure(counts: NDArray[np.integer[Any]], classes: Sequence[str], title: str) -> Figure:
    """Return what `confusion_matrix` draws."""
    side = min(max(3.6, 1.6 + 0.42 * len(classes)), 16)  # at most 2,560 px: as much as a screen shows
    figure = new_figure(side + 0.6, side + 0.4, title)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in classes]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    if len(classes) <= MOST_COUNTED:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else INK
            axes.text(
                column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour
            )
    axes.set_xlabel("classified as", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    return figure


def _bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edges of bins even on the scale that the axis will have, (bins + 1,)."""
    logarithmic = _spans_a_decade(values.min(), values.max())
    positions = np.log10(values) if logarithmic else values
    # Rice's rule, within bounds: few scores still show a shape, and many no comb of noise.
    bins = min(max(math.ceil(2 * len(values) ** (1 / 3)), FEWEST_BINS), MOST_BINS)
    edges = np.histogram_bin_edges(positions, bins)
    if not logarithmic:
        return edges
    # The outer edges are the extremes themselves: a power of a logarithm may miss them by a rounding, and
    # np.histogram drops values outside.
    return np.concatenate([[values.min()], 10 ** edges[1:-1], [values.max()]])


def _spans_a_decade(lowest: float, highest: float) -> bool:
    return 0 < 10 * lowest < highest


def _label_plainly(axis: Axis, lowest: float, highest: float) -> None:
    """Write 0.02 on a logarithmic axis, not 2 × 10⁻², and few enough numbers to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 1000 * lowest else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def new_figure(width_inches: float, height_inches: float, title: str) -> Figure:
    """Return an empty figure, drawn without pyplot, with a title above what will be in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(width_inches, height_inches),
        dpi=DOTS_PER_INCH,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )
    FigureCanvasAgg(figure)  # attaches itself; pyplot would otherwise choose a canvas by the display
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    return figure


def tidy(axes: Axes) -> None:
    """Give axes a faint grid and no frame."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#8c8c8c")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8c8c8c")


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all.

    Raises:
        OutputError: `path` cannot be written.
    """
    with atomic_file(path) as file:
        file.write(png_of(figure))


def png_of(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes, and the reader of a warning could do nothing.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(stream, format="png")
    return stream.getvalue()
