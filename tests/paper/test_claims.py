"""Verdicts follow from intervals, and a claim whose models are missing is not judged."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoencode.outliers.calibration import OutlierReference
from autoencode.outliers.scores import Value
from autoencode.paper.claims import Claim, judge_claims

CLAIMS = {
    "overfit": "does not overfit",
    "pca": "better than PCA",
    "noise": "Gaussian noise",
    "sigma": "best samples of three",
    "collapse": "collapses",
    "weak": "too weak",
    "warmup": "Warm-up",
    "outliers": "KL above the median",
}


def estimate(value: float, reach: float = 0.01) -> dict[str, Any]:
    return {"value": value, "interval": [value - reach, value + reach], "count": 100}


def measured(
    mse: float = 0.5,
    pca: float = 0.3,
    kid: float = 1.0,
    active: int = 100,
    gap: float | None = 1.0,
    psnr: float = 20.0,
) -> dict[str, Any]:
    return {
        "reconstruction": {"mse": estimate(mse), "psnr_db": estimate(psnr, 0.1)},
        "pca": {"mse": estimate(pca)},
        "pca_components": 256,
        "corrupted": {"psnr_db": estimate(12.0, 0.1)},
        "sets": {"samples_normal": {"by": {"EfficientNet-Lite0": {"kid": estimate(kid)}}}},
        "code": {"active_units": active, "kl_nats": estimate(50.0), "prior_gap_nats": gap},
        "code_size": 256,
    }


def results(models: dict[str, dict[str, Any]], val_loss: float = 1.0) -> Any:  # noqa: ANN401
    generator = np.random.default_rng(0)
    kl = generator.normal(100, 10, 2000)
    reference = OutlierReference(
        {"kl": Value(np.array(100.0))},
        {"kl": kl[:999], "auto": kl[:999]},
        {"kl": kl[999:], "auto": kl[999:]},
        crossed={},
        trained=(),
        model="",
        pack="",
    )
    return SimpleNamespace(
        measured=models,
        mean_image=estimate(0.9),
        median_filter=dict.fromkeys(models, estimate(15.0, 0.1)),
        records={name: [{"epoch": 10, "train_loss": 1.0, "val_loss": val_loss}] for name in models},
        has=lambda *names: all(name in models for name in names),
        reference=lambda name: reference,
    )


def judged(models: dict[str, dict[str, Any]], which: str, val_loss: float = 1.0) -> Claim:
    return next(claim for claim in judge_claims(results(models, val_loss)) if CLAIMS[which] in claim.text)


@pytest.mark.parametrize(
    ("mse", "verdict"), [(0.5, "does not hold"), (0.1, "holds"), (0.305, "is undecided")]
)
def test_better_than_pca_follows_from_the_intervals(mse: float, verdict: str) -> None:
    claim = judged({"ae": measured(mse=mse, pca=0.3)}, "pca")
    assert claim.verdict == verdict
    assert f"{mse:.5f} ({mse - 0.01:.5f} to {mse + 0.01:.5f})" in claim.measured


def test_overfitting_is_a_validation_loss_that_runs_away() -> None:
    assert judged({"ae": measured()}, "overfit", val_loss=1.02).verdict == "holds"
    assert judged({"ae": measured()}, "overfit", val_loss=1.5).verdict == "does not hold"


def test_noise_is_removed_when_the_signal_to_noise_ratio_rises() -> None:
    assert judged({"denoise": measured(psnr=17.0)}, "noise").verdict == "holds"
    assert judged({"denoise": measured(psnr=9.0)}, "noise").verdict == "does not hold"


def test_noise_is_not_removed_where_a_median_filter_removes_more() -> None:
    """On near-white blobs of 7.7 dB a network that paints grey reaches 13 dB."""
    claim = judged({"denoise": measured(psnr=14.0)}, "noise")
    assert claim.verdict == "does not hold"
    assert "a median filter reaches 15.00 (14.90 to 15.10) dB" in claim.measured
    assert judged({"denoise": measured(psnr=15.1)}, "noise").verdict == "is undecided"


def test_a_network_with_skips_stands_beside_the_papers() -> None:
    assert "skips" not in judged({"denoise": measured(psnr=17.0)}, "noise").measured
    found = results({"denoise": measured(psnr=17.0), "restore-noise": measured()})
    found.restored = {"restore-noise": estimate(23.0, 0.1)}
    claim = next(claim for claim in judge_claims(found) if CLAIMS["noise"] in claim.text)
    assert "restore-noise, with skips and no code, 23.00 (22.90 to 23.10) dB" in claim.measured


@pytest.mark.parametrize(
    ("distances", "verdict"),
    [((1.0, 0.5, 0.9), "holds"), ((1.0, 0.5, 0.2), "does not hold"), ((1.0, 0.5, 0.505), "is undecided")],
)
def test_the_best_sigma2_is_below_both_others(distances: tuple[float, ...], verdict: str) -> None:
    names = ("vae-0.1", "vae-0.01", "vae-0.001")
    models = {name: measured(kid=distance) for name, distance in zip(names, distances, strict=True)}
    assert judged(models, "sigma").verdict == verdict


def test_a_code_with_few_active_dimensions_has_collapsed() -> None:
    other = {"vae-0.01": measured()}
    assert judged({"vae-0.1": measured(active=3), **other}, "collapse").verdict == "holds"
    assert judged({"vae-0.1": measured(active=90), **other}, "collapse").verdict == "does not hold"
    assert judged({"vae-0.1": measured(active=3)}, "collapse").verdict == "was not run"


@pytest.mark.parametrize(("gap", "verdict"), [(9.0, "holds"), (0.5, "does not hold"), (None, "is undecided")])
def test_a_weak_kl_leaves_codes_far_from_the_prior(gap: float | None, verdict: str) -> None:
    models = {"vae-0.1": measured(), "vae-0.01": measured(), "vae-0.001": measured(gap=gap)}
    assert judged(models, "weak").verdict == verdict


def test_warm_up_is_judged_at_equal_epochs_and_each_part_is_shown() -> None:
    names = ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup")
    models = {name: measured(kid=kid) for name, kid in zip(names, (1.0, 0.8, 1.1, 0.7), strict=True)}
    claim = judged(models, "warmup")
    assert claim.verdict == "holds"
    for part in ("neither 1.000", "batch normalisation 0.800", "warm-up 1.100", "both 0.700"):
        assert part in claim.measured


def test_the_median_rule_flags_half_and_the_calibrated_one_what_it_promises() -> None:
    claim = judged({"vae-0.01": measured()}, "outliers")
    assert claim.verdict == "does not hold"
    assert "flags 5" in claim.measured or "flags 4" in claim.measured
    assert "calibrated threshold for 1.0%" in claim.measured


def test_a_claim_without_its_models_is_not_judged() -> None:
    assert {claim.verdict for claim in judge_claims(results({}))} == {"was not run"}


def test_without_kid_a_claim_about_samples_is_undecided() -> None:
    models = {name: {**measured(), "sets": None} for name in ("vae-0.1", "vae-0.01", "vae-0.001")}
    assert judged(models, "sigma").verdict == "is undecided"


@pytest.mark.parametrize("which", ["overfit", "noise", "sigma", "weak", "warmup", "collapse"])
@pytest.mark.parametrize("error", [0.9, 1.5])
def test_a_claim_about_models_that_learned_nothing_is_undecided(which: str, error: float) -> None:
    names = ("ae", "denoise", "vae-0.1", "vae-0.01", "vae-0.001")
    names += ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup")
    claim = judged({name: measured(mse=error, active=0) for name in names}, which)
    assert claim.verdict == "is undecided"
    assert "no better than the mean image (0.90000 (0.89000 to 0.91000)): " in claim.measured


def test_a_collapse_shows_where_a_narrower_likelihood_learns() -> None:
    models = {"vae-0.1": measured(mse=0.9, active=0), "vae-0.01": measured(mse=0.2)}
    assert judged(models, "collapse").verdict == "holds"


def test_models_that_do_not_decide_a_verdict_need_not_have_learned() -> None:
    collapsed = measured(mse=0.9, active=0, kid=1.0)
    models = {"vae-0.1": collapsed, "vae-0.01": measured(kid=0.5), "vae-0.001": measured(kid=0.9)}
    assert judged(models, "sigma").verdict == "holds"
    runs = {"vae-long": measured(kid=1.0), "vae-warmup": measured(kid=0.7)}
    parts = {"vae-only-batch-norm": collapsed, "vae-only-warmup": collapsed}
    assert judged({**runs, **parts}, "warmup").verdict == "holds"


def test_pca_and_the_outlier_rule_are_judged_whatever_was_learned() -> None:
    models = {"ae": measured(mse=1.5, pca=0.3), "vae-0.01": measured(mse=1.5)}
    assert judged(models, "pca").verdict == "does not hold"
    assert judged(models, "outliers").verdict == "does not hold"
