"""From scores to outliers at a stated false positive rate: split conformal p-values.

The calibration set is held-out normal images, which neither training nor the detectors have seen. Its scores
show how often a normal image scores as high (Vovk, Gammerman & Shafer 2005; for outliers Bates et al. 2023).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.cluster import Cluster, joined_cluster
from autoencode.embedding import image_encoder, map_pack
from autoencode.errors import ConfigError, OutputError, PackError
from autoencode.metrics.statistics import Interval, wilson_interval
from autoencode.models.model_file import as_model, read_tensors, write_tensors
from autoencode.outliers.measurements import measurer
from autoencode.outliers.scores import Detector, Score, Value, apply_detectors, fit_detectors, scores_for

if TYPE_CHECKING:
    from autoencode.configuration import Embedding, Rule, Split
    from autoencode.data.pack import Pack, Progress
    from autoencode.models.autoencoder import Autoencoder

    Array = NDArray[np.float64]
    Measured = dict[str, Array]

DEFAULT_FPR = 0.01
# Scores from more training images are no better, and neighbours are slower to find.
MOST_IMAGES = 10_000
BATCH = 64

KIND, FORMAT_VERSION = "outlier reference", 3


class FalsePositiveRate(NamedTuple):
    """The share of normal images that are called outliers, its 95 % interval, and their number."""

    value: float
    interval: Interval
    images: int


def false_positive_rate(flags: NDArray[np.bool_]) -> FalsePositiveRate | None:
    """Return the share of True among normal images (N,), with its Wilson interval; None if N is 0."""
    count, images = int(flags.sum()), len(flags)
    return FalsePositiveRate(count / images, wilson_interval(count, images), images) if images else None


def conformal_p_values(calibration: Array, scores: Array) -> Array:
    """p = (1 + #{calibration scores >= score}) / (n + 1): Vovk et al. 2005, for one more image.

    For an image exchangeable with the calibration set, P(p <= a) <= a for every a, whatever the scores are.

    Args:
        calibration: (n,) scores of held-out normal images.
        scores: (N,).

    Returns:
        (N,) in (0, 1]; 1 throughout if there is no calibration score.
    """
    # side="left" counts equal scores as at least as high: ties make p-values larger, never too small.
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    p_values: Array = (1 + len(calibration) - below) / (len(calibration) + 1)
    return p_values


def images_needed(fpr: float) -> int:
    """Fewest calibration images with which a p-value can be as small as `fpr`: ceil(1 / fpr) - 1.

    Raises:
        ConfigError: the rate is not above 0 and below 1.
    """
    if not 0 < fpr < 1:
        raise ConfigError(
            f"The false positive rate is {fpr:g}; it must be above 0 and below 1, such as 0.01."
        )
    fewest = math.floor(1 / fpr)
    return fewest - 1 if 1 / fewest <= fpr else fewest  # 1 / fpr may be rounded either way


def attainable_fpr(
    images: int,
    fpr: float | None = None,
    *,
    found: str = "test images to calibrate on; the pack has {images:,}",
    advice: str = "Use more images (one in ten is a test image)",
) -> float:
    """Return the false positive rate to keep to with this many calibration images.

    Args:
        images: number of images in the calibration set.
        fpr: the rate asked for; None for 0.01 or, with too few images for that, the smallest there is.
        found: for the message, which images there are.
        advice: for the message, how there can be more.

    Raises:
        ConfigError: the calibration set is too small for the rate; the message says how many it takes.
    """
    if not images:
        raise ConfigError(
            "The pack has no test images to calibrate on, so no image can be called an outlier. Use more "
            "images (about one in ten becomes a test image), or give another pack of normal images: --pack."
        )
    smallest = 1 / (images + 1)  # p-values are multiples of it
    if fpr is None:
        return max(DEFAULT_FPR, smallest)
    needed = images_needed(fpr)
    # The rate in the message is rounded up: rounded down it would be rejected, too.
    if images < needed:
        raise ConfigError(
            f"A false positive rate of {fpr:g} needs {needed:,} {found.format(images=images)}. {advice}, or "
            f"--fpr {math.ceil(1e4 * smallest) / 1e4:g} or more."
        )
    return fpr


@dataclass(frozen=True)
class OutlierReference:
    """The normal images of a pack as one model sees them, or pretrained features: detectors and calibration.

    Attributes:
        detectors: fitted to up to 10,000 training images, by score.
        calibration: scores of all test images, by score; they set thresholds. Empty without such images.
        validation: scores of up to 10,000 validation images, by score; they show what the thresholds do.
        encoder: digest of the encoder that measured the images, see `ImageEncoder`.
        pack: fingerprint of the pack.
    """

    detectors: Mapping[str, Detector]
    calibration: Mapping[str, Array]
    validation: Mapping[str, Array]
    encoder: str
    pack: str

    @property
    def calibration_images(self) -> int:
        """Number of test images."""
        return len(next(iter(self.calibration.values()), ()))

    @property
    def median_kl_nats(self) -> float | None:
        """Median KL of the training images, the paper's threshold; None if the scores have no KL."""
        detector = self.detectors.get("kl")
        return float(detector.median) if isinstance(detector, Value) else None

    def check_encoder(self, digest: str) -> None:
        """Reject a reference that another encoder measured.

        Raises:
            ConfigError: the digest is not that of its encoder.
        """
        if self.encoder != digest:
            raise ConfigError(
                "This reference is of another model or another embedding. Make one with "
                "fit_reference(model, pack)."
            )

    def p_values(self, score: str, scores: Array) -> Array:
        """Return the conformal p-values (N,) of scores (N,)."""
        return conformal_p_values(self.calibration.get(score, np.zeros(0)), scores)

    def outliers(self, score: str, scores: Array, fpr: float | None) -> NDArray[np.bool_]:
        """Return which scores (N,) are outliers: p-values of at most `fpr`; for None, the paper's rule."""
        if fpr is not None:
            return self.p_values(score, scores) <= fpr
        assert self.median_kl_nats is not None
        return scores > self.median_kl_nats

    def validation_fpr(self, score: str, fpr: float | None) -> FalsePositiveRate | None:
        """Return the false positive rate on the validation images, all of them normal; None without any."""
        return false_positive_rate(self.outliers(score, self.validation.get(score, np.zeros(0)), fpr))


def fit_reference(
    model: Autoencoder | str | Path,
    pack: Pack,
    cache: str | Path | None = None,
    *,
    embedding: Embedding = "code",
    most: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> OutlierReference:
    """Fit detectors to the images a model was trained on, and score held-out images of the same pack.

    Args:
        model: from `load_model`, or its path.
        pack: the pack the model was trained on.
        cache: a file that keeps the result. If it exists and belongs to this model, pack and embedding, it
            is used; otherwise it is replaced. A file that cannot be written is ignored.
        embedding: "code" for codes and reconstructions of the model; "pretrained" for features of a network
            trained on ImageNet.
        most: images of each split to measure; see `reference_rows`. A result from fewer than usual is not
            kept in the cache.
        ray: the address of a Ray cluster to measure on; this machine must be a node of it, and every node see
            the pack. See `joined_cluster`.
        progress: called with (images done, images in all).

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: the pack's images are of another size, or fewer than two are for training.
        MissingExtraError: a cluster needs the optional part `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        PackError: the pack has changed on the disk meanwhile.
    """
    model = as_model(model)
    model.check_preprocessing(pack.preprocessing, pack.path)
    encoder = image_encoder(model, embedding).digest
    scores = scores_for(embedding, is_vae=model.is_vae)
    measure = measurer(model, embedding, scores)
    cache = None if cache is None else Path(cache)
    if cache is not None and encoder and (kept := _read(cache, scores, encoder, pack.fingerprint)):
        size = model.preprocessing
        if _fits(kept, measure(torch.zeros(1, 3, size.height, size.width))):
            return kept
    rows = reference_rows(pack, most)
    with joined_cluster(ray, "Measuring on a cluster") as cluster:
        detectors, calibration, validation = _fit(
            measure, scores, pack, rows, progress or (lambda done, total: None), cluster
        )
    reference = OutlierReference(detectors, calibration, validation, encoder, pack.fingerprint)
    # A model that was never saved has no digest, by which the file could be known to be its own. The cache
    # only saves time, so a run folder that cannot be written is not an error.
    if cache is not None and encoder and most is None:
        with contextlib.suppress(OutputError):
            _write(cache, reference)
    return reference


def reference_name(embedding: Embedding) -> str:
    """Name of the file in a run folder that keeps its reference."""
    return f"outliers-{embedding}.safetensors"


def reference_rows(pack: Pack, most: int | None = None) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of each split of a pack that a reference is fitted to and calibrated on.

    Copies of an image are one observation. Rows are in no order of meaning, so any even sample is random.

    Args:
        pack: of the training.
        most: rows of each split; by default 10,000 of training and validation images, and all test images.
    """
    caps: dict[Split, int | None] = {"train": most or MOST_IMAGES, "test": most}
    caps["validation"] = caps["train"]
    return {split: _evenly(np.unique(pack.rows(split)), cap) for split, cap in caps.items()}


def fpr_to_keep(source: Pack | OutlierReference, rule: Rule, fpr: float | None) -> float | None:
    """Return the false positive rate that a rule keeps to, see `attainable_fpr`; None for the paper's rule.

    Raises:
        ConfigError: the test images are too few for the rate, or the paper's rule was given one.
    """
    if rule == "paper":
        if fpr is None:
            return None
        raise ConfigError("The paper's rule has no rate to keep to: leave the rate out, or use conformal.")
    if isinstance(source, OutlierReference):
        return attainable_fpr(source.calibration_images, fpr)
    return attainable_fpr(len(np.unique(source.rows("test"))), fpr)  # copies of an image are one observation


def _fit(
    measure: Callable[[torch.Tensor], Measured],
    scores: list[Score],
    pack: Pack,
    rows: dict[Split, NDArray[np.int64]],
    progress: Progress,
    cluster: Cluster | None,
) -> tuple[dict[str, Detector], dict[str, Array], dict[str, Array]]:
    """Return the detectors, and the scores of the test and of the validation images."""
    done, total = 0, sum(map(len, rows.values()))

    def measured(split: Split) -> Iterator[Measured]:
        nonlocal done
        for batch in map_pack(measure, pack, rows[split], BATCH, cluster):
            yield batch
            done += len(next(iter(batch.values())))
            progress(done, total)

    train = _concatenated(measured("train"))
    if not train:
        raise ConfigError(
            f"{pack.location} has no training images to fit scores to. Use more images; three in four become "
            "training images."
        )
    detectors = fit_detectors(train, scores)
    # Held-out images are scored a batch at a time: there may be many, and their quantities need not be kept.
    calibration, validation = (
        _concatenated(apply_detectors(detectors, batch) for batch in measured(split))
        for split in ("test", "validation")
    )
    return detectors, calibration, validation


def _concatenated(batches: Iterable[Measured]) -> Measured:
    parts: dict[str, list[Array]] = {}
    for batch in batches:
        for name, values in batch.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _evenly(rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    if most is None or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _write(path: Path, reference: OutlierReference) -> None:
    arrays = {
        f"{score}.{name}": values
        for score, detector in reference.detectors.items()
        for name, values in vars(detector).items()
    }
    for split in ("calibration", "validation"):
        arrays |= {f"{split}.{score}": values for score, values in getattr(reference, split).items()}
    # Codes and features are float32 widened for the detectors, so float32 loses nothing.
    narrow = {name: values.astype(np.float32) for name, values in arrays.items()}
    kept = {name: narrow[name] if (narrow[name] == arrays[name]).all() else arrays[name] for name in arrays}
    tensors = {name: torch.from_numpy(np.asarray(values, order="C")) for name, values in kept.items()}
    write_tensors(path, KIND, FORMAT_VERSION, tensors, {"encoder": reference.encoder, "pack": reference.pack})


def _read(path: Path, scores: list[Score], encoder: str, pack: str) -> OutlierReference | None:
    """Read what an earlier call kept, if it is of this version, and of these scores, encoder and pack."""
    try:
        tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, PackError)
        arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        if (content["encoder"], content["pack"]) != (encoder, pack):
            return None
        detectors = {score.name: _detector(score, arrays) for score in scores}
    except (PackError, KeyError):
        return None
    splits = [
        {score.name: arrays[name] for score in scores if (name := f"{split}.{score.name}") in arrays}
        for split in ("calibration", "validation")
    ]
    return OutlierReference(detectors, splits[0], splits[1], encoder, pack)


def _detector(score: Score, arrays: Mapping[str, Array]) -> Detector:
    names = [field.name for field in dataclasses.fields(score.detector)]
    return score.detector(**{name: arrays[f"{score.name}.{name}"] for name in names})


def _fits(kept: OutlierReference, measured: Measured) -> bool:
    """Whether a kept reference can score an image, given its quantities; one in a forged file may not."""
    # Otherwise it is fitted again, before scoring and not with an error in the middle of it.
    try:
        found = apply_detectors(kept.detectors, measured)
        medians = [float(one.median) for one in kept.detectors.values() if isinstance(one, Value)]
    except (KeyError, ValueError, IndexError, TypeError):
        return False
    fits = all(one.shape == (1,) and bool(np.isfinite(one).all()) for one in found.values())
    for split in (kept.calibration, kept.validation):
        # A score without its calibration would get p-values of 1: nothing would ever be an outlier.
        fits &= split.keys() in (set(), kept.detectors.keys())
        fits &= len({one.shape for one in split.values()}) <= 1
        fits &= all(one.ndim == 1 and bool(np.isfinite(one).all()) for one in split.values())
    return fits and all(map(math.isfinite, medians))
