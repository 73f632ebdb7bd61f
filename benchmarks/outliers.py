"""How well each outlier score distinguishes other images from held-out test images of a model's own pack.

    python benchmarks/outliers.py RUN --ood FOLDER ... [--pack PACK] [--most 500] [--pretrained]
    python benchmarks/outliers.py RUN --ood FOLDER ... --masks MASKS

Prints Markdown tables. AUROC is 0.5 for chance; its interval is a 95 % bootstrap interval over the images of
both sides. `image spectrum` is a control that no model is needed for: the same descriptors of the images
instead of their residuals. The realised false-positive rate is of validation images. With masks, folders
with the names of the images under FOLDER, AUROC is also given for pixels, of the images that have a defect.
What is learned from the pack is kept in the run folder.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode import Autoencoder, Pack, fit_reference, heat_maps, load_model, open_pack
from autoencode.configuration import Embedding, Split
from autoencode.data.loader import batches
from autoencode.data.preprocessing import read_image
from autoencode.data.sources import find_images
from autoencode.metrics.statistics import Interval, auroc
from autoencode.outliers.calibration import images_needed, reference_name
from autoencode.outliers.measurements import measurer, residual_spectrum
from autoencode.outliers.scores import SCORES, Mahalanobis, apply_detectors
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


def score_rows(
    model: Autoencoder, pack: Pack, folders: dict[str, list[Path]], embedding: Embedding, cache: Path
) -> None:
    reference = fit_reference(model, pack, cache, embedding=embedding)
    measure = measurer(model, embedding)
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
        name = score if embedding == "code" else f"{score} ({embedding})"
        print(row(name, reference.calibration[score], positives, text), flush=True)


def promised(calibration_images: int) -> list[float]:
    return [rate for rate in RATES if images_needed(rate) <= calibration_images]


def image_table(
    model: Autoencoder, pack: Pack, folders: dict[str, list[Path]], kinds: list[Embedding], run: Path
) -> None:
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
    for embedding in kinds:
        score_rows(model, pack, folders, embedding, run / reference_name(embedding))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--ood", type=Path, nargs="+", required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--masks", type=Path, help="of defects, white on black, in sub-folders of one name")
    parser.add_argument("--most", type=int, default=500, help="images of a folder, spread evenly")
    parser.add_argument("--pretrained", action="store_true", help="also scores of pretrained features")
    arguments = parser.parse_args()
    model = load_model(arguments.run)
    pack = open_pack(arguments.pack or Path(read_run(arguments.run).pack))
    roots = {folder.name: folder for folder in arguments.ood}
    folders = {name: evenly(find_images(folder), arguments.most) for name, folder in roots.items()}
    kinds: list[Embedding] = ["code", "pretrained"] if arguments.pretrained else ["code"]
    image_table(model, pack, folders, kinds, arguments.run)
    if arguments.masks:
        pixel_table(model, folders, roots, arguments.masks)


if __name__ == "__main__":
    main()
