"""Measure a model on images it has not seen, beside PCA of the same code size, with 95 % intervals.

Memory is bounded whatever the number of images: they are read in batches, and PCA and KID take a sample.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode import notebook
from autoencode.data.loader import batches
from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, open_pack, pack_to_measure
from autoencode.data.sources import find_images
from autoencode.errors import ConfigError
from autoencode.evaluation.quality import (
    BATCH,
    CodeQuality,
    HeldOutImages,
    ImageQuality,
    Restore,
    code_quality,
    image_quality,
    label_quality,
    likelihood_variance,
)
from autoencode.evaluation.sets import SHARP, SetQuality, sampling_note, set_qualities
from autoencode.generation import priors
from autoencode.metrics.images import MEASURES, mean_squared_error
from autoencode.metrics.statistics import Estimate, auroc_estimate
from autoencode.models.model_file import as_model
from autoencode.models.pca import PASSES, PrincipalComponents, principal_components_of_images
from autoencode.outliers.find import find_outliers

if TYPE_CHECKING:
    from autoencode.configuration import Split
    from autoencode.data.pack import Progress, StageProgress
    from autoencode.data.preprocessing import Limits
    from autoencode.metrics.retrieval import RetrievalQuality
    from autoencode.models.autoencoder import Autoencoder

# More images would not change PCA. A kernel distance of 1,000 images takes 100 MB, and its noise is far below
# the differences between models.
PCA_IMAGES, KID_IMAGES = 20_000, 1_000
LEAST_KID_IMAGES = 10  # with fewer, the interval of the distance is too wide to mean anything
PCA_IMAGES_PER_IMAGE = 4  # PCA is fitted to this many images per image of the measured sample


@dataclass(frozen=True)
class Detection:
    """How well the outlier score distinguishes out-of-distribution images from the held-out ones.

    Attributes:
        folder: of the out-of-distribution images.
        images: number of them that could be used.
        score: name of the outlier score, see `find_outliers`.
        auroc: area under its ROC curve: 1 if each of these images scores above every held-out one, 0.5 for
            chance.
    """

    folder: str
    images: int
    score: str
    auroc: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. Intervals are at 95 %.

    Attributes:
        model: digest of the model file.
        pack: fingerprint of the pack.
        split: of the images: "test", or the split that stood in for it; see `Pack.held_out`.
        images: number of images; copies of one count once.
        code_size: number of code dimensions.
        corruptions: those of the training, which the inputs of the model and of PCA get, too.
        reconstruction: how close the reconstructions of the faithful decoder are to the clean images.
        sharp: the same of the sharp decoder; None if the model has none.
        pca: the same of PCA with as many components, fitted to the training images; None if these are not
            at hand, as PCA of the images that are measured would restore them exactly.
        pca_components: its components; fewer than the code dimensions if there are fewer images.
        pca_images: number of images it was fitted to.
        corrupted: the same of the corrupted images themselves; None without corruptions.
        sets: how like the held-out images several sets are: "training_images" (the floor),
            "reconstructions", "pca_reconstructions", "samples_normal" and "samples_mixture", as far as the
            model and the pack have them, and with the ending "_sharp" those of the sharp decoder. None if
            they were not compared.
        code: of a VAE; None for a plain autoencoder.
        detection: of images of another folder as outliers; None if no folder was given.
        labels: for a folder with one sub-folder per label: how well the nearest of the other held-out images
            share the label of an image, by "codes" and by raw "pixels". None without labels.
        notes: what was left out or replaced, and why, one sentence each.
    """

    model: str
    pack: str
    split: Split
    images: int
    code_size: int
    corruptions: tuple[str, ...]
    reconstruction: ImageQuality
    sharp: ImageQuality | None
    pca: ImageQuality | None
    pca_components: int
    pca_images: int
    corrupted: ImageQuality | None
    sets: dict[str, SetQuality] | None
    code: CodeQuality | None
    detection: Detection | None
    labels: dict[str, RetrievalQuality] | None
    notes: tuple[str, ...]

    @property
    def error_saved(self) -> float | None:
        """Share of the squared error of PCA that the model does not make; None if they cannot be compared."""
        own, other = self.reconstruction.mse, None if self.pca is None else self.pca.mse
        return None if own is None or other is None or not other.value else 1 - own.value / other.value

    def _repr_html_(self) -> str:
        of = {"model": self.reconstruction, "sharp decoder": self.sharp, "PCA": self.pca}
        columns = {name: quality for name, quality in of.items() if quality is not None}
        rows = []
        for field, measure in MEASURES.items():
            found = [getattr(quality, field) for quality in columns.values()]
            rows.append((measure.label, *(None if one is None else one.value for one in found)))
        return notebook.table(f"{self.images:,} {self.split} images", ("", *columns), rows)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; an interval is a list of its two ends."""
        return asdict(self)


def _opened(given: Any, model: Autoencoder, folder: Path) -> Pack:  # noqa: ANN401
    """Open the pack at a path, or pack images that the model has not seen into a folder."""
    if isinstance(given, str | Path) and is_pack(Path(given)):
        return open_pack(given)
    return pack_to_measure(given, model.preprocessing, folder / "pack")


def evaluate(
    model: Autoencoder | str | Path,
    pack: Any,  # noqa: ANN401 - a pack or, as `listed` takes them, images
    *,
    ood: str | Path | None = None,
    limits: Limits | None = None,
    kid: bool = True,
    most_images: int | None = None,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Measure a model on the held-out images of a pack. The same model and pack give the same numbers.

    Args:
        model: from `load_model`, or its path.
        pack: the pack it was trained on, whose held-out images it has not seen, or its path; or other images,
            all of which are measured.
        ood: a folder of out-of-distribution images, to be distinguished from the held-out ones.
        limits: the largest files and pictures of it to accept.
        kid: whether to compare sets of images by networks, which takes minutes on a CPU.
        most_images: measure on a sample of so many of the held-out images, and fit PCA to a sample of four
            times as many training images; None takes all (20,000 for PCA).
        progress: called with (stage, images done, images in all) of each stage.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: the pack has other preprocessing than the model, or holds no images at all.
        ImageFolderError: `ood` is missing, or none of its images can be used.
        PackError: the pack has changed on the disk meanwhile.
    """
    model = as_model(model)
    if not isinstance(pack, Pack):
        with tempfile.TemporaryDirectory(prefix="autoencode-") as folder:
            opened = _opened(pack, model, Path(folder))
            how: Any = {"limits": limits, "kid": kid, "most_images": most_images, "progress": progress}
            return evaluate(model, opened, ood=ood, **how)
    model.check_preprocessing(pack.preprocessing, pack.path)
    report = progress or (lambda stage, done, total: None)
    held_out = pack.held_out()
    # Rows are in the order of content digests, so the first of them are a random sample.
    images = HeldOutImages.for_model(model, pack, pack.reading_order(_distinct(held_out.rows)[:most_images]))
    training = _training_rows(model, pack)
    notes = _notes(model, pack, held_out.split, has_training_images=len(training) > 0)
    # Before the long work, as the folder is the one argument that may turn out to be unusable.
    detection = None if ood is None else _detect(model, pack, Path(ood), limits, notes, report)
    pca_images = PCA_IMAGES_PER_IMAGE * most_images if most_images else PCA_IMAGES
    pca_rows = pack.reading_order(training[:pca_images])
    pca = _fit_pca(model, pack, pca_rows, report) if len(pca_rows) else None
    count = len(images.rows)
    restorers: dict[str, Restore] = {"reconstructions": partial(model.reconstruct, decoder="faithful")}
    if pca is not None:
        restorers["pca"] = partial(_restore, pca)
    if model.sharp_decoder is not None:
        restorers["sharp"] = model.reconstruct
    if images.corruptions:
        restorers["corrupted"] = lambda seen: seen
    close = image_quality(images, restorers, _counter(report, "comparing reconstructions", count))
    code = None
    if model.is_vae:
        code = code_quality(model, images, _counter(report, "measuring the code", count))
    # The floor of KID needs other images of the same kind, and there are none if all were trained on.
    floor = training if held_out.split != "train" and len(training) else None
    return Evaluation(
        model=model.digest,
        pack=pack.fingerprint,
        split=held_out.split,
        images=count,
        code_size=model.config.code_size,
        corruptions=model.training_corruptions,
        reconstruction=close["reconstructions"],
        sharp=close.get("sharp"),
        pca=close.get("pca"),
        pca_components=0 if pca is None else len(pca.directions),
        pca_images=len(pca_rows),
        corrupted=close.get("corrupted"),
        sets=_compared(model, images, floor, pca, notes, report) if kid else None,
        code=code,
        detection=detection,
        labels=_labels(model, images, notes),
        notes=tuple(notes),
    )


def reconstruction_errors(
    model: Autoencoder, pack: Pack, rows: NDArray[np.int64], progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return the mean squared error (N,) of the reconstruction of each of some images, for looking at them.

    Args:
        model: from `load_model`.
        pack: the images, of the model's size.
        rows: (N,) of the pack.
        progress: called with (images done, images in all).
    """
    errors = [
        mean_squared_error(model.reconstruct(images), images).double().numpy()
        for images in batches(pack, rows, BATCH, progress=progress)
    ]
    return np.concatenate([np.zeros(0), *errors])


def _detect(
    model: Autoencoder,
    pack: Pack,
    folder: Path,
    limits: Limits | None,
    notes: list[str],
    report: StageProgress,
) -> Detection | None:
    paths = find_images(folder)
    if not len(pack.rows("test")):
        notes.append(f"Images of {folder} are not scored: the pack has no test images to compare them with.")
        return None
    found = find_outliers(model, paths, pack, limits=limits, progress=report)
    if found.skipped:
        notes.append(f"{len(found.skipped)} files of {folder} could not be used.")
    # Against the calibration scores: test images, which neither the model nor the score was fitted on.
    scores = np.array([image.score for image in found.images])
    auroc = auroc_estimate(found.calibration, scores)
    return Detection(str(folder), len(scores), found.score, auroc)


def _training_rows(model: Autoencoder, pack: Pack) -> NDArray[np.int64]:
    """Return the rows (N,) to compare the held-out images with; none if they are all that is at hand."""
    are_other_images = model.note_of(pack.fingerprint) is not None
    if are_other_images and (pack.held_out().split == "train" or not len(pack.rows("train"))):
        return np.zeros(0, np.int64)
    return _distinct(pack.training_rows())


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out copies, which are not further observations, and keep the order: that of content digests."""
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _counter(report: StageProgress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        report(stage, done, total)

    return advance


def _fit_pca(
    model: Autoencoder, pack: Pack, rows: NDArray[np.int64], report: StageProgress
) -> PrincipalComponents:
    advance = _counter(report, "fitting PCA", PASSES * len(rows))

    # Read anew for each pass: the pixels of 20,000 images of 128x128 would take 3.9 GB.
    def read() -> Iterator[Tensor]:
        for batch in batches(pack, rows, 4 * BATCH):
            yield batch.flatten(1)
            advance(len(batch))

    return principal_components_of_images(read, model.config.code_size)


def _restore(pca: PrincipalComponents, images: Tensor) -> Tensor:
    """Reconstruct images by PCA, within the range of pixels as the model does."""
    return pca.restore(images.flatten(1)).reshape(images.shape).clamp(0, 1)


def _compared(
    model: Autoencoder,
    images: HeldOutImages,
    training: NDArray[np.int64] | None,
    pca: PrincipalComponents | None,
    notes: list[str],
    report: StageProgress,
) -> dict[str, SetQuality] | None:
    count = min(KID_IMAGES, len(images.rows), *([] if training is None else [len(training)]))
    if count < LEAST_KID_IMAGES:
        notes.append(f"KID is left out: it takes {LEAST_KID_IMAGES} images, and there are {count}.")
        return None
    restorers: dict[str, Restore] = {"reconstructions": partial(model.reconstruct, decoder="faithful")}
    if model.sharp_decoder is not None:
        restorers[f"reconstructions{SHARP}"] = model.reconstruct
    if pca is not None:
        restorers["pca_reconstructions"] = partial(_restore, pca)
    found = set_qualities(
        model,
        images.head(count),
        None if training is None else training[:PCA_IMAGES],
        restorers,
        priors(model),
        notes,
        lambda stage, total: _counter(report, stage, total),
    )
    if found is not None and priors(model) and (note := sampling_note(found, priors(model)[0])):
        notes.append(note)
    return found


def _labels(
    model: Autoencoder, images: HeldOutImages, notes: list[str]
) -> dict[str, RetrievalQuality] | None:
    # Rows are counted: copies of an image share one, and count once.
    label_of = {entry.row: entry.label for entry in images.pack.entries if entry.label is not None}
    rows = np.array([row for row in images.rows.tolist() if row in label_of], np.int64)
    if len(images.pack.labels) < 2 or not len(rows):
        return None
    # Labels are optional: a folder whose labels cannot be used is still measured otherwise.
    try:
        return label_quality(model, images.pack, rows, np.array([label_of[row] for row in rows.tolist()]))
    except ConfigError as err:
        notes.append(f"Labels are left out. {err}")
        return None


def _notes(model: Autoencoder, pack: Pack, split: Split, *, has_training_images: bool) -> list[str]:
    other = model.note_of(pack.fingerprint)
    notes = [] if other is None else [other]
    if split != "test":
        seen = "" if split == "validation" else ", which the model has seen,"
        notes.append(f"{pack.location} has no test images: its {split} images{seen} stand in for them.")
    elif not len(pack.rows("train")) and other is None:
        notes.append(f"{pack.location} has no training images: the model was trained on all, also on these.")
    if not has_training_images:
        notes.append(
            "PCA is left out: it is fitted to the training images, and these are not at hand. "
            "Give the pack of the training instead."
        )
    if model.prior is None:
        notes.append(
            "No samples from a mixture: the model file has none. "
            "Give its `autoencode train` command again with --resume."
        )
    if model.is_vae and likelihood_variance(model) is None:
        notes.append("ELBO and bits per dimension are left out: the model was trained with absolute errors.")
    return notes
