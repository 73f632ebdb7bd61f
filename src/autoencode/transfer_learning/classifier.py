"""A classifier of images in one file that needs no other, and `classify`.

Shapes: B batch, F features, K classes. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import TABLES, check_output, write_bytes
from autoencode.csv_files import csv_bytes
from autoencode.data.preprocessing import WRITABLE, Limits, read_chunks, save_image
from autoencode.data.sources import expanded, paths_given, read_beside
from autoencode.embedding import EMBEDDINGS, PRETRAINED_KINDS, ImageEncoder, find_encoder
from autoencode.errors import ModelFileError
from autoencode.feature_maps import descriptions, trace
from autoencode.figures import image_grid, png
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.model_file import (
    check_finite,
    model_of_parts,
    parts_of_model,
    read_tensors,
    with_prefix,
    without_prefix,
    write_tensors,
)
from autoencode.pixels import to_float
from autoencode.transfer_learning.probe import Floats, LinearProbe

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Preprocessing

CLASSIFIER_NAME = "classifier.safetensors"
FORMAT_VERSION = 3  # 2 had other pretrained features; 1 held a model of format 1
MODEL, PROBE = "model/", "probe/"  # prefixes of the names of their tensors

CODE = "code"

CHUNK = 64  # images in memory at once
SHEET_IMAGES = 64  # nobody looks through a longer sheet

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Classifier:
    """From images to probabilities of classes.

    Attributes:
        model: the whole model, as it was or fine-tuned; pretrained features do not depend on it.
        features: input of the probe: "code", one of `PRETRAINED_KINDS`, or pooled maps of a layer of the
            encoder, such as "encoder.layers.0 4x4" (see `feature_maps.descriptions`).
        classes: the names of the K classes.
        probe: from these features to the classes.
        provenance: labelled images it was learned from and its accuracy, as JSON can hold them.
        digest: sha256 of the file it was loaded from, or "".
    """

    model: Autoencoder
    features: str
    classes: tuple[str, ...]
    probe: LinearProbe
    provenance: Mapping[str, Any]
    digest: str = ""

    @property
    def preprocessing(self) -> Preprocessing:
        """How files become the images that are classified."""
        encoder = _backbone(self.features)
        return self.model.preprocessing if encoder is None else encoder.preprocessing

    def probabilities(self, images: Tensor) -> NDArray[np.float64]:
        """Return (B, K) of images (B, 3, H, W) in [0, 1].

        Raises:
            ConfigError: the images have another shape or type than the model takes.
            MissingExtraError: the weights of the pretrained network are not installed.
            ModelFileError: its weights are so large that the probabilities are not finite.
        """
        parts = [self._features(chunk) for chunk in torch.split(images, CHUNK) if len(chunk)]
        features = np.concatenate(parts) if parts else np.zeros((0, len(self.probe.mean)), np.float32)
        # A file from elsewhere may hold any numbers; the probabilities are checked below.
        with np.errstate(over="ignore", invalid="ignore"):
            found = self.probe.probabilities(features)
        if not np.isfinite(found).all():
            raise ModelFileError("The probabilities of the classifier are not finite: its file is damaged.")
        return found

    def _features(self, images: Tensor) -> Floats:
        if self.features in EMBEDDINGS:
            return EMBEDDINGS[self.features].encoder(self.model).encode(images)
        return encoder_features(self.model, images)[self.features].numpy()


def _backbone(features: str) -> ImageEncoder | None:
    """Return the pretrained network that gives these features; None for those of a model."""
    return find_encoder(features) if features in PRETRAINED_KINDS else None


def encoder_features(model: Autoencoder, images: Tensor) -> dict[str, Tensor]:
    """Return the features of an encoder that a probe can be fitted to, (B, F) each.

    Args:
        model: from `load_model`.
        images: (B, 3, H, W) in [0, 1], a batch small enough to go through the model at once.

    Returns:
        The pooled maps of each layer, shallow to deep, by their name in `feature_maps.descriptions`, and the
        codes as "code".

    Raises:
        ConfigError: the images have another shape or type than the model was trained on.
    """
    layers, codes = trace(model, images)
    return {**descriptions(layers), CODE: codes}


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: the image file.
        label: the most probable class.
        probability: of that class, in (0, 1]; not calibrated, and high for images unlike all classes, too.
    """

    path: Path
    label: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """The result of `classify`.

    Attributes:
        results: for each image that could be used, in the order given.
        skipped: the other files, with the reason.
        probabilities: (N, K), one row per result.
        classes: the names of the K columns.
        sheet: pixels (H, W, 3): the first images with their classes.
    """

    results: list[Prediction]
    skipped: list[tuple[Path, str]]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    sheet: Pixels

    def _repr_png_(self) -> bytes:
        return png(self.sheet)


def classify(
    classifier: Classifier,
    images: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Predict the class of images.

    Args:
        classifier: from `load_classifier` or `transfer`.
        images: image files, and folders of them.
        out: a table, .csv or .json; a sheet of the first images is written beside it, see `sheet_path`. None
            writes nothing.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        ConfigError: `out` is not a table, or `out` or the sheet is one of the images, or holds something of
            another kind.
        MissingExtraError: the weights of the pretrained network are not installed.
        OutputError: `out` cannot be written.
    """
    out = None if out is None else Path(out)
    if out is not None:
        check_output(out, TABLES, paths_given(images) or ())  # a table that was given is an input, too
    paths = expanded(images) if out is None else read_beside(images, sheet_path(out))
    if out is not None:
        check_output(out, TABLES, paths)
        check_output(sheet_path(out), WRITABLE, paths)
    skipped = list(paths.skipped)
    results, probabilities, shown = list[Prediction](), list[NDArray[np.float64]](), list[Pixels]()
    done = 0
    for usable, pixels in read_chunks(paths, CHUNK, classifier.preprocessing, limits or Limits(), skipped):
        found = classifier.probabilities(to_float(pixels))
        best = found.argmax(axis=1)
        for index, path in enumerate(usable):
            label, probability = classifier.classes[best[index]], float(found[index, best[index]])
            results.append(Prediction(path, label, probability))
        # Only the pixels that the sheet shows are kept: memory must not grow with the images.
        shown.append(pixels[: SHEET_IMAGES - sum(map(len, shown))])
        probabilities.append(found)
        done = min(done + CHUNK, len(paths))
        if progress:
            progress(done, len(paths))
    captions = [f"{result.label} {result.probability:.0%}" for result in results[:SHEET_IMAGES]]
    sheet = image_grid(np.concatenate(shown), captions=captions)
    made = Predictions(results, skipped, np.concatenate(probabilities), classifier.classes, sheet)
    if out is not None:
        write_bytes(out, _csv(made) if out.suffix.lower() == ".csv" else _json(made))
        save_image(sheet_path(out), sheet)
    return made


def sheet_path(table: Path) -> Path:
    """Return the path of the sheet that belongs to a table: beside it, `<name>-sheet.png`."""
    return table.with_name(f"{table.stem}-sheet.png")


def save_classifier(path: str | Path, classifier: Classifier) -> str:
    """Write a classifier to one file that needs no other, whole or not at all, and return its sha256.

    Raises:
        ModelFileError: a weight is not finite; nothing is written.
        OutputError: the file cannot be written; what was there before is unchanged.
    """
    path = Path(path)
    weights, described = parts_of_model(path, classifier.model, classifier.model.provenance)
    probe = {name: torch.from_numpy(value) for name, value in vars(classifier.probe).items()}
    check_finite(path, probe)
    content = {
        "model": described,
        "features": classifier.features,
        "classes": list(classifier.classes),
        "provenance": dict(classifier.provenance),
    }
    # The network is not in the file; on another version of it the probe would see other features.
    if (encoder := _backbone(classifier.features)) is not None:
        content["pretrained"] = encoder.digest
    return write_tensors(
        path,
        "classifier",
        FORMAT_VERSION,
        {**with_prefix(MODEL, weights), **with_prefix(PROBE, probe)},
        content,
    )


def load_classifier(path: str | Path) -> Classifier:
    """Load a classifier.

    Args:
        path: its file, or the folder that `transfer` wrote.

    Raises:
        ModelFileError: there is no such file; it is not a classifier, damaged or of another version; or it
            was learned on other pretrained features than those installed.
        MissingExtraError: the weights of the pretrained network are not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CLASSIFIER_NAME
    if not path.exists():
        raise ModelFileError(f"No classifier file at {path}. Make one: autoencode transfer MODEL LABELLED")
    tensors, content, digest = read_tensors(
        path, "classifier", FORMAT_VERSION, ModelFileError, remake="Learn it anew with autoencode transfer."
    )
    check_finite(path, tensors)
    try:
        model = model_of_parts(path, without_prefix(MODEL, tensors), content["model"])
        if not isinstance(model, Autoencoder):
            raise ValueError("its model has no codes")
        probe = LinearProbe(**{name: part.numpy() for name, part in without_prefix(PROBE, tensors).items()})
        classes, features = tuple(content["classes"]), str(content["features"])
        _check_probe(probe, classes, features, model)
        provenance, learned_on = dict(content["provenance"]), content.get("pretrained")
    except (KeyError, TypeError, ValueError) as err:
        raise ModelFileError(f"{path} does not hold a usable classifier: {err}".splitlines()[0]) from err
    if (encoder := _backbone(features)) is not None and learned_on != encoder.digest:
        raise ModelFileError(
            f"{path} was learned on other pretrained features than those installed. Learn it anew with "
            "autoencode transfer."
        )
    return Classifier(model, features, classes, probe, provenance, digest)


def _check_probe(probe: LinearProbe, classes: Sequence[str], features: str, model: Autoencoder) -> None:
    if not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not names")
    size = (len(probe.mean), len(classes))
    shapes = (probe.mean.shape, probe.scale.shape, probe.weights.shape, probe.bias.shape)
    if shapes != ((size[0],), (size[0],), size, (size[1],)):
        raise ValueError("its parts do not fit together")
    blank = torch.zeros(1, 3, model.preprocessing.height, model.preprocessing.width)
    # Found by running the encoder, as the names and sizes of its layers are nowhere else.
    sizes = {name: part.shape[1] for name, part in encoder_features(model, blank).items()}
    if (encoder := _backbone(features)) is not None:
        sizes[features] = encoder.size
    if sizes.get(features) != size[0]:
        raise ValueError(f"there are no {size[0]} features {features!r}")


def _csv(made: Predictions) -> bytes:
    rows = ([result.path, result.label, f"{result.probability:.6g}"] for result in made.results)
    return csv_bytes([["path", "class", "probability"], *rows])


def _json(made: Predictions) -> bytes:
    images = [
        {
            "path": str(result.path),
            "class": result.label,
            "probability": result.probability,
            "probabilities": dict(zip(made.classes, row.tolist(), strict=True)),
        }
        for result, row in zip(made.results, made.probabilities, strict=True)
    ]
    skipped = [{"path": str(path), "reason": reason} for path, reason in made.skipped]
    return (json.dumps({"images": images, "skipped": skipped}, indent=2, allow_nan=False) + "\n").encode()
