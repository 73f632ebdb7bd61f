"""The claims of the paper, the measurements of a study beside them, and whether each claim holds.

A claim about models that have learned something cannot be judged from a model that is no better than the mean
of the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from autoencode.errors import ConfigError
from autoencode.evaluation.quality import gap_in_words
from autoencode.outliers.conformal import attainable_fpr
from autoencode.outliers.scores import default_score
from autoencode.paper.results import Results
from autoencode.report.page import kid, number

if TYPE_CHECKING:
    pass

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
        if results.has(other := f"restore-{name.replace('denoise', 'noise')}"):
            text += f"; {other}, with skips and no code, {number(results.restored[other], 2)} dB"
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
        ours = reference.validation_fpr(default_score(), rate)
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
