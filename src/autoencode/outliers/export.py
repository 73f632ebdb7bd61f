"""Export normal images as an ONNX file, by which other programs judge images without Python, torch or FAISS.

The network, the bank and all that follows them are one graph, for images of one shape: the grid of patches,
what is usual at each position and the number of hottest patches are constants of it.

Shapes: B batch, h, w rows and columns of patches at the finer scale, P patches of the bank, F features, N
normal images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.atomic import check_output, make_folder, names_in, write_bytes
from autoencode.errors import VERSION, ConfigError, OutputError
from autoencode.export import NamedNetwork, OnnxFile, check_installed, exported_and_checked
from autoencode.models.backbones import BACKBONE
from autoencode.outliers.comparison import covered
from autoencode.outliers.detectors import NEIGHBOURS, TINY, TOP, resized
from autoencode.outliers.patches import features_of, seen_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from autoencode.outliers.detectors import Mahalanobis
    from autoencode.outliers.normal import NormalImages


def export_normal(normal: NormalImages, folder: str | Path, size: tuple[int, int] | None = None) -> OnnxFile:
    """Write normal images as outliers.onnx, which judges images of one shape.

    | inputs | small, large (B, 3, H, W): an image with about 128 and 256 pixels on the shorter side |
    | --- | --- |
    | outputs | score (B,), p_value (B,), heat (B, h, w), see `NormalImages.measure` |

    Images are RGB, float32 in [0, 1]. The metadata give the sizes, the default threshold and its rate. The
    network is in fp32 there, and in bf16 where `NormalImages.measure` runs on hardware that multiplies it.

    Args:
        normal: from `fit_normal` or `load_normal`.
        folder: the output; made here.
        size: height and width in pixels of the images to judge; by default, those of most normal images.

    Raises:
        MissingExtraError: the optional part `onnx` is not installed.
        ConfigError: the size is none of an image.
        ModelFileError: outputs in onnxruntime and in torch differ. Nothing is written.
        OutputError: the folder holds other files, or cannot be written to.
    """
    folder, size = Path(folder), size or normal.usual_size
    if min(size) < 1:
        raise ConfigError(f"There are no images of {size[0]}x{size[1]} pixels to judge. Give another size.")
    check_output(folder / f"{Judge.name}.onnx", (".onnx",))
    if names_in(folder) - {f"{Judge.name}.onnx"}:
        raise OutputError(f"{folder} holds other files. Choose another folder for the ONNX file.")
    check_installed()
    sizes = seen_sizes(*size)
    generator = torch.Generator().manual_seed(0)
    examples = tuple(torch.rand((3, 3, *one), generator=generator) for one in sizes)
    rate = normal.default_fpr
    metadata = {
        "autoencode": VERSION,
        "weights": BACKBONE.weights,
        "image_height_width": json.dumps(size),
        "small_and_large_height_width": json.dumps(sizes),
        "images": "RGB, float32, 0 to 1, batch x 3 x height x width; resized with antialiasing, stretched",
        "threshold": repr(normal.threshold(rate)),
        "false_positive_rate": repr(rate),
        "normal_images": str(len(normal.calibration)),
    }
    file, content = exported_and_checked(Judge(normal, sizes), examples, folder, metadata)
    make_folder(folder)
    write_bytes(file.path, content)
    return file


class Judge(NamedNetwork):
    """Compute what `NormalImages.measure` does for images of one shape, as operations of one graph."""

    name, inputs, outputs = "outliers", ("small", "large"), ("score", "p_value", "heat")
    bank_mean: Tensor
    bank_whitening: Tensor
    bank: Tensor
    neighbours: Tensor
    centre: Tensor
    spread: Tensor
    gates: Tensor
    weights: Tensor
    calibration: Tensor

    def __init__(self, normal: NormalImages, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.network = BACKBONE.network
        fit, heat, combination = normal.fit, normal.heat_scale, normal.combination
        with torch.inference_mode():
            grids = [
                tuple(features_of(torch.zeros(1, 3, *size), self.network)[0].shape[1:3]) for size in sizes
            ]
        self.grid = grids[-1]
        self._keep(
            bank_mean=fit.bank.mean,
            bank_whitening=fit.bank.whitening,
            bank=np.asarray(fit.bank.patches, np.float32),
            neighbours=fit.content.neighbours,
            centre=combination.centre,
            spread=combination.spread,
            gates=combination.gates,
            weights=combination.weights,
            calibration=normal.calibration,
        )
        for position, (places, grid) in enumerate(zip(heat.places, grids, strict=True)):
            usual = {"mean": resized(places.mean, grid), "spread": resized(places.spread, grid)}
            self._keep(**{f"usual_{name}{position}": one for name, one in usual.items()})
        self.fine, self.early = _Gaussian(fit.fine), _Gaussian(fit.early)
        self.is_alike = normal.are_alike
        self.unit, self.end = float(np.mean([one.spread.mean() for one in heat.places])), heat.end

    def _keep(self, **arrays: NDArray[np.floating]) -> None:
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32)))

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores (B,), the p-values (B,) and the heat maps (B, h, w) of images."""
        patches, content, early = features_of(small, self.network)
        coarse = self._to_bank(patches)
        fine = self.fine(features_of(large, self.network)[0])
        maps = [
            (torch.log(one + TINY) - getattr(self, f"usual_mean{at}")) / getattr(self, f"usual_spread{at}")
            for at, one in enumerate((coarse, fine))
        ]
        finer = F.interpolate(maps[0][:, None], self.grid, mode="bilinear", align_corners=False)[:, 0]
        standard = (finer + maps[1]) / 2
        highest = torch.stack(
            [
                torch.stack([_highest(one, count) for count in covered(one[0].numel())]).mean(0)
                for one in (standard, maps[0])
            ],
            1,
        )
        # The map of positions is kept as a logarithm; its exponential would overflow fp32.
        hottest = torch.logaddexp(highest, torch.tensor(TINY).log())
        nearest = _squares(content, self.neighbours).topk(
            min(NEIGHBOURS, len(self.neighbours)), largest=False
        )
        scores = torch.stack(
            [
                (coarse.mean((1, 2)) * _highest(coarse, max(1, round(TOP * coarse[0].numel())))).sqrt(),
                nearest.values[:, -1].clamp(min=0).sqrt(),
                self.early(early),
            ],
            1,
        )
        z = (torch.cat([torch.log(scores + TINY), hottest], 1) - self.centre) / self.spread
        score = self._combined(z)
        p_value = (1 + (self.calibration >= score[:, None]).sum(1)) / (1 + len(self.calibration))
        return score, p_value, torch.exp((self.unit * (standard - self.end)).clamp(-9, 9))

    def _to_bank(self, patches: Tensor) -> Tensor:
        whitened = (patches - self.bank_mean) @ self.bank_whitening
        squares = _squares(whitened.flatten(0, 2), self.bank).amin(1).clamp(min=0)
        return (squares / patches.shape[-1]).sqrt().reshape(patches.shape[:3])

    def _combined(self, z: Tensor) -> Tensor:
        if not self.is_alike:
            above = (z.clamp(min=0) * self.weights[0]).square().sum(1).sqrt()
            largest = torch.where(self.weights[0] > 0, z, -1e30).amax(1)
            return torch.where(above > 0, above, largest)
        decides = self.weights[1] > 0
        beyond = torch.where(decides, 0, (z - self.gates).clamp(min=0))
        return torch.where(decides, z, -1e30).amax(1) + beyond.sum(1)


class _Gaussian(nn.Module):
    mean: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(self, fitted: Mahalanobis) -> None:
        super().__init__()
        for name in ("mean", "scale", "whitening"):
            array = np.array(getattr(fitted, name), np.float32)
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, values: Tensor) -> Tensor:
        whitened: Tensor = ((values - self.mean) / self.scale) @ self.whitening
        return whitened.square().sum(-1).sqrt()


def _squares(rows: Tensor, others: Tensor) -> Tensor:
    """Return the squared distances of rows (N, F) to others (P, F): (N, P)."""
    return rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * rows @ others.T


def _highest(maps: Tensor, count: int) -> Tensor:
    """Return the mean (B,) of the highest values of maps (B, h, w), so many of each."""
    return maps.flatten(1).topk(count).values.mean(1)
