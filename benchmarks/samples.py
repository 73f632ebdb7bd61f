"""How close generated images come to held-out ones: KID (EfficientNet-Lite0), by prior.

    python benchmarks/samples.py PACK RUN [RUN ...] --count 1000

Prints a Markdown table, with 95 % intervals. The distance of training images is the floor: 0 but for the luck
of the draw. The distance of reconstructions of held-out images is what the decoder alone costs; samples
cannot be expected to come closer. Values compare with each other only, not with a KID on other features.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoencode import Autoencoder, Pack, fit_prior, generate, load_model, open_pack
from autoencode.metrics.images import kernel_inception_distance
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float, to_pixels

HEADINGS = "| model | code | reconstructions | N(0, I) | mixture | components |"

Pixels = NDArray[np.uint8]


def some(pack: Pack, rows: NDArray[np.int64], count: int) -> Pixels:
    return pack.pixels(np.random.default_rng(0).permutation(rows)[:count])


def distance(reference: NDArray[np.float32], pixels: Pixels) -> str:
    found = kernel_inception_distance(reference, BACKBONE.pooled(pixels))
    return f"{found.value:.3f} ({found.interval.low:.3f} to {found.interval.high:.3f})"


def model_row(
    pack: Pack, name: str, model: Autoencoder, held_out: Pixels, reference: NDArray[np.float32], count: int
) -> str:
    mixture = model.prior or fit_prior(model, pack)
    restored = distance(reference, to_pixels(model.reconstruct(to_float(held_out))))
    normal = distance(reference, generate(model, count, prior="normal").pixels) if model.is_vae else "-"
    mixed = distance(reference, generate(model, count, prior="mixture").pixels)
    return f"| {name} | {model.config.code_size} | {restored} | {normal} | {mixed} | {len(mixture.weights)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or model files")
    parser.add_argument("--count", type=int, default=1000, help="samples, and held-out images at most")
    arguments = parser.parse_args()
    pack = open_pack(arguments.pack)
    held_out = some(pack, pack.held_out().rows, arguments.count)
    reference = BACKBONE.pooled(held_out)
    print(f"`python {shlex.join(sys.argv)}`: {len(held_out)} test images, {arguments.count} samples\n")
    print(HEADINGS)
    print("|" + "---|" * (HEADINGS.count("|") - 1))
    floor = distance(reference, some(pack, pack.training_rows(), arguments.count))
    print(f"| (training images) | - | {floor} | - | - | - |", flush=True)
    for run in arguments.runs:
        model = load_model(run)
        print(model_row(pack, run.name, model, held_out, reference, arguments.count), flush=True)


if __name__ == "__main__":
    main()
