"""From scores to decisions with a stated rate of false alarms: split conformal p-values.

Scores of held-out ordinary images, which neither training nor the statistics of a score have seen, say how
often an ordinary image scores as high (Vovk, Gammerman & Shafer 2005; Bates et al. 2023, for outliers).

What `outliers` compares with: statistics of training images, scores of held-out ones; computed once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.cluster import Cluster, joined_cluster
from autoencode.embedding import image_encoder, over_pack
from autoencode.errors import ConfigError, OutputError, PackError
from autoencode.metrics.statistics import Interval, wilson_interval
from autoencode.models.model_file import as_model, read_tensors, write_tensors
from autoencode.outliers.scores import (
    SCORES,
    Gaussian,
    Measured,
    Quantity,
    Score,
    TrainingStatistics,
    joined,
    measurer,
    training_statistics,
)

if TYPE_CHECKING:
    from autoencode.configuration import Embedding, Split
    from autoencode.data.pack import Pack
    from autoencode.models.autoencoder import Autoencoder

USUAL_RATE = 0.01

Array = NDArray[np.float64]


class Rate(NamedTuple):
    """A share of `images`, and its 95 % interval."""

    value: float
    interval: Interval
    images: int


def conformal_p_values(calibration: Array, scores: Array) -> Array:
    """p = (1 + #{calibration scores >= score}) / (n + 1): Vovk et al. 2005, for one more image.

    For an image exchangeable with those of calibration, P(p <= a) <= a for every a, whatever the scores are.

    Args:
        calibration: (n,) scores of held-out ordinary images.
        scores: (N,).

    Returns:
        (N,) in (0, 1]; 1 throughout where there is no calibration score.
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    p_values: Array = (1 + len(calibration) - below) / (len(calibration) + 1)
    return p_values


def images_needed(rate: float) -> int:
    """Fewest calibration images with which a p-value can be as small as `rate`: ceil(1 / rate) - 1.

    Raises:
        ConfigError: the rate is not above 0 and below 1.
    """
    if not 0 < rate < 1:
        raise ConfigError(
            f"The false-positive rate is {rate:g}; it must be above 0 and below 1, such as 0.01."
        )
    fewest = math.floor(1 / rate)
    return fewest - 1 if 1 / fewest <= rate else fewest  # 1 / rate may be rounded either way


def promised_rate(images: int, rate: float | None = None) -> float:
    """Return the false-positive rate to keep to with so many calibration images.

    Args:
        images: calibration images.
        rate: what is asked for; None for 0.01 or, with too few images for that, the smallest rate there is.

    Raises:
        ConfigError: they cannot promise the rate asked for; it says how many are needed.
    """
    if not images:
        raise ConfigError(
            "The pack has no test images to calibrate on, so no image can be called an outlier. Use more "
            "images; about one in ten becomes a test image."
        )
    smallest = 1 / (images + 1)
    if rate is None:
        return max(USUAL_RATE, smallest)
    needed = images_needed(rate)
    if images < needed:
        raise ConfigError(
            f"A false-positive rate of {rate:g} needs {needed:,} test images to calibrate on; the pack has "
            f"{images:,}. Use more images (one in ten is a test image), or --fpr "
            f"{math.ceil(1e4 * smallest) / 1e4:g} or more."
        )
    return rate


def rate_of(flags: NDArray[np.bool_]) -> Rate | None:
    """Share of True, with its Wilson interval; None of no flags."""
    count, images = int(flags.sum()), len(flags)
    return Rate(count / images, wilson_interval(count, images), images) if images else None


KIND, FORMAT_VERSION = "outlier reference", 2

MOST_IMAGES = 10_000  # of training and of validation; statistics of more are no better, and neighbours slower
BATCH = 64


@dataclass(frozen=True)
class OutlierReference:
    """What ordinary images look like to one model, or to pretrained features.

    Attributes:
        statistics: of up to 10,000 training images.
        calibration: scores of all test images, by score; these set thresholds. Empty without such images.
        validation: the same of up to 10,000 validation images, which show what the thresholds do.
        median_kl_nats: median KL of the training images, the paper's threshold; None without a VAE's code.
        encoder: digest of what measured them, see `ImageEncoder`.
        pack: fingerprint of the pack.
    """

    statistics: TrainingStatistics
    calibration: dict[Score, Array]
    validation: dict[Score, Array]
    median_kl_nats: float | None
    encoder: str
    pack: str

    @property
    def calibration_images(self) -> int:
        """Number of test images."""
        return len(self.calibration.get("knn", ()))


def fit_reference(
    model: Autoencoder | str | Path,
    pack: Pack,
    cache: str | Path | None = None,
    *,
    embedding: Embedding = "code",
    most: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OutlierReference:
    """Learn what is ordinary from the images a model was trained on and the held-out ones of the same pack.

    Args:
        model: from `load_model`, or its path.
        pack: of its training.
        cache: a file that keeps the result. One that is there and belongs to this model, pack and embedding
            is used instead of computing; any other is replaced. A file that cannot be written is
            done without.
        embedding: "code" for all that the model makes of images; "pretrained" for features of a network
            trained on ImageNet instead.
        most: images of each split to look at; see `reference_rows`. What is learned from fewer than usual is
            not kept in the cache.
        ray: the address of a Ray cluster to measure on; this machine must be a node of it, and every node see
            the pack. See `joined_cluster`.
        progress: called with (images done, images in all).

    Raises:
        ModelFileError: the path given leads to no model.
        ConfigError: the pack's images are of another size, or fewer than two are for training.
        MissingExtraError: pretrained features need the optional part `eval`, a cluster `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        PackError: the pack has changed on the disk meanwhile.
    """
    model = as_model(model)
    model.check_preprocessing(pack.preprocessing, pack.path)
    encoder = image_encoder(model, embedding).digest
    measure = measurer(model, embedding)
    cache = None if cache is None else Path(cache)
    if cache is not None and (kept := _kept(cache, encoder, pack)) is not None:
        size = model.preprocessing
        if _fits(kept, measure(torch.zeros(1, 3, size.height, size.width))):
            return kept
    rows = reference_rows(pack, most)
    with joined_cluster(ray, "Measuring on a cluster") as cluster:
        reference = _fit(measure, encoder, pack, rows, progress or (lambda done, total: None), cluster)
    if cache is not None and encoder and most is None:
        with contextlib.suppress(OutputError):
            _write(cache, reference)
    return reference


def reference_name(embedding: Embedding) -> str:
    """Name of the file in a run folder that keeps its reference."""
    return f"outliers-{embedding}.safetensors"


def reference_rows(pack: Pack, most: int | None = None) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of each split of a pack that a reference is made of.

    Copies of an image are one observation. Rows are in no order of meaning, so any even sample is random.

    Args:
        pack: of the training.
        most: rows of each split; by default 10,000 of training and validation images, and all test images.
    """
    caps: dict[Split, int | None] = {"train": most or MOST_IMAGES, "test": most}
    caps["validation"] = caps["train"]
    return {split: _evenly(np.unique(pack.rows(split)), cap) for split, cap in caps.items()}


def calibration_size(ordinary: Pack | OutlierReference) -> int:
    """Number of test images there are to calibrate on; copies of one count once."""
    if isinstance(ordinary, OutlierReference):
        return ordinary.calibration_images
    return len(np.unique(ordinary.rows("test")))


def _fit(
    measure: Callable[[Tensor], Measured],
    encoder: str,
    pack: Pack,
    rows: dict[Split, NDArray[np.int64]],
    progress: Callable[[int, int], None],
    cluster: Cluster | None,
) -> OutlierReference:
    done, total = 0, sum(map(len, rows.values()))

    def measured(split: Split) -> list[Measured]:
        nonlocal done
        parts = []
        for made in over_pack(measure, pack, rows[split], BATCH, cluster):
            parts.append(made)
            done += len(made["vectors"])
            progress(done, total)
        return parts

    train = measured("train")
    if not train:
        raise ConfigError(
            f"{pack.location} has no training images to learn from what is ordinary. Use more images; three "
            "in four become training images."
        )
    ordinary = joined(train)
    statistics = training_statistics(ordinary)
    calibration, validation = (_scores(statistics, measured(split)) for split in ("test", "validation"))
    median = float(np.median(ordinary["kl_nats"])) if "kl_nats" in ordinary else None
    return OutlierReference(statistics, calibration, validation, median, encoder, pack.fingerprint)


def _scores(statistics: TrainingStatistics, parts: list[Measured]) -> dict[Score, Array]:
    scored = [statistics.scores(part) for part in parts]
    return {name: np.concatenate([part[name] for part in scored]) for name in scored[0]} if scored else {}


def _evenly(rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    return (
        rows
        if most is None or len(rows) <= most
        else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    )


def _write(path: Path, reference: OutlierReference) -> None:
    tensors = {"vectors": torch.from_numpy(reference.statistics.vectors).float()}
    if reference.statistics.spectra is not None:
        tensors["spectra"] = torch.from_numpy(reference.statistics.spectra)
    for quantity, gaussian in reference.statistics.gaussians.items():
        for part, values in gaussian._asdict().items():
            tensors[f"{quantity}.{part}"] = torch.from_numpy(values)
    for split in ("calibration", "validation"):
        for score, values in getattr(reference, split).items():
            tensors[f"{split}.{score}"] = torch.from_numpy(values)
    content = {
        "encoder": reference.encoder,
        "pack": reference.pack,
        "median_kl_nats": reference.median_kl_nats,
    }
    write_tensors(path, KIND, FORMAT_VERSION, tensors, content)


def _kept(path: Path, encoder: str, pack: Pack) -> OutlierReference | None:
    """Read what an earlier call kept, if it is whole and of this encoder and pack."""
    try:
        tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, PackError)
        if not encoder or [content[key] for key in ("version", "encoder", "pack")] != [
            *(FORMAT_VERSION, encoder, pack.fingerprint)
        ]:
            return None
        of: tuple[Quantity, ...] = ("vectors", "path", "spectrum")
        gaussians = {name: _gaussian(tensors, name) for name in of if f"{name}.mean" in tensors}
        return OutlierReference(
            TrainingStatistics(
                gaussians,
                tensors["vectors"].double().numpy(),
                tensors["spectra"].numpy() if "spectra" in tensors else None,
            ),
            _scores_of(tensors, "calibration"),
            _scores_of(tensors, "validation"),
            content["median_kl_nats"],
            encoder,
            pack.fingerprint,
        )
    except (PackError, KeyError):
        return None


def _fits(kept: OutlierReference, measured: Measured) -> bool:
    """Whether what was kept can score what is measured, of one image; a forged file need not."""
    try:
        wanted = kept.statistics.scores(measured)
    except (KeyError, ValueError, IndexError):
        return False
    median, has_median = kept.median_kl_nats, "kl" in wanted
    fits = all(scores.shape == (1,) and bool(np.isfinite(scores).all()) for scores in wanted.values())
    for split in (kept.calibration, kept.validation):
        lengths = {scores.shape for scores in split.values()}
        fits &= (
            split.keys() in (set(), wanted.keys())
            and len(lengths) <= 1
            and all(map(_is_list, split.values()))
        )
    return fits and (isinstance(median, float) if has_median else median is None)


def _is_list(scores: Array) -> bool:
    return scores.ndim == 1 and bool(np.isfinite(scores).all())


def _gaussian(tensors: dict[str, Tensor], name: str) -> Gaussian:
    return Gaussian(*(tensors[f"{name}.{part}"].numpy() for part in Gaussian._fields))


def _scores_of(tensors: dict[str, Tensor], split: str) -> dict[Score, Array]:
    return {score: tensors[f"{split}.{score}"].numpy() for score in SCORES if f"{split}.{score}" in tensors}
