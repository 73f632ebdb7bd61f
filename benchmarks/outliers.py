"""How well each outlier score distinguishes other images from held-out test images of a model's own pack.

    python benchmarks/outliers.py RUN --ood FOLDER ... [--pack PACK] [--most 500]
    python benchmarks/outliers.py RUN --ood FOLDER ... --masks MASKS
    python benchmarks/outliers.py --bars GOOD BAD MASKS [--fit 174] [--splits 3] [--most 100]
    python benchmarks/outliers.py --enlarged GOOD BAD MASKS
    python benchmarks/outliers.py --resplits IMAGES [--most 1300]
    python benchmarks/outliers.py --foreign FOLDER FOLDER ... [--fit 300] [--most 80]
    python benchmarks/outliers.py --latency GOOD [--fit 100]

Prints Markdown tables. AUROC is 0.5 for chance; its interval is a 95 % bootstrap interval over the images of
both sides. `image spectrum` is a control that no model is needed for: the same descriptors of the images
instead of their residuals. The realised false-positive rate is of validation images. With masks, folders
with the names of the images under FOLDER, AUROC is also given for pixels, of the images that have a defect.
What is learned from the pack is kept in the run folder.

`--bars` needs no model: of several random splits of good parts, the first are learned from, and the others
judged beside the bad ones. `--enlarged` judges good parts that were
enlarged three times, some with a small defect of another part pasted in.
`--resplits` counts in how many of 100 random splits of normal images the share
called outliers is within the stated bound, at 20, 50, 200 and 1,000 calibration images. `--foreign` learns
from each folder in turn and judges the others beside held-out images of it. `--latency` times one image,
batches of 8 and 32, and both on two threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from autoencode import (
    Autoencoder,
    Pack,
    fit_normal,
    fit_reference,
    heat_maps,
    inspect_images,
    load_model,
    open_pack,
)
from autoencode.configuration import Split
from autoencode.data.loader import batches
from autoencode.data.preprocessing import Limits, read_image
from autoencode.data.sources import find_images
from autoencode.metrics.statistics import Interval, auroc
from autoencode.outliers.calibration import NAME
from autoencode.outliers.conformal import attainable_fpr, conformal_p_values, fpr_bound, images_needed
from autoencode.outliers.detectors import Mahalanobis
from autoencode.outliers.measurements import measurer, residual_spectrum
from autoencode.outliers.patches import read_in_shape
from autoencode.outliers.scores import SCORES, apply_detectors
from autoencode.pixels import to_float
from autoencode.training.run import read_run

Array = NDArray[np.float64]
RATES = (0.01, 0.05)
RESAMPLES = 200


def interval(negatives: Array, positives: Array) -> Interval:
    generator = np.random.default_rng(0)
    values = [
        auroc(generator.choice(negatives, len(negatives)), generator.choice(positives, len(positives)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


def cell(negatives: Array, positives: Array) -> str:
    low, high = interval(negatives, positives)
    return f"{auroc(negatives, positives):.3f} ({low:.3f}–{high:.3f})"


def evenly(paths: Sequence[Path], most: int) -> list[Path]:
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]


def control(model: Autoencoder, pack: Pack, folders: dict[str, list[Path]]) -> tuple[Array, dict[str, Array]]:
    def of_rows(split: Split) -> Array:
        rows = np.unique(pack.rows(split))[:4000]
        return torch.cat([residual_spectrum(x) for x in batches(pack, rows, 64)]).double().numpy()

    normal = Mahalanobis.fit(of_rows("train"))
    spectra = {
        name: residual_spectrum(to_float(np.stack([read_image(p, model.preprocessing) for p in paths])))
        for name, paths in folders.items()
    }
    return normal.score(of_rows("test")), {
        name: normal.score(values.double().numpy()) for name, values in spectra.items()
    }


def row(name: str, negatives: Array, positives: dict[str, Array], rates: str) -> str:
    values = [auroc(negatives, scores) for scores in positives.values()]
    together = auroc(negatives, np.concatenate(list(positives.values())))
    cells = " | ".join(cell(negatives, scores) for scores in positives.values())
    return f"| {name} | {cells} | {np.mean(values):.3f} | {min(values):.3f} | {together:.3f} | {rates} |"


def score_rows(model: Autoencoder, pack: Pack, folders: dict[str, list[Path]], cache: Path) -> None:
    reference = fit_reference(model, pack, cache)
    measure = measurer(model)
    scored: dict[str, dict[str, Array]] = {}
    for name, paths in folders.items():
        chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
        parts = [apply_detectors(reference.detectors, measure(model.read(chunk))) for chunk in chunks]
        scored[name] = {score: np.concatenate([part[score] for part in parts]) for score in parts[0]}
    for score in SCORES:
        if score not in reference.calibration:
            continue
        positives = {name: scores[score] for name, scores in scored.items()}
        realised = [
            reference.validation_fpr(score, rate) for rate in promised(len(reference.calibration[score]))
        ]
        text = " | ".join(
            f"{r.value:.2%} ({r.interval.low:.2%}–{r.interval.high:.2%})" for r in realised if r is not None
        )
        print(row(score, reference.calibration[score], positives, text), flush=True)


def promised(calibration_images: int) -> list[float]:
    return [rate for rate in RATES if images_needed(rate) <= calibration_images]


def image_table(model: Autoencoder, pack: Pack, folders: dict[str, list[Path]], run: Path) -> None:
    rates = promised(len(np.unique(pack.rows("test"))))
    headings = [
        "score",
        *folders,
        "mean",
        "least",
        "together",
        *(f"false positives at {rate:.0%}" for rate in rates),
    ]
    print(f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}")
    score_rows(model, pack, folders, run / NAME)
    negatives, positives = control(model, pack, folders)
    print(row("image spectrum (no model)", negatives, positives, " | ".join("-" for _ in rates)))


def pixel_table(
    model: Autoencoder, folders: dict[str, list[Path]], roots: dict[str, Path], masks: Path
) -> None:
    print("\n| images | pixel AUROC, mean over images (95 % interval) | all pixels together | images |")
    print("| --- | --- | --- | --- |")
    as_masks = dataclasses.replace(model.preprocessing, background=(0, 0, 0))  # padding is no defect
    for name, paths in folders.items():
        inside, outside, each = [], [], []
        for path in paths:
            mask_path = masks / path.relative_to(roots[name].parent).with_suffix(".png")
            if not mask_path.exists():
                continue
            mask = read_image(mask_path, as_masks).mean(axis=2) > 127
            if not mask.any() or mask.all():
                continue
            heat = heat_maps(model, model.read(path))[0].double().numpy()
            inside.append(heat[mask])
            outside.append(heat[~mask])
            each.append(auroc(heat[~mask], heat[mask]))
        if each:
            generator = np.random.default_rng(0)
            means = [generator.choice(each, len(each)).mean() for _ in range(2000)]
            low, high = np.quantile(means, [0.025, 0.975])
            pooled = auroc(np.concatenate(outside), np.concatenate(inside))
            print(f"| {name} | {np.mean(each):.3f} ({low:.3f}–{high:.3f}) | {pooled:.3f} | {len(each)} |")


def bars(good: Path, bad: Path, masks: Path, fit: int, splits: int, most: int) -> None:
    print("| split | image AUROC | pixel AUROC | AUPRO | of bad flagged | of good flagged | at 5 % | CPU s |")
    print("|" + " --- |" * 8)
    defects, parts = evenly(find_images(bad), 2 * most), list(find_images(good))
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(parts))
        learned, others = ([parts[i] for i in chosen] for chosen in (order[:fit], order[fit : fit + most]))
        start = time.process_time()
        normal = fit_normal(learned)
        fitted = time.process_time() - start
        found = inspect_images(normal, [*others, *defects], masks=masks)
        judged = (time.process_time() - start - fitted) / len(found.images)
        agreement, is_bad = found.agreement, dict.fromkeys(defects, True)
        assert agreement is not None and agreement.image_auroc is not None
        p_values = {
            kind: np.array([one.p_value for one in found.images if is_bad.get(one.path, False) == kind])
            for kind in (True, False)
        }
        shares = [
            f"{(p_values[True] <= rate).mean():.0%} | {(p_values[False] <= rate).mean():.1%}"
            for rate in (found.fpr, 0.05)
        ]
        print(
            f"| {split} | {agreement.image_auroc.value:.3f} | {agreement.pixel_auroc:.3f} | "
            f"{agreement.aupro:.3f} | {shares[0]} | {shares[1].replace('|', 'and')} | "
            f"{fitted:.0f} + {judged:.3f} an image |",
            flush=True,
        )


def resplits(folder: Path, most: int) -> None:
    """Learn from the first images, score the others once, and split those scores again and again."""
    paths = list(find_images(folder))
    order = np.random.default_rng(0).permutation(len(paths))[: most + 200]
    normal = fit_normal([paths[i] for i in order[:200]])
    found = inspect_images(normal, [paths[i] for i in order[200:]])
    scores = np.array([one.score for one in found.images])
    print("| calibration images | rate | bound | splits within the bound, of 100 | mean rate |")
    print("|" + " --- |" * 5)
    for images in (20, 50, 200, 1000):
        if images >= len(scores):
            continue
        rate, realised = attainable_fpr(images), []
        for split in range(100):
            mixed = np.random.default_rng(split).permutation(scores)
            realised.append((conformal_p_values(mixed[:images], mixed[images:]) <= rate).mean())
        bound = fpr_bound(images, rate)
        within = int((np.array(realised) <= bound).sum())
        print(f"| {images:,} | {rate:.2%} | {bound:.2%} | {within} | {np.mean(realised):.2%} |", flush=True)


def foreign(folders: Sequence[Path], fit: int, most: int) -> None:
    """AUROC of images of the other folders, and the shares called outliers at the default rate."""
    print(f"| learned from | {' | '.join(folder.name for folder in folders)} | own |")
    print("|" + " --- |" * (len(folders) + 2))
    for folder in folders:
        paths = list(find_images(folder))
        mixed = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
        normal = fit_normal(mixed[:fit])
        own, cells = inspect_images(normal, mixed[fit : fit + 2 * most]), []
        for other in folders:
            if other == folder:
                cells.append("")
                continue
            found = inspect_images(normal, evenly(find_images(other), most))
            negatives, positives = (np.array([one.score for one in part.images]) for part in (own, found))
            share = len(found.flagged) / len(found.images)
            cells.append(f"{auroc(negatives, positives):.3f}, {share:.0%}")
        own_share = len(own.flagged) / len(own.images)
        print(f"| {folder.name} | {' | '.join(cells)} | {own_share:.1%} |", flush=True)


def enlarged(good: Path, bad: Path, masks: Path, factor: int = 3) -> None:
    """Judge large images: 60 good parts to learn from, 24 others, 24 with a defect at its own size."""
    draws = np.random.default_rng(1)
    parts = [list(find_images(good))[i] for i in draws.permutation(len(find_images(good)))]
    of_name = {path.stem: path for path in find_images(masks)}

    def grey(path: Path) -> Array:
        return np.asarray(Image.open(path).convert("L"), np.float64)

    def large(path: Path) -> Array:
        image = Image.open(path).convert("L")
        size = (image.width * factor, image.height * factor)
        return np.array(image.resize(size, Image.Resampling.BICUBIC), np.float64)

    with tempfile.TemporaryDirectory() as folder:

        def save(pixels: Array, name: str) -> None:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = pixels + draws.normal(0, 3, pixels.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)

        for number, path in enumerate(parts[:60]):
            save(large(path), f"fit/{number:03}.jpg")
        for number, path in enumerate(parts[60:84]):
            save(large(path), f"new/good/{number:03}.jpg")
        count = 0
        for path in find_images(bad):
            mask = grey(of_name[path.stem]) > 127
            canvas, (rows, columns) = large(parts[84 + count]), np.where(mask)
            box = tuple(slice(max(0, at.min() - 8), at.max() + 9) for at in (rows, columns))
            crop, near = grey(path)[box], gaussian_filter(binary_dilation(mask[box], iterations=4) * 1.0, 2)
            (height, width), (tall, wide) = crop.shape, canvas.shape
            if height > tall // 2 or width > wide - 60:
                continue
            top = draws.integers(tall // 4, tall * 3 // 4 - height)
            left = draws.integers(20, wide - 20 - width)
            canvas[top : top + height, left : left + width] += near * (crop - np.median(crop[near < 0.05]))
            save(canvas, f"new/bad/{count:03}.jpg")
            if (count := count + 1) == 24:
                break
        start = time.process_time()
        normal = fit_normal(Path(folder) / "fit")
        fitted = time.process_time() - start
        found = inspect_images(normal, Path(folder) / "new")
    judged = (time.process_time() - start - fitted) / len(found.images)
    scores: dict[str, list[float]] = {"good": [], "bad": []}
    flagged = {"good": 0, "bad": 0}
    for one in found.images:
        scores[one.path.parent.name].append(one.score)
        flagged[one.path.parent.name] += one.p_value <= 0.05
    value = auroc(np.array(scores["good"]), np.array(scores["bad"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"AUROC {value:.3f}; flagged at 5 %: {flagged['bad']} of {count} bad, {flagged['good']} of 24 good; "
        f"{fitted:.0f} CPU s to learn, {judged:.2f} an image; {peak:.2f} GB"
    )


def latency(folder: Path, fit: int) -> None:
    """Time reading and judging images that are not in the bank; on a busy machine, read CPU seconds."""
    paths = list(find_images(folder))
    normal = fit_normal(paths[:fit])
    others = (paths[fit:] or paths)[:32]
    start = time.process_time()
    pictures = [read_in_shape(path, Limits()) for path in others]
    print(f"read: {(time.process_time() - start) / len(others) * 1e3:.1f} ms an image")
    print("| threads | together | CPU ms an image | ms an image |\n|" + " --- |" * 4)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for together in (1, 8, 32):
            normal.measure_all(pictures[:together])
            clock, cpu = time.perf_counter(), time.process_time()
            for at in range(0, len(pictures), together):
                normal.measure_all(pictures[at : at + together])
            spent = np.array([time.process_time() - cpu, time.perf_counter() - clock]) / len(pictures) * 1e3
            print(f"| {threads} | {together} | {spent[0]:.1f} | {spent[1]:.1f} |", flush=True)
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--ood", type=Path, nargs="+", default=[])
    parser.add_argument("--bars", type=Path, nargs=3, metavar=("GOOD", "BAD", "MASKS"))
    parser.add_argument("--enlarged", type=Path, nargs=3, metavar=("GOOD", "BAD", "MASKS"))
    parser.add_argument("--resplits", type=Path, metavar="IMAGES")
    parser.add_argument("--foreign", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--latency", type=Path, metavar="GOOD")
    parser.add_argument("--fit", type=int, default=174, help="good parts to learn from")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--masks", type=Path, help="of defects, white on black, in sub-folders of one name")
    parser.add_argument("--most", type=int, default=500, help="images of a folder, spread evenly")
    arguments = parser.parse_args()
    if arguments.bars:
        good, bad, masks = arguments.bars
        bars(good, bad, masks, arguments.fit, arguments.splits, arguments.most)
    if arguments.enlarged:
        enlarged(*arguments.enlarged)
    if arguments.resplits:
        resplits(arguments.resplits, arguments.most)
    if arguments.foreign:
        foreign(arguments.foreign, arguments.fit, arguments.most)
    if arguments.latency:
        latency(arguments.latency, arguments.fit)
    if arguments.run is None:
        return
    model = load_model(arguments.run)
    pack = open_pack(arguments.pack or Path(read_run(arguments.run).pack))
    roots = {folder.name: folder for folder in arguments.ood}
    folders = {name: evenly(find_images(folder), arguments.most) for name, folder in roots.items()}
    image_table(model, pack, folders, arguments.run)
    if arguments.masks:
        pixel_table(model, folders, roots, arguments.masks)


if __name__ == "__main__":
    main()
