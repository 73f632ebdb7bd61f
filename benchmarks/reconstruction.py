"""How well models reconstruct the held-out test images of a pack, beside PCA of the same code size.

    python benchmarks/reconstruction.py PACK [RUN ...] --pca 32 128 256

Prints a Markdown table. PCA is scikit-learn's, fitted on the same training images at full resolution; its
reconstructions are clipped to the range of pixels, as the models' are. Intervals are 95 % bootstrap
intervals over the test images. Denoising models see corrupted images and are compared with the clean ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from autoencode import Pack, load_model, open_pack
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import batches, random_seed
from autoencode.evaluation.quality import code_health, gap_in_words
from autoencode.metrics.images import mean_squared_error, psnr, ssim
from autoencode.metrics.statistics import confidence_interval_bootstrap
from autoencode.pixels import to_float
from autoencode.training.run import read_metrics

HEADINGS = (
    "| model | code | test MSE (95 % interval) | PSNR dB | SSIM "
    "| KL nats | active | prior gap | epochs | training |"
)


def row(name: str, code: int, images: Tensor, restored: Tensor, rest: str) -> str:
    errors = mean_squared_error(restored, images)
    low, high = confidence_interval_bootstrap(errors.double().numpy(), seed=0)
    quality = f"{psnr(restored, images).mean():.2f} | {ssim(restored, images).mean():.3f}"
    return f"| {name} | {code} | {errors.mean():.5f} ({low:.5f} to {high:.5f}) | {quality} | {rest} |"


def pca_row(pack: Pack, components: int, images: Tensor) -> str:
    started = time.perf_counter()
    train = to_float(pack.pixels(pack.training_rows())).flatten(1).numpy()
    fitted = PCA(components, svd_solver="randomized", random_state=0).fit(train)
    seconds = time.perf_counter() - started
    restored = fitted.inverse_transform(fitted.transform(images.flatten(1).numpy())).clip(0, 1)
    as_images = torch.from_numpy(restored).float().reshape(images.shape)
    return row("PCA", components, images, as_images, f"- | - | - | - | {seconds:.0f} s")


def model_row(pack: Pack, run: Path, images: Tensor, epochs: int, seconds: float) -> str:
    model = load_model(run)
    chain = parse_corruptions(model.provenance["train"]["corrupt"])
    generator = torch.Generator().manual_seed(random_seed("benchmark", 0))
    seen = corrupt(images, chain, generator, training=True)
    health = "- | - | -"
    if model.is_vae:
        found = code_health(model, batches(pack, pack.held_out().rows, 128))
        health = f"{found.kl_nats.sum():.1f} | {found.active_units} | {gap_in_words(found.prior_gap_nats)}"
    rest = f"{health} | {epochs} | {seconds / 60:.1f} min"
    return row(run.name, model.config.code_size, images, model.reconstruct(seen), rest)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--pca", type=int, nargs="*", default=[32, 128, 256])
    arguments = parser.parse_args()
    pack = open_pack(arguments.pack)
    images = to_float(pack.pixels(pack.held_out().rows))
    print(HEADINGS)
    print("|" + " --- |" * (HEADINGS.count("|") - 1))
    for components in arguments.pca:
        print(pca_row(pack, components, images), flush=True)
    for run in arguments.runs:
        metrics = read_metrics(run)
        seconds = sum(record["seconds"] for record in metrics)
        print(model_row(pack, run, images, len(metrics), seconds), flush=True)


if __name__ == "__main__":
    main()
