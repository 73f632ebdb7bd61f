"""Describe a file or folder of autoencode: its images, its quality, and the command that makes it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autoencode.configuration import Split
from autoencode.data.folders import EXTENSIONS, by_type, files_under
from autoencode.data.manifest import is_pack
from autoencode.data.pack import open_known_pack, open_pack, suited
from autoencode.data.sources import listed
from autoencode.errors import AutoencodeError, ConfigError
from autoencode.index import open_index, store_at
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.model_file import MODEL_NAME, kind_of, load_any
from autoencode.models.networks import NETWORKS
from autoencode.outliers.normal import KIND as NORMAL
from autoencode.outliers.normal import load_normal
from autoencode.storage import is_url
from autoencode.training.config import TrainConfig
from autoencode.training.progress import epochs_in_words, read_training
from autoencode.training.run import is_run, repeating_command, run_file
from autoencode.training.settings import settings_file
from autoencode.transfer_learning.classifier import CLASSIFIER_NAME, load_classifier

if TYPE_CHECKING:
    from autoencode.models.image_model import ImageModel


@dataclass(frozen=True)
class Description:
    """The result of `describe`.

    Attributes:
        path: what was given.
        kind: "run", "model", "pack", "index", "normal images", "classifier", "images", or "results" of a
            folder that holds several of these.
        what: what it is, in words.
        images: the images it is of, in words.
        quality: how good it is, in words; "" if nothing was measured.
        repeat: a command that makes it again, or uses images; capitals stand for what is not known.
        numbers: the same and more, for programs.
        settings: of a model or run, a file for `autoencode train --config`; "" of anything else.
        holds: what a folder of results holds.
    """

    path: str
    kind: str
    what: str
    images: str
    quality: str
    repeat: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    settings: str = ""
    holds: tuple[Description, ...] = ()

    def __str__(self) -> str:
        """Return it in a few lines."""
        then = "next" if self.kind == "images" else "again"
        lines = {"is": self.what, "of": self.images, "quality": self.quality, then: self.repeat}
        of_each = ["; ".join(filter(None, (f"{one.path}: {one.what}", one.quality))) for one in self.holds]
        return "\n".join([*(f"{name + ':':9}{text}" for name, text in lines.items() if text), *of_each])

    def to_json(self) -> dict[str, Any]:
        """Return the fields but for the settings and what a folder holds, which are in `numbers`."""
        left_out = ("settings", "holds")
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in left_out}


def describe(path: str | Path) -> Description:
    """Return what a file or folder is, of which images, how good, and how to make it again.

    Args:
        path: a run, a model file, a pack, an index, a classifier, the normal images that `outliers` saved, a
            folder of images, or one of these results, such as `runs`.

    Raises:
        ConfigError: it is none of these.
        AutoencodeError: it is one of these, and damaged, unfinished or of another version.
    """
    reader = _reader(str(path))
    if reader is None:
        there = "is nothing that autoencode made" if Path(path).exists() else "does not exist"
        raise ConfigError(
            f"{path} {there}. Give a run folder, a model file, a pack, an index, a classifier, or a file of "
            "normal images."
        )
    return reader(str(path))


def _reader(path: str) -> Callable[[str], Description] | None:
    if (reader := _reader_of_one(path)) is not None:
        return reader
    folder = Path(path)
    if is_url(path) or not folder.is_dir():
        return None
    if next(_files(folder), None) is not None:
        return _images
    return _results if _results_in(folder) else None


def _reader_of_one(path: str) -> Callable[[str], Description] | None:
    folder = Path(path)
    if is_url(path):
        return _index if store_at(path) is not None else _pack
    if folder.is_file():
        readers = {"model": _model, NORMAL: _normal, "classifier": _classifier}
        return readers.get(kind_of(folder) or "")
    if not folder.is_dir():
        return None
    if is_run(folder):
        return _run
    if is_pack(folder):
        return _pack
    if (folder / CLASSIFIER_NAME).exists():
        return _classifier
    if (folder / MODEL_NAME).exists():
        return _model
    return _index if store_at(folder) is not None else None


def _results_in(folder: Path) -> list[Path]:
    inner = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in inner if _reader_of_one(str(path))]


def _results(path: str) -> Description:
    holds = tuple(map(_described, _results_in(Path(path))))
    what = f"a folder of {len(holds):,} result{'' if len(holds) == 1 else 's'} of autoencode"
    numbers = {"results": [one.to_json() for one in holds]}
    return Description(path, "results", what, "", "", "", numbers, holds=holds)


def _described(path: Path) -> Description:
    try:
        return describe(path)
    except AutoencodeError as err:  # one that is damaged does not hide the others
        return Description(str(path), "unusable", str(err), "", "", "")


def _files(folder: Path) -> Iterator[str]:
    return (path for path in files_under(str(folder)) if path.lower().endswith(EXTENSIONS))


def _images(path: str) -> Description:
    listing = listed(path)
    chosen, reason = suited(listing)
    types, _ = by_type(listing.skipped)
    tops = {name.partition("/")[0] for name in listing.names if "/" in name}
    labels = f" in {len(tops):,} sub-folders" if tops else ""
    given = shlex.quote(path)
    return Description(
        path,
        "images",
        f"a folder of {len(listing.names):,} images{labels}{f'; {listing.note}' if listing.note else ''}",
        f"{reason}; training would read them as {chosen}",
        f"skipped {types}" if types else "",
        f"autoencode train {given}, autoencode index {given}",
        {
            "images": len(listing.names),
            "preprocessing": chosen.to_json(),
            "skipped": [{"path": name, "reason": why} for name, why in listing.skipped],
        },
    )


def _model(path: str) -> Description:
    model = load_any(path)
    file = Path(path) / MODEL_NAME if Path(path).is_dir() else Path(path)
    provenance, size = model.provenance, model.preprocessing
    counts = provenance.get("images", {})
    read = f"{size.height}x{size.width} ({size.resize_mode})"
    seen = f"{counts.get('train', 0):,} training and {counts.get('validation', 0):,} validation images"
    given = shlex.quote(path)
    return Description(
        path,
        "model",
        f"{_network(model)}; {file.stat().st_size / 1e6:,.1f} MB",
        f"{seen if counts else 'images'} of {read}",
        _quality(provenance.get("metrics", {}), provenance.get("epoch")),
        f"autoencode info {given} --settings again.toml, then autoencode train IMAGES --config again.toml",
        _numbers(model) | {"bytes": file.stat().st_size, "sha256": model.digest, **provenance},
        _settings(path, model),
    )


def _network(model: ImageModel) -> str:
    config = model.config
    kind = {"vae": "variational autoencoder"}.get(config.kind, config.kind)
    code = f", {config.code_size} code dimensions" if isinstance(model, Autoencoder) else ""
    holds: list[str] = []
    if isinstance(model, Autoencoder) and model.prior:
        holds.append("a prior to generate from")
    if isinstance(model, Autoencoder) and (kept := model.reference):
        size = sum(tensor.nbytes for tensor in kept.tensors.values()) / 1e6
        holds.append(f"{size:.1f} MB of normal images to judge others by")
    weights = sum(weight.numel() for weight in model.parameters())
    with_these = f", with {' and '.join(holds)}" if holds else ""
    return f"{kind}: {NETWORKS[config.network].summary}{code}, {weights:,} weights{with_these}"


def _numbers(model: ImageModel) -> dict[str, Any]:
    return {
        "model": model.config.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "has_prior": isinstance(model, Autoencoder) and model.prior is not None,
        "has_reference": isinstance(model, Autoencoder) and model.reference is not None,
    }


def _quality(metrics: Mapping[str, Any], epoch: object) -> str:
    mse = metrics.get("val_mse")
    if not isinstance(mse, float) or not mse > 0:
        return ""
    # Epochs of the sharp decoder change nothing that these numbers are of, and are counted on.
    when = "" if "val_perceptual" in metrics else f", after epoch {epoch}"
    return f"MSE {mse:.5f} on the validation images, a PSNR of {-10 * math.log10(mse):.1f} dB{when}"


def _settings(path: str, model: ImageModel) -> str:
    try:
        train = TrainConfig.from_json(model.provenance["train"])
    except (AutoencodeError, KeyError, TypeError, ValueError):  # a model that was not trained by `train`
        return ""
    title = f"Settings of the model {Path(path).name}, {model.digest[:12]}."
    return settings_file(title, (model.config, train, model.preprocessing))


def _run(path: str) -> Description:
    folder = Path(path)
    run, records, training = read_training(folder)
    done, epochs = len(records), run.train.all_epochs
    state = f"epochs {epochs_in_words(run, records)}"
    state += {"running": ", still running", "interrupted": ", interrupted: --resume continues it"}.get(
        training, ""
    )
    try:
        pack = open_known_pack(run.pack, run.fingerprint, folder)
        images, repeat = _in_pack(pack.origin or str(pack.folder), len(pack)), repeating_command(folder, pack)
    except AutoencodeError:  # it was moved or deleted; the run is still one
        images = f"images of {run.preprocessing}, whose pack {run.pack} is gone"
        repeat = f"autoencode train IMAGES --config {shlex.quote(str(folder / 'run.toml'))} --out again"
    numbers: dict[str, Any] = {
        "epochs": epochs,
        "epochs_done": done,
        "pack": run.pack,
        "fingerprint": run.fingerprint,
        "chosen": run.chosen,
        "train": run.train.to_json(),
        "metrics": records,
    }
    what, quality = f"run, {state}; no model yet", ""
    if (folder / MODEL_NAME).exists():
        model = load_any(folder)
        what = f"run, {state}; {_network(model)}"
        quality = _quality(model.provenance.get("metrics", {}), model.provenance.get("epoch"))
        numbers |= _numbers(model) | {"sha256": model.digest}
    return Description(path, "run", what, images, quality, repeat, numbers, run_file(run))


def _in_pack(origin: str, count: int) -> str:
    return f"{count:,} images of {origin}"


def _pack(path: str) -> Description:
    pack = open_pack(path)
    size = pack.preprocessing
    splits = {split: len(pack.rows(split)) for split in get_args(Split)}
    in_words = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    types, others = by_type((entry.path, entry.reason or "") for entry in pack.skipped)
    skipped = "; ".join(filter(None, [types, f"{len(others):,} unusable" if others else ""]))
    source = pack.origin or str(pack.folder)
    options = f"--size {size.height}x{size.width} --resize-mode {size.resize_mode}"
    if size.value_range:
        options += " --range {:g}:{:g}".format(*size.value_range)
    return Description(
        path,
        "pack",
        f"pack, {len(pack):,} images of {size}: {in_words}; {len(pack.labels):,} labels",
        _in_pack(source, len(pack)),
        "; ".join(filter(None, [f"skipped {skipped}" if skipped else "no file was skipped", pack.note])),
        f"autoencode pack {shlex.quote(source)} --out {shlex.quote(path)} {options}",
        {
            "images": len(pack),
            "splits": splits,
            "labels": pack.labels,
            "preprocessing": size.to_json(),
            "fingerprint": pack.fingerprint,
            "note": pack.note,
            "skipped": [{"path": entry.path, "reason": entry.reason} for entry in pack.skipped],
        },
    )


def _index(path: str) -> Description:
    index = open_index(path)
    how = "every code is compared" if index.is_exact else "approximate"
    return Description(
        path,
        "index",
        f"index, {len(index):,} images {index.encoder_name}, {index.distance}; {how}",
        ", ".join(index.sources),
        f"recall {index.recall:.3f} of the ten nearest",
        index.update_command,
        {
            "images": len(index),
            "embedding": index.embedding,
            "distance": index.distance,
            "recall": index.recall,
            "sources": index.sources,
            "unfinished": index.unfinished,
        },
    )


def _normal(path: str) -> Description:
    normal = load_normal(path)
    images = len(normal.calibration)
    alike = "alike, as parts are" if normal.are_alike else "varied, as photographs are"
    passing = f"; an image that is {' or '.join(normal.passing)} would pass" if normal.passing else ""
    return Description(
        path,
        NORMAL,
        f"normal images, learned without training, to judge others: {alike}",
        f"{images:,} images",
        f"a false positive rate down to {1 / (images + 1):.2%}{passing}",
        f"autoencode outliers FOLDER --save {shlex.quote(path)}",
        {"images": images, "are_alike": normal.are_alike, "passing": normal.passing},
    )


def _classifier(path: str) -> Description:
    classifier = load_classifier(path)
    folder = path if Path(path).is_dir() else str(Path(path).parent)
    accuracy, labelled = (classifier.provenance.get(name) for name in ("accuracy", "labelled"))
    return Description(
        path,
        "classifier",
        f"classifier by {classifier.features}, {len(classifier.classes)} classes: "
        + ", ".join(classifier.classes),
        f"{classifier.provenance.get('learned_images', '?')} labelled images of {labelled or 'a folder'}",
        f"accuracy {accuracy:.3f} on held-out images" if isinstance(accuracy, float) else "",
        f"autoencode transfer MODEL {shlex.quote(str(labelled or 'LABELLED'))} --out {shlex.quote(folder)}",
        {
            "classes": classifier.classes,
            "features": classifier.features,
            "sha256": classifier.digest,
            **classifier.provenance,
        },
    )
