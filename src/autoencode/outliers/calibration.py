"""The normal images of a pack as one model sees them, to which others are compared.

The calibration set is held-out normal images, which neither training nor the detectors have seen.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.cluster import Cluster, joined_cluster
from autoencode.data.mapping import map_pack
from autoencode.errors import ConfigError, OutputError, PackError
from autoencode.models.autoencoder import Kept
from autoencode.models.model_file import as_model, read_tensors, write_tensors
from autoencode.outliers.conformal import (
    FalsePositiveRate,
    attainable_fpr,
    conformal_p_values,
    conformal_threshold,
    false_positive_rate,
)
from autoencode.outliers.detectors import Combination, Detector, Value, from_arrays, to_arrays
from autoencode.outliers.measurements import collected, measurer
from autoencode.outliers.scores import (
    AUTO,
    SCORES,
    Score,
    apply_detectors,
    cross_fitted,
    fit_detectors,
    measured_for,
    parts_of,
    scores_for,
)

if TYPE_CHECKING:
    from autoencode.configuration import Rule, Split
    from autoencode.data.pack import Pack, Progress
    from autoencode.models.autoencoder import Autoencoder

    Array = NDArray[np.float64]
    Measured = dict[str, Array]

# Scores from more training images are no better, and neighbours are slower to find.
MOST_IMAGES = 2000
# Images kept of each split; they add less than 10 MB to a model file.
KEPT_IMAGES = 1000
# Fewer validation images do not show how much better a model knows the images it was trained on.
_FEWEST_UNSEEN = 10
BATCH = 64

KIND, FORMAT_VERSION = "outlier reference", 5  # 5: early statistics in fp32
NAME = "outliers.safetensors"  # in a run folder


@dataclass(frozen=True)
class OutlierReference:
    """The normal images of a pack as one model and a pretrained network see them: detectors and calibration.

    Attributes:
        detectors: fitted to up to 2,000 training images, by score.
        calibration: scores of all test images, by score; they set thresholds. Empty without such images.
        validation: scores of up to 2,000 validation images, by score; they show what the thresholds do.
        crossed: scores of the training images, by score, by detectors fitted to others of them; by their own,
            outliers among them would pass for normal.
        trained: sha256 of the files of these images, in the same order.
        model: digest of the model that measured the images.
        pack: fingerprint of the pack.
    """

    detectors: Mapping[str, Detector]
    calibration: Mapping[str, Array]
    validation: Mapping[str, Array]
    crossed: Mapping[str, Array]
    trained: tuple[str, ...]
    model: str
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

    def check_model(self, digest: str) -> None:
        """Reject a reference that another model measured.

        Raises:
            ConfigError: the digest is not that of its model.
        """
        if self.model != digest:
            raise ConfigError("This reference is of another model. Make one with fit_reference(model, pack).")

    def cross_scored(self, score: str, scores: Array, digests: Iterable[str | None]) -> Array:
        """Return scores (N,) with those of the training images in place of what their own detectors gave.

        Args:
            score: name of the score.
            scores: (N,) by its detector.
            digests: sha256 of the N files; None where it is not known.
        """
        found, crossed = scores.copy(), self.crossed[score]
        known = {digest: index for index, digest in enumerate(self.trained)}
        for position, digest in enumerate(digests):
            if digest in known:
                found[position] = crossed[known[digest]]
        return found

    def p_values(self, score: str, scores: Array) -> Array:
        """Return the conformal p-values (N,) of scores (N,)."""
        return conformal_p_values(self.calibration.get(score, np.zeros(0)), scores)

    def threshold(self, score: str, fpr: float | None) -> float:
        """Return the largest score that is no outlier at a rate; for None, the threshold of the paper."""
        if fpr is not None:
            return conformal_threshold(self.calibration[score], fpr)
        assert self.median_kl_nats is not None
        return self.median_kl_nats

    def outliers(self, score: str, scores: Array, fpr: float | None) -> NDArray[np.bool_]:
        """Return which scores (N,) are outliers: p-values of at most `fpr`; for None, the paper's rule."""
        if fpr is not None:
            return self.p_values(score, scores) <= fpr
        return scores > self.threshold(score, None)

    def validation_fpr(self, score: str, fpr: float | None) -> FalsePositiveRate | None:
        """Return the false positive rate on the validation images, all of them normal; None without any."""
        return false_positive_rate(self.outliers(score, self.validation.get(score, np.zeros(0)), fpr))


def fit_reference(
    model: Autoencoder | str | Path,
    pack: Pack,
    cache: str | Path | None = None,
    *,
    most: int | None = None,
    keep: bool = False,
    ray: str | None = None,
    progress: Progress | None = None,
) -> OutlierReference:
    """Fit detectors to the images a model was trained on, and score held-out images of the same pack.

    Args:
        model: from `load_model`, or its path.
        pack: the pack the model was trained on.
        cache: a file that keeps the result, see `load_reference`. If it exists and is of these images and
            this model, it is used; otherwise it is replaced. A file that cannot be written is ignored.
        most: images of each split to measure; see `reference_rows`.
        keep: make the result a part of the model, of at most 1,000 images of each split, so that `save_model`
            writes it: with the model file alone, images are then judged where the pack is not.
        ray: the address of a Ray cluster to measure on; this machine must be a node of it, and every node see
            the pack. See `joined_cluster`.
        progress: called with (images done, images in all).

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: the pack's images are of another size, fewer than two are for training, or their codes
            are not finite numbers.
        MissingExtraError: a cluster needs the optional part `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        PackError: the pack has changed on the disk meanwhile.
    """
    model = as_model(model)
    model.check_preprocessing(pack.preprocessing, pack.path)
    cache = None if cache is None else Path(cache)
    rows = reference_rows(pack, min(most or KEPT_IMAGES, KEPT_IMAGES) if keep else most)
    for found in (_of_model(model), None if cache is None else _read(cache, model)):
        if found is not None and found.pack == pack.fingerprint:
            counts = len(found.trained), found.calibration_images
            if counts == (len(rows["train"]), len(rows["test"])):
                model.reference = _to_keep(found) if keep else model.reference
                return found
    scores = scores_for(is_vae=model.is_vae)
    measure = measurer(model, scores)
    with joined_cluster(ray, "Measuring on a cluster") as cluster:
        detectors, test, validation, crossed = _fit(
            measure, scores, pack, rows, progress or (lambda done, total: None), cluster
        )
    digest_of = {entry.row: str(entry.sha256) for entry in pack.entries if entry.split == "train"}
    trained = tuple(digest_of[row] for row in rows["train"].tolist())
    reference = OutlierReference(
        detectors, test, validation, crossed, trained, model.digest, pack.fingerprint
    )
    if keep:
        model.reference = _to_keep(reference)
    # A model that was never saved has no digest, by which the file could be known to be its own. The cache
    # only saves time, so a run folder that cannot be written is not an error.
    if cache is not None and model.digest:
        with contextlib.suppress(OutputError):
            _write(cache, reference)
    return reference


def load_reference(model: Autoencoder | str | Path, cache: str | Path | None = None) -> OutlierReference:
    """Load what `fit_reference` kept: with it a model judges images where its training images are not.

    Args:
        model: from `load_model`, or its path.
        cache: the file of `fit_reference`, which may be of more images than the model file holds. Where it is
            missing, or of another model or version, the reference is that of the model file.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: there is none in the model file, either.
    """
    model = as_model(model)
    reference = (None if cache is None else _read(Path(cache), model)) or _of_model(model)
    if reference is None:
        raise ConfigError(
            "The model file does not hold the normal images of its training, by which others are judged. "
            "Give the pack of its training, or call fit_reference(model, pack, keep=True) and save the model."
        )
    return reference


def reference_rows(pack: Pack, most: int | None = None) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of each split of a pack that a reference is fitted to and calibrated on.

    Copies of an image are one observation. Rows are in no order of meaning, so any even sample is random.

    Args:
        pack: of the training.
        most: rows of each split; by default 2,000 of training and validation images, and all test images.
    """
    caps: dict[Split, int | None] = {"train": most or MOST_IMAGES, "test": most}
    caps["validation"] = caps["train"]
    return {split: _evenly(np.unique(pack.rows(split)), cap) for split, cap in caps.items()}


def scorer(reference: OutlierReference, score: str, model: Autoencoder) -> Callable[[torch.Tensor], Array]:
    """Return a function that scores images (B, 3, H, W) in [0, 1] by a reference of their model: (B,)."""
    # The names are looked up here: on a cluster the function travels with all that it refers to.
    measured = measured_for(SCORES[score])
    names = {score, *(one.name for one in measured)}
    detectors = {name: one for name, one in reference.detectors.items() if name in names}
    measure = measurer(model, measured)
    return lambda images: apply_detectors(detectors, measure(images))[score]


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
) -> tuple[dict[str, Detector], Measured, Measured, Measured]:
    """Return the detectors, and the scores of the test, the validation and the training images."""
    done, total = 0, sum(map(len, rows.values()))

    def measured(split: Split) -> Iterator[Measured]:
        nonlocal done
        for batch in map_pack(measure, pack, rows[split], BATCH, cluster):
            yield batch
            done += len(next(iter(batch.values())))
            progress(done, total)

    train = collected(measured("train"), len(rows["train"]))
    if not train:
        raise ConfigError(
            f"{pack.location} has no training images to fit scores to. Use more images; three in four become "
            "training images."
        )
    if not all(np.isfinite(values).all() for values in train.values()):
        raise ConfigError(
            "The codes of its training images are not finite numbers. Train anew with a lower learning rate."
        )
    detectors = fit_detectors(train, scores)
    crossed = cross_fitted(train, scores)
    del train  # its patches take up to 90 MB
    # Held-out images are scored a batch at a time: there may be many, and their quantities need not be kept.
    test, validation = (
        collected((apply_detectors(detectors, batch) for batch in measured(split)), len(rows[split]))
        for split in ("test", "validation")
    )
    parts = parts_of(crossed)
    if len(next(iter(validation.values()), ())) >= _FEWEST_UNSEEN:
        # The model knows these images: its errors of others are larger.
        parts = parts * np.median(parts_of(validation), axis=0) / np.median(parts, axis=0)
    auto = Combination.fit(parts)
    crossed[AUTO] = auto.score(parts)
    for held_out in filter(None, (test, validation)):
        held_out[AUTO] = auto.score(parts_of(held_out))
    return {AUTO: auto, **detectors}, test, validation, crossed


def _evenly(rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    if most is None or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


_SPLITS = ("calibration", "validation", "crossed")


def _to_keep(reference: OutlierReference) -> Kept:
    """Return a reference as tensors and JSON, without what says which model it is of."""
    arrays = to_arrays(reference.detectors)
    for split in _SPLITS:
        arrays |= {f"{split}.{score}": values for score, values in getattr(reference, split).items()}
    tensors = {name: torch.from_numpy(np.asarray(values, order="C")) for name, values in arrays.items()}
    content = {"pack": reference.pack, "trained": list(reference.trained), "version": FORMAT_VERSION}
    return Kept(tensors, content)


def _write(path: Path, reference: OutlierReference) -> None:
    tensors, content = _to_keep(reference)
    write_tensors(path, KIND, FORMAT_VERSION, tensors, {**content, "model": reference.model})


def _read(path: Path, model: Autoencoder) -> OutlierReference | None:
    """Read what an earlier call wrote, if it is of this version and model, and can score its images."""
    try:
        tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, PackError)
    except PackError:
        return None
    return _of_kept(Kept(tensors, content), model) if content.get("model") == model.digest else None


def _of_model(model: Autoencoder) -> OutlierReference | None:
    """Return the reference in a model file, if it is of this version and can score its images."""
    kept = model.reference
    return None if kept is None or kept.content.get("version") != FORMAT_VERSION else _of_kept(kept, model)


def _of_kept(kept: Kept, model: Autoencoder) -> OutlierReference | None:
    scores = scores_for(is_vae=model.is_vae)
    try:
        # Patches stay fp16, as they are when they are fitted.
        arrays = {
            name: (tensor if tensor.dtype == torch.float16 else tensor.double()).numpy()
            for name, tensor in kept.tensors.items()
        }
        pack = str(kept.content["pack"])
        detectors = {score.name: from_arrays(score.detector, score.name, arrays) for score in scores}
        trained = tuple(map(str, kept.content["trained"]))
    except (KeyError, TypeError):
        return None
    calibration, validation, crossed = (
        {score.name: arrays[name] for score in scores if (name := f"{split}.{score.name}") in arrays}
        for split in _SPLITS
    )
    found = OutlierReference(detectors, calibration, validation, crossed, trained, model.digest, pack)
    image = torch.zeros(1, 3, model.preprocessing.height, model.preprocessing.width)
    return found if _fits(found, measurer(model, scores)(image)) else None


def _fits(kept: OutlierReference, measured: Measured) -> bool:
    """Whether a kept reference can score an image, given its quantities; one in a forged file may not."""
    # Otherwise it is fitted again, before scoring and not with an error in the middle of it.
    try:
        found = apply_detectors(kept.detectors, measured)
        medians = [float(one.median) for one in kept.detectors.values() if isinstance(one, Value)]
    except (KeyError, ValueError, IndexError, TypeError, AssertionError):
        return False
    fits = all(one.shape == (1,) and bool(np.isfinite(one).all()) for one in found.values())
    fits &= all(values.shape == (len(kept.trained),) for values in kept.crossed.values())
    for split in (kept.calibration, kept.validation, kept.crossed):
        # A score without its calibration would get p-values of 1: nothing would ever be an outlier.
        fits &= split.keys() in (set(), kept.detectors.keys())
        fits &= len({one.shape for one in split.values()}) <= 1
        fits &= all(one.ndim == 1 and bool(np.isfinite(one).all()) for one in split.values())
    return fits and all(map(math.isfinite, medians))
