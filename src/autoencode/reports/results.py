"""What a study of the paper found, measured once for each model and kept.

DIR/measured/NAME.json     `evaluate` of a model, and the digest of the model it is of
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoencode.applications.evaluate import evaluate
from autoencode.applications.outlier_reference import OutlierReference, fit_reference
from autoencode.data.pack import Pack
from autoencode.evaluation.scores import estimate
from autoencode.files import parse_json, write_json
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.modelfile import load_model
from autoencode.reports.study import Plan, Trained
from autoencode.training.advice import constant_image_errors
from autoencode.training.runlog import Record, read_metrics
from autoencode.version import VERSION

MEASURED_NAME = "measured"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Results:
    """The models of a study and what was measured of them; of those that did not diverge.

    Attributes:
        plan: what was asked for.
        trained: every experiment, those that failed included.
        models: by experiment.
        records: the lines of metrics.jsonl, by experiment.
        measured: `Evaluation.to_json`, by experiment.
        mean_image: the error on held-out images of the mean of training images, as `measured` has errors.
    """

    plan: Plan
    trained: Sequence[Trained]
    models: Mapping[str, Autoencoder]
    records: Mapping[str, list[Record]]
    measured: Mapping[str, Mapping[str, Any]]
    mean_image: Mapping[str, Any]
    _kept: dict[str, OutlierReference] = field(default_factory=dict)

    @property
    def pack(self) -> Pack:
        """The images."""
        return self.plan.pack

    def has(self, *names: str) -> bool:
        """Whether all these experiments were run and have a model."""
        return all(name in self.models for name in names)

    def reference(self, name: str) -> OutlierReference:
        """Return what is ordinary to a model; kept beside it."""
        if name not in self._kept:
            cache = self.plan.out / MEASURED_NAME / f"{name}-outliers.safetensors"
            self._kept[name] = fit_reference(self.models[name], self.pack, cache)
        return self._kept[name]


def measure_all(plan: Plan, trained: Sequence[Trained], progress: Progress | None = None) -> Results:
    """Measure each model, or take what was measured of the same model before.

    Args:
        plan: of the study.
        trained: what `train_all` returned.
        progress: called with (stage, images done, images in all).

    Raises:
        OutputError: a measurement cannot be written.
    """
    done = [one for one in trained if one.failure is None]
    models = {one.experiment.name: load_model(one.folder) for one in done}
    measured = {
        name: _measured(plan, name, model, functools.partial(_named, progress, name))
        for name, model in models.items()
    }
    records = {one.experiment.name: read_metrics(one.folder) for one in done}
    return Results(plan, trained, models, records, measured, _mean_image(plan.pack))


def _mean_image(pack: Pack) -> Mapping[str, Any]:
    errors = constant_image_errors(pack, pack.training_rows(), np.unique(pack.held_out().rows))
    found = estimate(errors)
    assert found is not None
    return dataclasses.asdict(found)


def _named(progress: Progress | None, name: str, stage: str, done: int, total: int) -> None:
    if progress:
        progress(f"{name}: {stage}", done, total)


def _measured(plan: Plan, name: str, model: Autoencoder, progress: Progress) -> Mapping[str, Any]:
    path = plan.out / MEASURED_NAME / f"{name}.json"
    key = [VERSION, model.digest, plan.pack.fingerprint]
    if (kept := _read(path)) is not None and kept.get("of") == key:
        found: Mapping[str, Any] = kept["evaluation"]
        return found
    evaluation = evaluate(model, plan.pack, progress=progress).to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through text, so that a measurement that was just made and one that was kept are the same.
    content = json.loads(json.dumps({"of": key, "evaluation": evaluation}))
    write_json(path, content)
    result: Mapping[str, Any] = content["evaluation"]
    return result


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
