"""How well denoising models restore corrupted test images of a pack, beside classical denoisers.

    python benchmarks/denoising.py PACK RUN [RUN ...] --corrupt gaussian:0.3
    python benchmarks/denoising.py PACK RUN [RUN ...] --corrupt dropout:0.3

Prints a Markdown table: PSNR and SSIM against the clean images, means over the test images with 95 %
bootstrap intervals. Every method sees the same corrupted images. The classical denoisers are scikit-image's
(wavelets need PyWavelets) and are told the standard deviation of the noise, which a user would have to
estimate; models are told nothing. `clean input` is what a model makes of the image before it was corrupted:
no restoration by that model can be expected to be better. Dropped values are put back by inpainting, which
is told which ones they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet, inpaint_biharmonic
from torch import Tensor

from autoencode import Pack, load_model, open_pack
from autoencode.data.corruptions import Corruption, corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.figures import contact_sheet
from autoencode.metrics.images import psnr, ssim
from autoencode.metrics.statistics import confidence_interval_bootstrap
from autoencode.pixels import to_float

Image = NDArray[np.float64]


def gaussian_denoisers(sigma: float) -> dict[str, Callable[[Image], Image]]:
    """Classical denoisers of images (H, W, 3), with the settings their authors recommend."""
    return {
        "non-local means": lambda x: denoise_nl_means(
            x, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=2
        ),
        "wavelets (BayesShrink)": lambda x: denoise_wavelet(
            x, sigma=sigma, convert2ycbcr=True, rescale_sigma=True, channel_axis=2
        ),
        "total variation": lambda x: denoise_tv_chambolle(x, weight=sigma, channel_axis=2),
    }


def inpainted(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) with each value that is 0 put back from its neighbours in the same channel."""
    channels = [
        inpaint_biharmonic(channel, channel == 0) for channel in images.double().flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(channels)).float().reshape(images.shape).clamp(0, 1)


def each(denoise: Callable[[Image], Image], images: Tensor) -> Tensor:
    made = [denoise(image) for image in images.permute(0, 2, 3, 1).double().numpy()]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float().clamp(0, 1)


def mean_and_interval(values: Tensor, digits: int) -> str:
    low, high = confidence_interval_bootstrap(values.double().numpy(), seed=0)
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def restorations(pack: Pack, runs: list[Path], corruption: Corruption, images: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(random_seed("benchmark", 0))
    seen = corrupt(images, [corruption], generator, training=True)
    found = {"corrupted": seen.clamp(0, 1)}
    if corruption.name == "gaussian":
        for name, denoise in gaussian_denoisers(corruption.amount).items():
            found[name] = each(denoise, seen)
    if corruption.name == "dropout":
        # Undo the rescaling first: what remains is then the image itself, with holes.
        found["inpainting (biharmonic)"] = inpainted(seen * (1 - corruption.amount))
    for run in runs:
        model = load_model(run)
        found[f"`{run.name}`"] = model.reconstruct(seen)
        found[f"`{run.name}`, clean input"] = model.reconstruct(images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--corrupt", default="gaussian:0.3")
    parser.add_argument("--most", type=int, default=10_000, help="test images at most")
    parser.add_argument("--sheet", type=Path, help="also draw eight images, a .png")
    arguments = parser.parse_args()
    pack = open_pack(arguments.pack)
    images = to_float(pack.pixels(pack.rows("test")[: arguments.most]))
    [corruption] = parse_corruptions([arguments.corrupt])
    found = restorations(pack, arguments.runs, corruption, images)
    print(f"{len(images)} test images, {corruption}\n\n| method | PSNR dB | SSIM |\n| --- | --- | --- |")
    for name, restored in found.items():
        quality = mean_and_interval(psnr(restored, images), 2)
        print(f"| {name} | {quality} | {mean_and_interval(ssim(restored, images), 3)} |")
    if arguments.sheet:
        from autoencode.data.preprocessing import save_image
        from autoencode.pixels import to_pixels

        shown = {name: restored for name, restored in found.items() if "clean input" not in name}
        columns = [(name.strip("`"), to_pixels(values[:8])) for name, values in shown.items()]
        save_image(arguments.sheet, contact_sheet([("original", to_pixels(images[:8])), *columns], scale=1))


if __name__ == "__main__":
    main()
