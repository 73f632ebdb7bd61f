"""How well restorers undo damage to images of a folder, beside the classical method for each kind of damage.

    python benchmarks/restore.py IMAGES RUN [RUN ...] --corrupt gaussian:0.1 [--most 100] [--sheet sheet.png]
        [--in-8-bits] [--restorers-only]

Prints a Markdown table: medians of PSNR and SSIM against the clean images, with 95 % bootstrap intervals, and
the processor time for a megapixel. Every method is given the same damaged images, at their own size, and with
--in-8-bits clipped and rounded as files hold them. Where the damage is `downscale`, all methods enlarge the
same small image, which --in-8-bits rounds. Classical methods also get the kind and strength of the damage,
and where pixels are missing; restorers get nothing else. Wavelets need PyWavelets, and BM3D the package bm3d,
which is free for research alone and which nothing else here needs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, median_filter, minimum_filter
from skimage.restoration import (
    denoise_nl_means,
    denoise_tv_chambolle,
    denoise_wavelet,
    inpaint_biharmonic,
    richardson_lucy,
    unsupervised_wiener,
    wiener,
)
from torch import Tensor

from autoencode import load_restorer
from autoencode.data.corruptions import Corruption, corrupt, parse_corruptions
from autoencode.data.damage import enlarge
from autoencode.data.loader import random_seed
from autoencode.data.preprocessing import save_image
from autoencode.data.sources import expanded
from autoencode.errors import ConfigError
from autoencode.figures import contact_sheet
from autoencode.metrics.images import psnr, ssim
from autoencode.metrics.statistics import confidence_interval_bootstrap
from autoencode.pixels import rounded_to_8_bits, to_float, to_pixels
from autoencode.training.runtime import Runtime, choose_runtime

Array = NDArray[np.float64]
Method = Callable[[Array, Array], Array]  # damaged and clean images (H, W, 3) to a restored one


def denoisers(sigma: float) -> dict[str, Method]:
    """Classical denoisers; the weight of total variation is the best of four."""
    found: dict[str, Method] = {
        "non-local means": lambda x, _: denoise_nl_means(
            x, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=2
        ),
        "total variation": best_of(
            [
                lambda x, _, weight=weight: denoise_tv_chambolle(x, weight=weight * sigma, channel_axis=2)
                for weight in (0.5, 0.8, 1.2, 1.8)
            ]
        ),
        "median 3x3": lambda x, _: median(x),
    }
    try:
        import pywt  # noqa: F401

        found["wavelets (BayesShrink)"] = lambda x, _: denoise_wavelet(
            x, sigma=sigma, convert2ycbcr=True, rescale_sigma=True, channel_axis=2
        )
    except ImportError:
        pass
    try:
        import bm3d

        found["BM3D"] = lambda x, _: bm3d.bm3d_rgb(x, sigma)
    except ImportError:
        pass
    return found


def median(image: Array, size: int = 3) -> Array:
    """Replace each value by the median of a square around it, channel by channel."""
    return np.stack([median_filter(image[..., channel], size) for channel in range(3)], -1)


def adaptive_median(image: Array, largest: int = 7) -> Array:
    """Replace extremes by the median of the smallest window that is not one: Hwang & Haddad 1995."""
    found, undecided = image.copy(), np.ones(image.shape, bool)
    for size in range(3, largest + 1, 2):
        footprint = (size, size, 1)
        low, middle, high = (
            rank(image, size=footprint) for rank in (minimum_filter, median_filter, maximum_filter)
        )
        sound = undecided & (low < middle) & (middle < high)
        extreme = sound & ((image <= low) | (image >= high))
        found[extreme] = middle[extreme]
        undecided &= ~sound
    found[undecided] = median_filter(image, size=(largest, largest, 1))[undecided]
    return found


def kernel_of(sigma: float) -> Array:
    """Return the kernel of a Gaussian blur."""
    offsets = np.arange(-4 * int(np.ceil(sigma)), 4 * int(np.ceil(sigma)) + 1)
    row = np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(np.outer(row, row) / row.sum() ** 2)


def deconvolved(image: Array, inverse: Callable[[Array], Array]) -> Array:
    """Undo a blur, channel by channel, with borders that are reflected as the blur reflected them."""
    margin = 16
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    channels = [inverse(padded[..., channel]) for channel in range(3)]
    return np.stack(channels, -1)[margin:-margin, margin:-margin]


def deconvolutions(sigma: float) -> dict[str, Method]:
    """Classical methods against a blur of known kernel; strengths are the best of several."""
    kernel = kernel_of(sigma)

    def method(inverse: Callable[[Array], Array]) -> Method:
        return lambda x, _: deconvolved(x, inverse)

    return {
        "Wiener, the best of 4": best_of(
            [
                method(lambda y, balance=balance: wiener(y, kernel, balance, clip=False))
                for balance in (1e-5, 1e-4, 1e-3, 1e-2)
            ]
        ),
        "Richardson-Lucy, the best of 3": best_of(
            [method(lambda y, steps=steps: richardson_lucy(y, kernel, steps)) for steps in (10, 30, 100)]
        ),
        "unsupervised Wiener": method(lambda y: unsupervised_wiener(y, kernel, clip=False, rng=0)[0]),
    }


def shrunk(clean: Tensor, factor: int, *, in_8_bits: bool) -> Tensor:
    """Return the small image (1, 3, h, w) that all methods enlarge: means of squares, as in `downscale`."""
    small = torch.nn.functional.avg_pool2d(clean, factor)
    return rounded_to_8_bits(small) if in_8_bits else small


def enlarged(clean: Array, factor: int, filter: Image.Resampling, *, in_8_bits: bool) -> Array:
    """Enlarge the small image of a clean one by a filter."""
    height, width = clean.shape[:2]
    small = array(shrunk(tensor(clean), factor, in_8_bits=in_8_bits))
    channels = [
        Image.fromarray(small[..., channel].astype(np.float32)).resize((width, height), filter)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel, np.float64) for channel in channels], -1)


def classical(corruption: Corruption, *, in_8_bits: bool) -> dict[str, Method]:
    """Return the methods for a kind of damage of known strength."""
    amount = corruption.amount
    match corruption.name:
        case "gaussian" | "clipped-noise" | "camera-noise":
            return denoisers(amount)
        case "poisson":
            return {
                "Anscombe and " + name: anscombe(method, amount) for name, method in denoisers(1.0).items()
            }
        case "salt-and-pepper":
            return {
                "median 3x3": lambda x, _: median(x),
                "median 5x5": lambda x, _: median(x, 5),
                "adaptive median": lambda x, _: adaptive_median(x),
            }
        case "jpeg":
            return {
                f"{name}, the best of 4 strengths": best_of(
                    [denoisers(s)[name] for s in (0.01, 0.02, 0.04, 0.08)]
                )
                for name in denoisers(1.0)
            }
        case "blur":
            return deconvolutions(amount)
        case "downscale":
            return {
                name: lambda _, clean, kind=kind: enlarged(clean, int(amount), kind, in_8_bits=in_8_bits)
                for name, kind in (
                    ("bicubic", Image.Resampling.BICUBIC),
                    ("Lanczos", Image.Resampling.LANCZOS),
                )
            }
        case "mask":
            return {
                "biharmonic inpainting": lambda x, clean: inpaint_biharmonic(
                    x, (np.abs(x - clean) > 1e-6).any(2) & (x == 0.5).all(2), channel_axis=2
                )
            }
    return {}


def anscombe(method: Method, photons: float) -> Method:
    """Return a denoiser of photon noise: it turns the noise into one of variance 1, for which `method` is."""

    def denoise(image: Array, clean: Array) -> Array:
        def stabilised(x: Array) -> Array:
            return np.asarray(2 * np.sqrt(np.maximum(x * photons, 0) + 3 / 8))

        made = method(stabilised(image), stabilised(clean))
        return np.asarray((made**2 / 4 - 1 / 8) / photons)

    return denoise


def best_of(methods: list[Method]) -> Method:
    """Return the method whose result is the closest to the clean image, anew for each image."""
    return lambda x, clean: max(
        (one(x, clean) for one in methods), key=lambda y: -np.square(y - clean).mean()
    )


def in_words(values: list[float], digits: int) -> str:
    """Return the median with its 95 % interval."""
    low, high = confidence_interval_bootstrap(np.array(values), 0, statistic=np.median)
    return f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measurable(parser: argparse.ArgumentParser, text: str) -> Corruption:
    """Return a corruption of one known amount; anything else ends the program with the reason."""
    try:
        corruptions = parse_corruptions([text])
    except ConfigError as err:
        parser.error(str(err))
    [corruption] = corruptions
    if not isinstance(corruption, Corruption) or corruption.most is not None:
        parser.error(f"{text}: classical methods need one kind of damage of one amount, such as gaussian:0.1")
    return corruption


def main() -> None:
    """Measure, and print a table for each corruption."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--corrupt", nargs="+", default=["gaussian:0.1"])
    parser.add_argument("--most", type=int, default=100, help="images at most")
    parser.add_argument("--crop", type=int, default=512, help="largest side: the middle of larger images")
    parser.add_argument("--sheet", type=Path, help="also draw eight images of one size, a .png")
    parser.add_argument("--in-8-bits", action="store_true", help="damaged images as files hold them")
    parser.add_argument("--restorers-only", action="store_true", help="leave the classical methods out")
    arguments = parser.parse_args()
    corruptions = [measurable(parser, text) for text in arguments.corrupt]
    paths = list(expanded(arguments.images))[: arguments.most]
    for corruption in corruptions:
        multiple = int(corruption.amount) if corruption.name == "downscale" else 1
        clean = [read(path, arguments.crop, multiple) for path in paths]
        in_8_bits = arguments.in_8_bits
        methods = {} if arguments.restorers_only else classical(corruption, in_8_bits=in_8_bits)
        compare(clean, corruption, methods, arguments.runs, arguments.sheet, in_8_bits=in_8_bits)


def read(path: Path, side: int, multiple: int) -> Tensor:
    """Return the middle of an image, (1, 3, H, W), with sides of at most `side` pixels.

    They are multiples of 4 and of `multiple`.
    """
    pixels = np.asarray(Image.open(path).convert("RGB"))
    # Of 4 in any case: different kinds of damage are measured on equal images.
    multiple = math.lcm(4, multiple)
    height, width = (min(side, length) // multiple * multiple for length in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return to_float(pixels[None, top : top + height, left : left + width].copy())


def compare(
    clean: list[Tensor],
    corruption: Corruption,
    classical: dict[str, Method],
    runs: list[Path],
    sheet: Path | None,
    *,
    in_8_bits: bool,
) -> None:
    """Print the table of one corruption, and draw the sheet if its path is given."""
    generator = torch.Generator().manual_seed(random_seed("benchmark", 0))
    if corruption.name == "downscale":  # the small image is the file: `restore --scale` enlarges it unrounded
        small = [shrunk(image, int(corruption.amount), in_8_bits=in_8_bits) for image in clean]
        seen = [enlarge(x, *y.shape[-2:]) for x, y in zip(small, clean, strict=True)]
    else:
        seen = [corrupt(image, [corruption], generator, training=True) for image in clean]
        seen = [rounded_to_8_bits(image) for image in seen] if in_8_bits else seen
    runtime = choose_runtime("cpu")
    methods: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"damaged": lambda x, _: x}
    for name, method in classical.items():
        methods[name] = lambda x, y, method=method: tensor(method(array(x), array(y)))
    for run in runs:
        model = load_restorer(run)
        methods[f"`{run.name}`"] = lambda x, _, model=model: restored(model.restore, x, runtime)
    print(f"\n{len(clean)} images, {corruption}\n\n| method | PSNR dB | SSIM | s/MP |")
    print("| --- | --- | --- | --- |")
    shown = [("clean", clean)]
    for name, function in methods.items():
        started = time.process_time()
        made = [function(x, y).clamp(0, 1) for x, y in zip(seen, clean, strict=True)]
        seconds = (time.process_time() - started) / sum(x[0, 0].numel() for x in clean) * 1e6
        quality = in_words([float(psnr(x, y)) for x, y in zip(made, clean, strict=True)], 2)
        similarity = in_words([float(ssim(x, y)) for x, y in zip(made, clean, strict=True)], 3)
        print(f"| {name} | {quality} | {similarity} | {seconds:.2f} |", flush=True)
        shown.append((name.strip("`"), made))
    if sheet:
        columns = [(name, to_pixels(torch.cat(images[:8]))) for name, images in shown]
        save_image(sheet, contact_sheet(columns, scale=1 if clean[0].shape[-1] > 100 else 2))


def restored(restore: Callable[[Tensor], Tensor], image: Tensor, runtime: Runtime) -> Tensor:
    """Restore an image (1, 3, H, W) in the precision of the runtime."""
    with runtime.autocast():
        return restore(image).float()


def array(image: Tensor) -> Array:
    """Turn an image (1, 3, H, W) into an array (H, W, 3)."""
    return image[0].permute(1, 2, 0).double().numpy()


def tensor(image: Array) -> Tensor:
    """Turn an array (H, W, 3) into an image (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


if __name__ == "__main__":
    main()
