"""The claims of the paper, the measurements of a study beside them, and whether each claim holds.

DIR/measured/NAME.json     `evaluate` of a model, and the digest of that model

A claim about models that have learned something cannot be judged from a model that is no better than the mean
of the training images.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.ndimage import median_filter

from autoencode.atomic import parse_json, write_json
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import batches, random_seed
from autoencode.errors import VERSION, ConfigError
from autoencode.evaluation import evaluate
from autoencode.evaluation.quality import gap_in_words
from autoencode.metrics.statistics import estimate
from autoencode.models.model_file import load_model
from autoencode.outliers.calibration import OutlierReference, attainable_fpr, fit_reference
from autoencode.outliers.scores import default_score
from autoencode.report.page import kid, number
from autoencode.training.progress import constant_image_errors
from autoencode.training.run import Record, read_metrics
from autoencode.untrusted import read_file

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.paper.study import Plan, Trained

MEASURED_NAME = "measured"
FILTERED_IMAGES = 1_000  # more would not change the mean by its interval


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
    """

    plan: Plan
    trained: Sequence[Trained]
    models: Mapping[str, Autoencoder]
    records: Mapping[str, list[Record]]
    measured: Mapping[str, Mapping[str, Any]]
    mean_image: Mapping[str, Any]
    median_filter: Mapping[str, Mapping[str, Any]]
    _kept: dict[str, OutlierReference] = field(default_factory=dict)

    @property
    def pack(self) -> Pack:
        """The images."""
        return self.plan.pack

    def has(self, *names: str) -> bool:
        """Whether all these experiments have a model."""
        return all(name in self.models for name in names)

    def reference(self, name: str) -> OutlierReference:
        """Return the outlier reference of a model, which is kept in a file."""
        if name not in self._kept:
            cache = self.plan.out / MEASURED_NAME / f"{name}-outliers.safetensors"
            self._kept[name] = fit_reference(self.models[name], self.pack, cache)
        return self._kept[name]


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
    models = {one.experiment.name: load_model(one.folder) for one in done}
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
    return Results(plan, trained, models, records, measured, _mean_image(plan.pack), filtered)


def _mean_image(pack: Pack) -> Mapping[str, Any]:
    # Each distinct image once: copies are not further observations.
    errors = constant_image_errors(pack, pack.training_rows(), np.unique(pack.held_out().rows))
    found = estimate(errors)
    assert found is not None
    return dataclasses.asdict(found)


def _median_filter(pack: Pack, corruptions: Sequence[str], seed: int) -> Mapping[str, Any]:
    """Return the PSNR in dB of a median filter of 3x3 or 5x5 pixels, whichever restores more."""
    rows = np.unique(pack.held_out().rows)[:FILTERED_IMAGES]
    clean = next(batches(pack, rows, len(rows)))
    generator = torch.Generator().manual_seed(random_seed("median filter", seed))
    seen = corrupt(clean, parse_corruptions(corruptions), generator, training=True).numpy()
    best: dict[str, Any] | None = None
    for side in (3, 5):
        restored = median_filter(seen, size=(1, 1, side, side)).clip(0, 1)
        errors = np.square(restored - clean.numpy()).mean((1, 2, 3), dtype=np.float64)
        found = estimate(-10 * np.log10(np.maximum(errors, 1e-10)))
        assert found is not None
        if best is None or found.value > best["value"]:
            best = dataclasses.asdict(found)
    assert best is not None
    return best


def _named(progress: StageProgress | None, name: str, stage: str, done: int, total: int) -> None:
    if progress:
        progress(f"{name}: {stage}", done, total)


def _measured(plan: Plan, name: str, model: Autoencoder, progress: StageProgress) -> Mapping[str, Any]:
    path = plan.out / MEASURED_NAME / f"{name}.json"
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


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = parse_json(read_file(path))
    except (OSError, ValueError):  # missing or cut short by a crash: it is measured again
        return None
    return value if isinstance(value, dict) else None


Verdict = Literal["holds", "does not hold", "is undecided", "was not run"]

# A validation loss up to a tenth above the training loss is no overfitting: it is measured without noise and
# with other images.
OVERFITTED = 1.1
# A code with a smaller share of active dimensions has collapsed.
COLLAPSED = 0.1
# An outlier rule with a higher false positive rate is of no use.
USABLE_FPR = 0.1


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its verdict.

    Attributes:
        text: the claim.
        where: its place in the paper.
        measured: the measurement of this study, with intervals.
        verdict: whether the claim holds.
    """

    text: str
    where: str
    measured: str
    verdict: Verdict


def judge_claims(results: Results) -> list[Claim]:
    """Return every claim with its measurement and verdict."""
    return [_judge_claim(results, *row) for row in _CLAIMS]


_Judge = Callable[[Results], tuple[str, Verdict]]


def _judge_claim(
    results: Results,
    text: str,
    where: str,
    needs: tuple[str, ...],
    learned: tuple[str, ...],
    judge: _Judge,
) -> Claim:
    if not results.has(*needs):
        return Claim(text, where, f"needs {', '.join(needs)}", "was not run")
    measured, verdict = judge(results)
    if names := [name for name in learned if not _has_learned(results, name)]:
        measured += f"; no better than the mean image ({number(results.mean_image, 5)}): {', '.join(names)}"
        verdict = "is undecided"
    return Claim(text, where, measured, verdict)


def _has_learned(results: Results, name: str) -> bool:
    return _lower(results.measured[name]["reconstruction"]["mse"], results.mean_image) == "holds"


def _no_overfitting(results: Results) -> tuple[str, Verdict]:
    last = results.records["ae"][-1]
    ratio = last["val_loss"] / last["train_loss"]
    text = f"after {last['epoch']:.0f} epochs the validation loss is {ratio:.3f} of the training loss"
    return text, "holds" if ratio < OVERFITTED else "does not hold"


def _beats_pca(results: Results) -> tuple[str, Verdict]:
    found = results.measured["ae"]
    ours, pca = found["reconstruction"]["mse"], found["pca"]["mse"]
    text = f"test error {number(ours, 5)}; PCA of {found['pca_components']} components {number(pca, 5)}"
    if results.has("best"):
        text += (
            f"; a network that starts as PCA {number(results.measured['best']['reconstruction']['mse'], 5)}"
        )
    return text, _lower(ours, pca)


def _restores(name: str) -> _Judge:
    def judge(results: Results) -> tuple[str, Verdict]:
        found = results.measured[name]
        before, after = found["corrupted"]["psnr_db"], found["reconstruction"]["psnr_db"]
        filtered = results.median_filter[name]
        text = (
            f"PSNR {number(before, 2)} dB before, {number(after, 2)} dB after; a median filter reaches "
            f"{number(filtered, 2)} dB"
        )
        clean = results.measured.get("ae")
        if clean:
            plain = number(clean["reconstruction"]["psnr_db"], 2)
            text += f"; the plain autoencoder reaches {plain} dB on clean images"
        # Whoever restores less than three lines of code has not restored.
        return text, _all([_lower(before, after), _lower(filtered, after)])

    return judge


def _middle_sigma2_is_best(results: Results) -> tuple[str, Verdict]:
    distances = {name: kid(results.measured[name], "samples_normal") for name in _SIGMAS}
    if results.has("vae-auto"):
        distances["vae-auto"] = kid(results.measured["vae-auto"], "samples_normal")
    text = "KID of samples: " + "; ".join(f"{name} {number(value, 3)}" for name, value in distances.items())
    # The paper compares three; the learned sigma2 is shown beside them and not judged.
    verdicts = [_lower(distances["vae-0.01"], distances[other]) for other in ("vae-0.1", "vae-0.001")]
    return text, _all(verdicts)


def _wide_sigma2_collapses(results: Results) -> tuple[str, Verdict]:
    found = results.measured["vae-0.1"]
    active, size = found["code"]["active_units"], found["code_size"]
    kl = number(found["code"]["kl_nats"], 1)
    text = f"{active} of {size} code dimensions are active, KL {kl} nats per image"
    return text, "holds" if active < COLLAPSED * size else "does not hold"


def _narrow_sigma2_leaves_kl_weak(results: Results) -> tuple[str, Verdict]:
    gaps = {name: results.measured[name]["code"]["prior_gap_nats"] for name in _SIGMAS}
    text = "distance of all codes from the prior: " + "; ".join(
        f"{name} {gap_in_words(gap)}" for name, gap in gaps.items()
    )
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    # With fewer images than code dimensions a gap cannot be estimated.
    if len(known) < len(gaps):
        return text, "is undecided"
    return text, "holds" if known["vae-0.001"] > max(known["vae-0.01"], known["vae-0.1"]) else "does not hold"


def _warmup_with_batch_norm(results: Results) -> tuple[str, Verdict]:
    cells = {
        "neither": "vae-long",
        "batch normalisation": "vae-only-batch-norm",
        "warm-up": "vae-only-warmup",
        "both": "vae-warmup",
    }
    distances = {name: kid(results.measured[run], "samples_normal") for name, run in cells.items()}
    text = "KID of samples at equal epochs: "
    text += "; ".join(f"{name} {number(value, 3)}" for name, value in distances.items())
    return text, _lower(distances["both"], distances["neither"])


def _kl_finds_outliers(results: Results) -> tuple[str, Verdict]:
    reference = results.reference("vae-0.01")
    if not reference.validation or reference.median_kl_nats is None:
        return "there are no validation images to measure the rule on", "is undecided"
    flagged = reference.validation_fpr("kl", None)
    assert flagged is not None
    low, high = flagged.interval
    # The rule of the paper flags half of the training images by construction, so it is measured on others.
    text = f"the rule flags {flagged.value:.0%} ({low:.0%} to {high:.0%}) of normal validation images"
    # Beside it a threshold with a promise, which needs a number of calibration images.
    try:
        rate = attainable_fpr(reference.calibration_images)
        ours = reference.validation_fpr(default_score("code"), rate)
        assert ours is not None
        text += f"; a calibrated threshold for {rate:.1%} flags {ours.value:.1%}"
        text += f" ({ours.interval.low:.1%} to {ours.interval.high:.1%})"
    except ConfigError:
        text += "; too few test images for a calibrated threshold"
    return text, "does not hold" if low > USABLE_FPR else "holds" if high < USABLE_FPR else "is undecided"


def _lower(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> Verdict:
    """Whether a is lower than b; undecided where their 95 % intervals overlap."""
    if a is None or b is None or a["interval"] is None or b["interval"] is None:
        return "is undecided"
    if a["interval"][1] < b["interval"][0]:
        return "holds"
    return "does not hold" if a["interval"][0] > b["interval"][1] else "is undecided"


def _all(verdicts: list[Verdict]) -> Verdict:
    # One part that fails decides; one part that is undecided leaves the rest undecided.
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if all(verdict == "holds" for verdict in verdicts) else "is undecided"


_SIGMAS = ("vae-0.1", "vae-0.01", "vae-0.001")
_WARMUPS = ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup")
# Claim, place in the paper, experiments needed, experiments that must have learned something, and judge.
_CLAIMS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], _Judge], ...] = (
    ("The autoencoder does not overfit.", "Fig. 4", ("ae",), ("ae",), _no_overfitting),
    ("It is better than PCA of the same size.", "section 3", ("ae",), (), _beats_pca),
    ("It removes Gaussian noise of 0.3.", "Fig. 9", ("denoise",), ("denoise",), _restores("denoise")),
    (
        "It restores pixels removed by dropout of 0.3.",
        "Fig. 10",
        ("dropout",),
        ("dropout",),
        _restores("dropout"),
    ),
    (
        "A sigma2 of 0.01 gives the best samples of three.",
        "Fig. 12",
        _SIGMAS,
        ("vae-0.01", "vae-0.001"),  # 0.1 may have collapsed, as another claim says
        _middle_sigma2_is_best,
    ),
    (
        "sigma2 of 0.1 collapses to the average image.",
        "Fig. 12",
        ("vae-0.1", "vae-0.01"),
        ("vae-0.01",),  # a network that learns nothing collapses at any sigma2
        _wide_sigma2_collapses,
    ),
    (
        "sigma2 of 0.001 leaves the KL too weak.",
        "Fig. 12",
        _SIGMAS,
        ("vae-0.001",),
        _narrow_sigma2_leaves_kl_weak,
    ),
    (
        "Warm-up with batch normalisation gives better samples.",
        "Figs. 13-15",
        _WARMUPS,
        ("vae-long", "vae-warmup"),
        _warmup_with_batch_norm,
    ),
    ("KL above the median distinguishes outliers.", "Fig. 16", ("vae-0.01",), (), _kl_finds_outliers),
)
