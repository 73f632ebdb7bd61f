"""How well a model tells the images of another folder from held-out images of its own pack.

How good a model is on images it has not seen, beside PCA of the same code size, and how sure that is.

Memory is bounded whatever the number of images: they are read in batches, PCA and KID take so many at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.corruptions import parse_corruptions
from autoencode.data.loader import batches
from autoencode.data.sources import find_images
from autoencode.errors import ConfigError, MissingExtraError
from autoencode.evaluation.quality import (
    BATCH,
    CodeQuality,
    HeldOutImages,
    ImageQuality,
    Restore,
    code_quality,
    distances,
    image_quality,
    label_quality,
    likelihood_variance,
)
from autoencode.metrics.statistics import Estimate, auroc_estimate
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import as_model
from autoencode.models.pca import PASSES, PrincipalComponents, principal_components_of_images
from autoencode.outliers.calibration import fit_reference
from autoencode.outliers.find import find_outliers

if TYPE_CHECKING:
    from autoencode.configuration import PriorName, Split
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Limits
    from autoencode.index.retrieval import RetrievalQuality
    from autoencode.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class Detection:
    """How well other images are told from the held-out ones.

    Attributes:
        folder: where the other images are.
        images: how many of them could be used.
        score: name of the outlier score, see `find_outliers`.
        auroc: area under its ROC curve: 1 where every other image scores above every held-out one, 0.5 for
            chance.
    """

    folder: str
    images: int
    score: str
    auroc: Estimate


def detect(
    model: Autoencoder,
    pack: Pack,
    folder: str,
    paths: Sequence[Path],
    limits: Limits | None,
    report: Callable[[str, int, int], None],
) -> tuple[Detection, int]:
    """Measure it, by the score that is the default of `find_outliers`.

    Args:
        model: from `load_model`.
        pack: of its training, with test images.
        folder: where the other images are, for the result to name.
        paths: the other images.
        limits: the largest files and pictures of them to accept.
        report: called with (stage, images done, images in all) of each stage.

    Returns:
        What was measured, and how many of the other images could not be used.

    Raises:
        ImageFolderError: none of them could.
    """
    reference = fit_reference(model, pack, progress=partial(report, "fitting to normal images"))
    found = find_outliers(model, paths, reference, limits=limits, progress=report)
    scores = np.array([image.score for image in found.images])
    auroc = auroc_estimate(reference.calibration[found.score], scores)
    return Detection(folder, len(scores), found.score, auroc), len(found.skipped)


# Of more, PCA would not change; a kernel distance of so many takes 100 MB and its noise is far below what
# tells models apart.
PCA_IMAGES, KID_IMAGES = 20_000, 1_000
PCA_SHARE = 4  # images PCA is fitted to for each one of a sample that is measured on
LEAST_KID_IMAGES = 10  # a distance of fewer has no interval worth the name

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured. Intervals are at 95 %.

    Attributes:
        model: digest of the model file.
        pack: fingerprint of the pack.
        split: what the images are of: "test", or what stood in for it; see `Pack.held_out`.
        images: how many there are; copies of one count once.
        code_size: values in a code.
        corruptions: what was done to the images before the model and PCA saw them: that of its training.
        reconstruction: how close the model's reconstructions are to the clean images.
        pca: the same of PCA with as many components, fitted to the training images.
        pca_components: how many it has; fewer than the code where there are fewer images.
        pca_images: how many images it was fitted to.
        corrupted: the same of the corrupted images themselves; None without corruptions.
        kid: KID (EfficientNet-Lite0) from the held-out images, of: "training_images" (the floor),
            "reconstructions", "pca_reconstructions", "samples_normal", "samples_mixture", where there are
            such. None where it could not be measured.
        code: of a VAE; None of a plain autoencoder.
        detection: how well images of another folder are told apart; None where none was given.
        labels: with a sub-folder a label: how well the nearest of the other held-out images share the label
            of an image, by "codes" and by raw "pixels". None without labels.
        notes: what stood in for what, and what was left out and why.
    """

    model: str
    pack: str
    split: Split
    images: int
    code_size: int
    corruptions: tuple[str, ...]
    reconstruction: ImageQuality
    pca: ImageQuality
    pca_components: int
    pca_images: int
    corrupted: ImageQuality | None
    kid: dict[str, Estimate] | None
    code: CodeQuality | None
    detection: Detection | None
    labels: dict[str, RetrievalQuality] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; an interval is a list of its two ends."""
        return asdict(self)


def evaluate(
    model: Autoencoder | str | Path,
    pack: Pack,
    *,
    ood: str | Path | None = None,
    limits: Limits | None = None,
    kid: bool = True,
    most_images: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on the held-out images of a pack. The same model and pack give the same numbers.

    Args:
        model: from `load_model`, or its path.
        pack: of its training, for images it has not seen.
        ood: a folder of images of another kind, to be told from the held-out ones.
        limits: the largest files and pictures of it to accept.
        kid: whether to measure kernel distances, which takes minutes on a CPU.
        most_images: measure on a sample of so many of the held-out images, and fit PCA to a sample of four
            times as many training images; None takes all (20,000 for PCA).
        progress: called with (stage, images done, images in all) of each stage.

    Raises:
        ModelFileError: the path given leads to no model.
        ConfigError: the pack's images are not read the way the model's are.
        ImageFolderError: `ood` is missing, or none of its images can be used.
        PackError: the pack has changed on the disk meanwhile.
    """
    model = as_model(model)
    model.check_preprocessing(pack.preprocessing, pack.path)
    others = None if ood is None else find_images(Path(ood))
    report = progress or (lambda stage, done, total: None)
    held_out = pack.held_out()
    chain = tuple(model.provenance.get("train", {}).get("corrupt", ()))
    # Rows are in the order of content digests, so the first of them are a random sample.
    rows = pack.reading_order(_distinct(held_out.rows)[:most_images])
    images = HeldOutImages(pack, rows, parse_corruptions(chain))
    training = _distinct(pack.training_rows())
    count = len(images.rows)

    pca_rows = pack.reading_order(training[: PCA_SHARE * most_images if most_images else PCA_IMAGES])
    pca = _fit_pca(model, pack, pca_rows, report)
    restorers: dict[str, Restore] = {
        "reconstructions": model.reconstruct,
        "pca_reconstructions": partial(_restore, pca),
        **({"corrupted": lambda seen: seen} if chain else {}),
    }
    close = image_quality(images, restorers, _counter(report, "comparing reconstructions", count))
    code = None
    if model.is_vae:
        code = code_quality(model, images, _counter(report, "measuring the code", count))
    notes = _notes(model, pack, held_out.split)
    detection = None
    if others is not None and held_out.split == "test":
        detection, skipped = detect(model, pack, str(ood), others, limits, report)
        if skipped:
            notes.append(f"{skipped} files of {ood} could not be used.")
    elif others is not None:
        notes.append("Telling other images apart is left out: it takes test images to tell them from.")
    found = None
    try:
        if kid:
            _ = BACKBONE.digest  # raises before the long work where the network is not installed
            found = _distances(model, images, None if held_out.split == "train" else training, pca, report)
            if found is None:
                notes.append(f"KID is left out: it takes {LEAST_KID_IMAGES} images, and there are {count}.")
    except MissingExtraError as err:
        notes.append(f"KID is left out. {err}")
    return Evaluation(
        model=model.digest,
        pack=pack.fingerprint,
        split=held_out.split,
        images=count,
        code_size=model.config.code_size,
        corruptions=chain,
        reconstruction=close["reconstructions"],
        pca=close["pca_reconstructions"],
        pca_components=len(pca.directions),
        pca_images=len(pca_rows),
        corrupted=close.get("corrupted"),
        kid=found,
        code=code,
        detection=detection,
        labels=_labels(model, images, notes),
        notes=tuple(notes),
    )


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out copies, which are no further observations; the order stays that of the content's digests."""
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _counter(report: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        report(stage, done, total)

    return advance


def _fit_pca(
    model: Autoencoder, pack: Pack, rows: NDArray[np.int64], report: Progress
) -> PrincipalComponents:
    advance = _counter(report, "fitting PCA", PASSES * len(rows))

    def read() -> Iterator[Tensor]:
        for batch in batches(pack, rows, 4 * BATCH):
            yield batch.flatten(1)
            advance(len(batch))

    return principal_components_of_images(read, model.config.code_size)


def _restore(pca: PrincipalComponents, images: Tensor) -> Tensor:
    """What PCA makes of images, within the range of pixels as the model's are."""
    return pca.restore(images.flatten(1)).reshape(images.shape).clamp(0, 1)


def _distances(
    model: Autoencoder,
    images: HeldOutImages,
    training: NDArray[np.int64] | None,
    pca: PrincipalComponents,
    report: Progress,
) -> dict[str, Estimate] | None:
    count = min(KID_IMAGES, len(images.rows), *([] if training is None else [len(training)]))
    if count < LEAST_KID_IMAGES:
        return None
    priors: list[PriorName] = ["normal"] if model.is_vae else []
    if model.prior is not None:
        priors.append("mixture")
    sets = 3 + (training is not None) + len(priors)
    return distances(
        model,
        images.first(count),
        None if training is None else training[:count],
        {"reconstructions": model.reconstruct, "pca_reconstructions": partial(_restore, pca)},
        tuple(priors),
        _counter(report, "measuring KID", sets * count),
    )


def _labels(
    model: Autoencoder, images: HeldOutImages, notes: list[str]
) -> dict[str, RetrievalQuality] | None:
    label_of = {entry.row: entry.label for entry in images.pack.entries if entry.label is not None}
    rows = np.array([row for row in images.rows.tolist() if row in label_of], np.int64)
    if len(images.pack.labels) < 2 or not len(rows):
        return None
    try:
        return label_quality(model, images.pack, rows, np.array([label_of[row] for row in rows.tolist()]))
    except ConfigError as err:
        notes.append(f"Labels are left out. {err}")
        return None


def _notes(model: Autoencoder, pack: Pack, split: Split) -> list[str]:
    other = model.note_of(pack.fingerprint)
    notes = [] if other is None else [other]
    if split != "test":
        what = "validation images stand in" if split == "validation" else "training images, seen, stand in"
        notes.append(f"{pack.location} has no test images: its {what} for them.")
    elif not len(pack.rows("train")):
        notes.append(f"{pack.location} has no training images: the model was trained on all, these too.")
    if model.prior is None:
        notes.append(
            "No samples from a mixture: the model carries none. "
            "Give its `autoencode train` command again with --resume."
        )
    if model.is_vae and likelihood_variance(model) is None:
        notes.append("ELBO and bits a dimension are left out: the model was trained with absolute errors.")
    return notes
