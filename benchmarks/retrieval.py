"""How often a search finds the label of its query: codes against pixels, PCA,
colour histograms and pretrained features, read from the pack.

    python benchmarks/retrieval.py PACK RUN [RUN ...] --images 2000

The pack is of a folder with a sub-folder a label. Prints a Markdown table, with 95 % intervals of mAP. Each
image in turn is the query, the others are searched; PCA is fitted, as the model was, without labels and on
the training split alone. "pixels" are averaged down to about as many values as a code has.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA

from autoencode import Pack, RetrievalQuality, load_model, open_pack, retrieval_quality
from autoencode.configuration import Distance
from autoencode.data.loader import batches
from autoencode.embedding import find_encoder, fit_reduction
from autoencode.index.neighbours import fit_vector_space

HEADINGS = "| vectors | values | distance | 1-NN accuracy | 10-NN accuracy | recall@10 | mAP (95 %) |"

Floats = NDArray[np.float32]


def labelled(pack: Pack, most: int) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Rows of distinct contents with a label, at most so many, at random, and their labels."""
    label_of = {entry.row: entry.label for entry in pack.entries if entry.label is not None}
    rows = np.random.default_rng(0).permutation(sorted(label_of))[:most]
    return rows, np.array([label_of[row] for row in rows])


def averaged(pixels: NDArray[np.uint8], values: int) -> Floats:
    side = max(1, round((values / 3) ** 0.5))
    small = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BOX)) for one in pixels]
    return np.stack(small).reshape(len(pixels), -1).astype(np.float32) / 255


def histograms(pixels: NDArray[np.uint8]) -> Floats:
    """Shares of 64 colours, their roots: 4 levels of each channel."""
    levels = (pixels // 64).reshape(len(pixels), -1, 3) @ np.array([16, 4, 1])
    counts = np.stack([np.bincount(one, minlength=64) for one in levels])
    return np.sqrt(counts / counts.sum(1, keepdims=True)).astype(np.float32)


def reduced(pack: Pack, pixels: NDArray[np.uint8], values: int) -> Floats:
    training = np.unique(pack.rows("train"))
    pca = PCA(values, svd_solver="randomized", random_state=0)
    pca.fit(pack.pixels(training).reshape(len(training), -1).astype(np.float32))
    return pca.transform(pixels.reshape(len(pixels), -1).astype(np.float32)).astype(np.float32)


def row(name: str, vectors: Floats, distance: Distance, labels: NDArray[np.str_]) -> str:
    found: RetrievalQuality = retrieval_quality(fit_vector_space(vectors, distance).vectors(vectors), labels)
    mean = found.mean_average_precision
    return (
        f"| {name} | {vectors.shape[1]} | {distance} | {found.recall_at_1.value:.3f} | "
        f"{found.knn_accuracy.value:.3f} | {found.recall_at_10.value:.3f} | "
        f"{mean.value:.3f} ({mean.interval.low:.3f} to {mean.interval.high:.3f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or model files, of the pack's size")
    parser.add_argument("--images", type=int, default=2000, help="images to search among, at random")
    parser.add_argument("--no-pretrained", action="store_true", help="leave out the slowest")
    arguments = parser.parse_args()
    pack = open_pack(arguments.pack)
    rows, labels = labelled(pack, arguments.images)
    pixels = pack.pixels(rows)
    counts = np.unique(labels, return_counts=True)[1]
    print(f"`python {shlex.join(sys.argv)}`: {len(rows)} images, {len(counts)} labels; ", end="")
    print(f"always guessing the largest is right for {counts.max() / counts.sum():.3f}\n")
    print(HEADINGS)
    print("|" + "---|" * (HEADINGS.count("|") - 1), flush=True)
    model = load_model(arguments.runs[0])
    for run in arguments.runs:
        encoder = find_encoder("code", load_model(run))
        codes = np.concatenate([encoder.encode(images) for images in batches(pack, rows, 128)])
        for distance in get_args(Distance):
            print(row(f"codes of {run.stem}", codes, distance, labels), flush=True)
    size = model.config.code_size
    for distance in get_args(Distance):
        print(row("PCA", reduced(pack, pixels, size), distance, labels), flush=True)
    print(row("pixels", averaged(pixels, size), "l2", labels), flush=True)
    print(row("colour histogram", histograms(pixels), "cosine", labels), flush=True)
    if not arguments.no_pretrained:
        encoder = find_encoder("pretrained")
        features = np.concatenate([encoder.encode(images) for images in batches(pack, rows, 128)])
        print(row("pretrained features", fit_reduction(features)(features), "cosine", labels), flush=True)


if __name__ == "__main__":
    main()
