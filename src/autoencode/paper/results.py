"""Measure the models of a study.

DIR/measured/NAME.json     `evaluate` of a model, and the digest of that model
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor

from autoencode.atomic import parse_json, write_json
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import batches, random_seed
from autoencode.errors import VERSION, MissingExtraError
from autoencode.evaluation import KID_IMAGES, LEAST_KID_IMAGES, evaluate
from autoencode.evaluation.sets import JUDGES, Judge
from autoencode.metrics.images import psnr
from autoencode.metrics.statistics import estimate
from autoencode.models.model_file import load_model, load_restorer
from autoencode.outliers.calibration import OutlierReference, fit_reference
from autoencode.training.progress import constant_image_errors
from autoencode.training.run import Record, read_metrics, read_run
from autoencode.untrusted import read_file

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.models.restorer import Restorer
    from autoencode.paper.study import Plan, Trained

MEASURED_NAME = "measured"
FILTERED_IMAGES = 1_000  # more would not change the mean by its interval
# Measuring takes the time of judges on so many sets of images, which is this share of all. For five models
# of 1,500 faces 23 s of the processor were needed, and 25 estimated.
_SETS, _SHARE_OF_JUDGES, _TIMED_IMAGES = 2, 0.7, 16


@dataclass(frozen=True)
class Results:
    """The models of a study that did not diverge, and their measurements.

    Attributes:
        plan: the plan of the study.
        trained: every experiment, also those that failed.
        models: the models, by experiment.
        records: the lines of metrics.jsonl, by experiment.
        measured: `Evaluation.to_json`, by experiment.
        mean_image: the error of the mean training image on held-out images, in the form of `measured`.
        median_filter: the PSNR in dB that a median filter reaches on the corrupted images, by experiment, in
            the same form.
        restorers: the models without a code, by experiment; they are not among `models`.
        restored: the PSNR in dB that these reach on the images of `median_filter`, in the same form.
    """

    plan: Plan
    trained: Sequence[Trained]
    models: Mapping[str, Autoencoder]
    records: Mapping[str, list[Record]]
    measured: Mapping[str, Mapping[str, Any]]
    mean_image: Mapping[str, Any]
    median_filter: Mapping[str, Mapping[str, Any]]
    restorers: Mapping[str, Restorer]
    restored: Mapping[str, Mapping[str, Any]]
    _kept: dict[str, OutlierReference] = field(default_factory=dict)

    @property
    def pack(self) -> Pack:
        """The images."""
        return self.plan.pack

    def has(self, *names: str) -> bool:
        """Whether all these experiments have a model."""
        return all(name in self.models or name in self.restorers for name in names)

    def digest(self, name: str) -> str:
        """Return the digest that identifies the weights of an experiment."""
        return (self.models.get(name) or self.restorers[name]).digest

    def reference(self, name: str) -> OutlierReference:
        """Return the outlier reference of a model, which is kept in a file."""
        if name not in self._kept:
            cache = self.plan.out / MEASURED_NAME / f"{name}-outliers.safetensors"
            self._kept[name] = fit_reference(self.models[name], self.pack, cache)
        return self._kept[name]


def seconds_to_measure(plan: Plan) -> float:
    """Estimate the seconds of `measure_all` for models not measured yet, from the time that judges take."""
    missing = [
        one
        for one in plan.experiments
        if plan.settings(one).model.kind != "restorer" and _read(_path_of(plan, one.name)) is None
    ]
    rows = np.unique(plan.pack.held_out().rows)
    if not missing or len(rows) < LEAST_KID_IMAGES:
        return 0.0
    # Each batch has other images, because a judge caches features; the first batch warms up.
    timed = np.array_split(plan.pack.pixels(np.arange(min(len(plan.pack), 3 * _TIMED_IMAGES))), 3)
    an_image = sum(min(_seconds_an_image(judge, pixels) for pixels in timed) for judge in JUDGES)
    return len(missing) * min(len(rows), KID_IMAGES) * _SETS * an_image / _SHARE_OF_JUDGES


def _seconds_an_image(judge: Judge, pixels: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    try:
        judge.pooled(pixels)
    except MissingExtraError:  # it is left out
        return 0.0
    return (time.perf_counter() - started) / len(pixels)


def measure_all(plan: Plan, trained: Sequence[Trained], progress: StageProgress | None = None) -> Results:
    """Measure each model, or read the earlier measurement of the same model.

    Args:
        plan: the plan of the study.
        trained: the result of `train_all`.
        progress: called with (stage, images done, images in all).

    Raises:
        OutputError: a measurement cannot be written.
    """
    done = [one for one in trained if one.failure is None]
    folders = {one.experiment.name: one.folder for one in done}
    without_code = {name for name, folder in folders.items() if read_run(folder).model.kind == "restorer"}
    models = {name: load_model(folder) for name, folder in folders.items() if name not in without_code}
    restorers = {name: load_restorer(folders[name]) for name in sorted(without_code)}
    measured = {
        name: _measured(plan, name, model, functools.partial(_named, progress, name))
        for name, model in models.items()
    }
    records = {one.experiment.name: read_metrics(one.folder) for one in done}
    filtered = {
        name: _median_filter(plan.pack, model.training_corruptions, plan.seed)
        for name, model in models.items()
        if model.training_corruptions
    }
    restored = {name: _restored(plan.pack, model, plan.seed) for name, model in restorers.items()}
    mean_image = _mean_image(plan.pack)
    return Results(plan, trained, models, records, measured, mean_image, filtered, restorers, restored)


def _mean_image(pack: Pack) -> Mapping[str, Any]:
    # Each distinct image once: copies are not further observations.
    errors = constant_image_errors(pack, pack.training_rows(), np.unique(pack.held_out().rows))
    found = estimate(errors)
    assert found is not None
    return dataclasses.asdict(found)


def _corrupted(pack: Pack, corruptions: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
    """Return held-out images, clean and corrupted, each (B, 3, H, W)."""
    rows = np.unique(pack.held_out().rows)[:FILTERED_IMAGES]
    clean = next(batches(pack, rows, len(rows)))
    generator = torch.Generator().manual_seed(random_seed("median filter", seed))
    return clean, corrupt(clean, parse_corruptions(corruptions), generator, training=True)


def _psnr_db(clean: Tensor, restored: Tensor) -> dict[str, Any]:
    found = estimate(psnr(restored.clamp(0, 1), clean).numpy())
    assert found is not None
    return dataclasses.asdict(found)


def _median_filter(pack: Pack, corruptions: Sequence[str], seed: int) -> Mapping[str, Any]:
    """Return the PSNR in dB of a median filter of 3x3 or 5x5 pixels, whichever restores more."""
    clean, seen = _corrupted(pack, corruptions, seed)
    filtered = (median_filter(seen.numpy(), size=(1, 1, side, side)) for side in (3, 5))
    return max((_psnr_db(clean, torch.from_numpy(one)) for one in filtered), key=lambda one: one["value"])


def _restored(pack: Pack, model: Restorer, seed: int) -> Mapping[str, Any]:
    """Return the PSNR in dB of a restorer on the images that the median filter is measured on."""
    clean, seen = _corrupted(pack, model.training_corruptions, seed)
    return _psnr_db(clean, torch.cat([model.restore(some).cpu() for some in torch.split(seen, 64)]))


def _named(progress: StageProgress | None, name: str, stage: str, done: int, total: int) -> None:
    if progress:
        progress(f"{name}: {stage}", done, total)


def _measured(plan: Plan, name: str, model: Autoencoder, progress: StageProgress) -> Mapping[str, Any]:
    path = _path_of(plan, name)
    # A new version may measure differently, and other weights or images certainly do.
    key = [VERSION, model.digest, plan.pack.fingerprint]
    if (kept := _read(path)) is not None and kept.get("of") == key:
        found: Mapping[str, Any] = kept["evaluation"]
        return found
    evaluation = evaluate(model, plan.pack, progress=progress).to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through text, so that a new measurement and one read from a file are the same to the bit.
    content = json.loads(json.dumps({"of": key, "evaluation": evaluation}))
    write_json(path, content)
    result: Mapping[str, Any] = content["evaluation"]
    return result


def _path_of(plan: Plan, name: str) -> Path:
    return plan.out / MEASURED_NAME / f"{name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = parse_json(read_file(path))
    except (OSError, ValueError):  # missing or cut short by a crash: it is measured again
        return None
    return value if isinstance(value, dict) else None
