"""What a network is made of, read off the module itself as an image passes through it, and drawn.

Shapes: C channels or features, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoencode.figures.plots import BLUE, GREEN, INK, ORANGE, VERMILION, new_figure
from autoencode.models.convolutions import Bias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from autoencode.models.autoencoder import Autoencoder


BLOCKS_PER_ROW = 7
_KINDS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Conv2d: ("convolution", BLUE),
    nn.ConvTranspose2d: ("transposed\nconvolution", VERMILION),
    nn.Linear: ("linear", GREEN),
}
_ROLES = {"to_mean": "linear: the code", "to_log_variance": "linear: its log-variance"}
_FOLLOWERS: dict[type[nn.Module], str] = {
    Bias: "bias",
    nn.BatchNorm2d: "batch norm",
    nn.MaxPool2d: "max-pool",
    nn.ReLU: "ReLU",
    nn.SiLU: "SiLU",
}


@dataclass
class Block:
    """A layer with weights, and the ones without that follow it.

    Attributes:
        name: of the module, such as "encoder.layers.0".
        kind: such as "3x3 convolution".
        shape: what leaves it, followers included: (C, H, W), or (C,).
        parameters: how many weights it has, those of a batch normalisation after it included.
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
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return blocks


def architecture_figure(model: Autoencoder, title: str) -> Figure:
    """Draw the layers as blocks, as tall as their maps and as wide as their channels, both logarithmic.

    Args:
        model: any.
        title: a line above the drawing.
    """
    blocks = blocks_of(model)
    rows = _rows(blocks)
    figure = new_figure(
        1.65 * max(map(len, rows)), 2.6 * len(rows) + 0.5, f"{title}: {_count(blocks):,} parameters"
    )
    for index, row in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        axes.set_xlim(-0.6, max(map(len, rows)) - 0.4)
        axes.set_ylim(-1.35, 1.1)
        axes.axis("off")
        _draw_row(axes, row)
    return figure


def _rows(blocks: Sequence[Block]) -> list[Sequence[Block]]:
    """The encoder from a row of its own, and so the decoder."""
    split = next(index for index, block in enumerate(blocks) if block.name.startswith("decoder."))
    halves = blocks[:split], blocks[split:]
    return [
        half[start : start + BLOCKS_PER_ROW]
        for half in halves
        for start in range(0, len(half), BLOCKS_PER_ROW)
    ]


def _count(blocks: Sequence[Block]) -> int:
    return sum(block.parameters for block in blocks)


def _draw_row(axes: Axes, row: Sequence[Block]) -> None:
    from matplotlib.patches import FancyArrowPatch, Rectangle

    for position, block in enumerate(row):
        side = block.shape[1] if len(block.shape) == 3 else 1
        height, width = 0.3 + 0.17 * math.log2(side + 1), 0.06 + 0.045 * math.log2(block.shape[0])
        axes.add_patch(
            Rectangle(
                (position - width / 2, 0.3 - height / 2),
                width,
                height,
                facecolor=block.colour,
                edgecolor=INK,
                linewidth=0.6,
                alpha=0.75,
            )
        )
        if position:
            axes.add_patch(
                FancyArrowPatch(
                    (position - 0.78, 0.3),
                    (position - 0.26, 0.3),
                    arrowstyle="-|>",
                    mutation_scale=7,
                    color=ORANGE,
                )
            )
        shape = " × ".join(map(str, block.shape))
        lines = [block.kind, *([", ".join(block.followers)] if block.followers else []), shape]
        lines.append(f"{block.parameters:,} weights")
        axes.text(position, -0.5, "\n".join(lines), ha="center", va="top", fontsize=7.5, color=INK)
