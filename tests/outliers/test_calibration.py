"""The guarantee of p-values, counted exactly and over many random splits; references and their file.

A reference is made from the right images, computed once, and never taken for another model's or pack's.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta

from autoencode import (
    Autoencoder,
    ConfigError,
    OutlierReference,
    Pack,
    PackError,
    Preprocessing,
    Run,
    find_outliers,
    fit_reference,
    load_model,
    load_reference,
    pack_folder,
    save_model,
)
from autoencode.models.autoencoder import Kept
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.outliers import calibration as application
from autoencode.outliers.calibration import FORMAT_VERSION, KIND, reference_rows, scorer
from autoencode.outliers.conformal import (
    attainable_fpr,
    conformal_p_values,
    false_positive_rate,
    fpr_bound,
    images_needed,
    threshold_rank,
)
from autoencode.outliers.detectors import Combination, KthNeighbour
from autoencode.outliers.measurements import measurer
from autoencode.outliers.scores import (
    AUTO,
    PARTS,
    apply_detectors,
    cross_fitted,
    fit_detectors,
    scores_for,
)
from autoencode.pixels import to_float


def test_a_p_value_counts_the_calibration_scores_that_are_not_smaller() -> None:
    calibration = np.array([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_array_equal(
        conformal_p_values(calibration, np.array([0.0, 1.0, 1.5, 2.0, 3.0, 4.0])),
        np.array([5, 5, 4, 4, 2, 1]) / 5,
    )
    np.testing.assert_array_equal(conformal_p_values(np.zeros(0), np.array([7.0])), [1.0])


def test_p_values_of_exchangeable_scores_are_exactly_uniform() -> None:
    """Each of n + 1 scores is as likely to be the new one: the p-values are 1..n+1 over n + 1, once each."""
    scores = np.random.default_rng(0).lognormal(size=50)
    p_values = [
        conformal_p_values(np.delete(scores, new), scores[new : new + 1])[0] for new in range(len(scores))
    ]
    np.testing.assert_allclose(np.sort(p_values), np.arange(1, 51) / 50)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_over_200_splits_no_more_normal_images_are_flagged_than_promised(rate: float) -> None:
    generator = np.random.default_rng(1)
    scores = generator.standard_t(2, size=2200)  # heavy tails: no assumption on scores is made
    realised = []
    for _ in range(200):
        order = generator.permutation(len(scores))
        calibration, normal = scores[order[:199]], scores[order[199:]]
        realised.append((conformal_p_values(calibration, normal) <= rate).mean())
    standard_error = np.std(realised) / np.sqrt(200)
    assert np.mean(realised) <= rate + 2 * standard_error
    assert np.mean(realised) >= rate - 2 * standard_error  # 200 p-values are possible: nothing is given away


@pytest.mark.parametrize("images", [20, 50, 200, 1000])
def test_the_rate_of_one_calibration_set_is_within_the_bound_in_99_of_100_draws(images: int) -> None:
    """Of uniform scores, the rate of a threshold is 1 minus the threshold."""
    generator, rate = np.random.default_rng(3), attainable_fpr(images)
    drawn = np.sort(generator.uniform(size=(2000, images)), axis=1)
    realised = 1 - drawn[:, -threshold_rank(images, rate)]
    assert (realised <= fpr_bound(images, rate)).mean() == pytest.approx(0.99, abs=0.006)
    assert realised.mean() <= rate + 3 * realised.std() / np.sqrt(2000)


def test_equal_scores_flag_fewer_and_never_more() -> None:
    generator = np.random.default_rng(2)
    rates = []
    for _ in range(200):
        scores = generator.integers(0, 5, size=300).astype(float)
        rates.append((conformal_p_values(scores[:99], scores[99:]) <= 0.25).mean())
    assert np.mean(rates) <= 0.25


@pytest.mark.parametrize("rate", [*(1 / k for k in range(2, 200)), 0.3, 0.07, 0.013, 0.99, 0.6])
def test_the_images_needed_are_the_fewest_that_allow_such_a_p_value(rate: float) -> None:
    needed = images_needed(rate)
    assert 1 / (needed + 1) <= rate
    assert needed == 0 or 1 / needed > rate


def test_too_few_images_say_how_many_are_needed_and_what_they_allow() -> None:
    assert attainable_fpr(99, 0.01) == 0.01
    with pytest.raises(
        ConfigError, match=r"0\.01 needs 99 test images to calibrate on; the pack has 98.*--fpr 0\.0102"
    ):
        attainable_fpr(98, 0.01)
    assert attainable_fpr(98, 0.0102) == 0.0102
    with pytest.raises(ConfigError, match=r"no test images to calibrate on.* another pack of .*--pack\."):
        attainable_fpr(0, 0.5)


@pytest.mark.parametrize("images", [1, 2, 18, 20, 40, 60, 99, 250, 298, 5000])
def test_without_a_rate_three_images_are_beyond_the_threshold_if_that_is_from_one_to_five_percent(
    images: int,
) -> None:
    rate = attainable_fpr(images)
    calibration = np.arange(images, dtype=float)
    assert conformal_p_values(calibration, np.array([images + 1.0])) <= rate
    beyond = int((conformal_p_values(calibration, calibration + 0.5) <= rate).sum())
    expected = {1: 1, 2: 1, 18: 1, 20: 1, 40: 2, 60: 3, 99: 3, 250: 3, 298: 3, 5000: 50}
    assert beyond == expected[images]
    assert rate <= max(0.05, 1 / (images + 1))
    assert fpr_bound(images, rate) == pytest.approx(beta.ppf(0.99, beyond, images + 1 - beyond))


def test_the_rate_without_a_wish_is_the_one_that_guide_and_help_state() -> None:
    """3 / (N + 1), from .05 to .01; 1 / (N + 1) where .05 cannot be kept to."""
    for images in range(10, 400):
        stated = 1 / (images + 1) if images < 19 else float(np.clip(3 / (images + 1), 0.01, 0.05))
        assert attainable_fpr(images) == pytest.approx(stated)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_cannot_be_is_rejected(rate: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        images_needed(rate)


def test_a_rate_has_its_interval_and_nothing_has_none() -> None:
    rate = false_positive_rate(np.array([True, False, False, False]))
    assert rate is not None
    assert (rate.value, rate.images) == (0.25, 4)
    assert rate.interval.low < 0.25 < rate.interval.high
    assert false_positive_rate(np.zeros(0, bool)) is None


@pytest.mark.parametrize("images", [1, 7, 30, 98, 333])
def test_the_rate_that_the_error_names_can_be_promised_and_none_much_smaller(images: int) -> None:
    with pytest.raises(ConfigError, match="or more") as raised:
        attainable_fpr(images, 0.001)
    named = float(str(raised.value).split("--fpr ")[1].split()[0])
    assert attainable_fpr(images, named) == named
    assert named - 1 / (images + 1) < 1e-4


def neighbours(reference: OutlierReference) -> np.ndarray:  # type: ignore[type-arg]
    detector = reference.detectors["knn"]
    assert isinstance(detector, KthNeighbour)
    return detector.neighbours


def assert_equal(one: OutlierReference, other: OutlierReference) -> None:
    for split in ("calibration", "validation", "crossed"):
        mine, theirs = getattr(one, split), getattr(other, split)
        assert mine.keys() == theirs.keys()
        for score, values in mine.items():
            np.testing.assert_array_equal(values, theirs[score])
    assert one.detectors.keys() == other.detectors.keys()
    for score, detector in one.detectors.items():
        assert type(detector) is type(other.detectors[score])
        for field in dataclasses.fields(detector):
            values, theirs = (getattr(of, field.name) for of in (detector, other.detectors[score]))
            np.testing.assert_array_equal(values, theirs)
    assert (one.median_kl_nats, one.trained) == (other.median_kl_nats, other.trained)
    assert (one.model, one.pack) == (other.model, other.pack)


def test_detectors_are_of_training_images_and_scores_of_held_out_ones(
    vae: Autoencoder, tiny_pack: Pack
) -> None:
    reference = fit_reference(vae, tiny_pack)
    train, test, validation = (
        measurer(vae)(to_float(tiny_pack.pixels(np.unique(tiny_pack.rows(split)))))
        for split in ("train", "test", "validation")
    )
    detectors = fit_detectors(train, scores_for(is_vae=True))
    for scores, measured in ((reference.calibration, test), (reference.validation, validation)):
        for score, expected in apply_detectors(detectors, measured).items():
            np.testing.assert_allclose(scores[score], expected, rtol=1e-3)
    assert reference.median_kl_nats == pytest.approx(np.median(train["kl_nats"]), rel=1e-4)
    assert reference.calibration_images == len(tiny_pack.rows("test"))


def test_it_is_computed_once(
    vae: Autoencoder, tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    first = fit_reference(
        vae, tiny_pack, tmp_path / "kept", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (48, 48)
    monkeypatch.setattr(application, "_fit", None)  # calling it would be an error
    assert_equal(fit_reference(vae, tiny_pack, tmp_path / "kept"), first)


def test_that_of_another_model_or_pack_or_a_damaged_one_is_replaced(
    vae: Autoencoder, trained: Run, tiny_pack: Pack, photos: Path, tmp_path: Path
) -> None:
    plain, kept = load_model(trained.model_path), tmp_path / "kept"
    of_vae = fit_reference(vae, tiny_pack, kept)
    assert fit_reference(plain, tiny_pack, kept).model == plain.digest
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)
    kept.write_bytes(kept.read_bytes()[:-9])
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)
    shutil.copytree(photos / "coast", tmp_path / "fewer")
    fewer = pack_folder(tmp_path / "fewer", tmp_path / "fewer.pack", vae.preprocessing)
    assert fit_reference(vae, fewer, kept).pack == fewer.fingerprint
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)


def test_a_training_image_is_scored_by_detectors_that_have_not_seen_it(
    vae: Autoencoder, tiny_pack: Pack
) -> None:
    reference = fit_reference(vae, tiny_pack)
    rows = np.unique(tiny_pack.rows("train"))
    scores = scores_for(is_vae=True)
    expected = cross_fitted(measurer(vae)(to_float(tiny_pack.pixels(rows))), scores)
    np.testing.assert_allclose(reference.crossed["knn"], expected["knn"], rtol=1e-3)
    by_row = {entry.row: entry.sha256 for entry in tiny_pack.entries}
    digests = [by_row[int(rows[2])], "0" * 64, None]
    np.testing.assert_array_equal(
        reference.cross_scored("knn", np.array([7.0, 8.0, 9.0]), digests),
        [reference.crossed["knn"][2], 8, 9],
    )
    # The model's errors of images it was trained on are put on the scale of those that it was not.
    parts = np.stack([reference.crossed[name] for name in PARTS], axis=1)
    if len(reference.validation[AUTO]) >= 10:
        unseen = np.stack([reference.validation[name] for name in PARTS], axis=1)
        parts = parts * np.median(unseen, axis=0) / np.median(parts, axis=0)
    np.testing.assert_allclose(reference.crossed[AUTO], Combination.fit(parts).score(parts))


def test_a_cache_that_cannot_be_written_is_ignored(vae: Autoencoder, tiny_pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fit_reference(vae, tiny_pack, tmp_path / "file" / "kept").model == vae.digest


def test_copies_of_an_image_count_once(vae: Autoencoder, photos: Path, tmp_path: Path) -> None:
    for name in ("once", "again"):
        shutil.copytree(photos, tmp_path / "photos" / name)
    doubled = pack_folder(tmp_path / "photos", tmp_path / "doubled.pack", vae.preprocessing)
    assert len(doubled) == 96
    reference = fit_reference(vae, doubled)
    assert len(neighbours(reference)) == len(doubled.rows("train")) / 2
    assert reference.calibration_images == len(doubled.rows("test")) / 2


def test_a_sample_of_many_images_is_enough(
    vae: Autoencoder, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "MOST_IMAGES", 5)
    reference = fit_reference(vae, tiny_pack)
    assert len(neighbours(reference)) == 5
    assert reference.calibration_images == len(tiny_pack.rows("test"))


def test_what_is_learned_from_a_sample_of_each_split_is_kept_until_more_is_asked_for(
    vae: Autoencoder, tiny_pack: Pack, tmp_path: Path
) -> None:
    reference = fit_reference(vae, tiny_pack, tmp_path / "kept", most=3)
    assert len(neighbours(reference)) == 3
    assert reference.calibration_images == 3
    assert load_reference(vae, tmp_path / "kept").trained == reference.trained
    assert len(fit_reference(vae, tiny_pack, tmp_path / "kept").trained) > 3
    assert len(load_reference(vae, tmp_path / "kept").trained) > 3
    rows = reference_rows(tiny_pack, 3)
    assert set(rows["test"]) <= set(tiny_pack.rows("test"))


def test_what_was_kept_judges_without_the_images(vae: Autoencoder, tiny_pack: Pack, tmp_path: Path) -> None:
    fitted = fit_reference(vae, tiny_pack, tmp_path / "kept")
    kept = load_reference(vae, tmp_path / "kept")
    images = to_float(tiny_pack.pixels(tiny_pack.rows("test")))
    for score in kept.detectors:
        # Some fields are in fp32 in the file.
        found, expected = scorer(kept, score, vae)(images), scorer(fitted, score, vae)(images)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=score)
        np.testing.assert_array_equal(kept.calibration[score], fitted.calibration[score])


def test_a_model_file_that_keeps_them_judges_alone(
    vae: Autoencoder, tiny_pack: Pack, photos: Path, tmp_path: Path
) -> None:
    expected = find_outliers(vae, photos, tiny_pack, fpr=0.3)
    model = copy.copy(vae)
    reference = fit_reference(model, tiny_pack, keep=True)
    save_model(tmp_path / "alone.safetensors", model, model.provenance)
    found = find_outliers(tmp_path / "alone.safetensors", photos, fpr=0.3)
    assert [one.path for one in found.images] == [one.path for one in expected.images]
    np.testing.assert_allclose(
        [one.p_value for one in found.images], [one.p_value for one in expected.images]
    )
    assert found.validation_fpr == expected.validation_fpr
    loaded = load_model(tmp_path / "alone.safetensors")
    assert load_reference(loaded).trained == reference.trained
    # With the pack at hand, nothing is measured again where the model holds as many images.
    assert fit_reference(loaded, tiny_pack, progress=lambda done, total: pytest.fail("measured")) is not None


def test_a_model_file_grows_by_ten_megabytes_at_most(vae: Autoencoder, tiny_pack: Pack) -> None:
    model = copy.copy(vae)
    reference = fit_reference(model, tiny_pack, keep=True)
    assert model.reference is not None
    counts = {len(reference.trained), reference.calibration_images, len(reference.validation["auto"])}
    most = 0
    for name, tensor in model.reference.tensors.items():
        # As many images of each split as are kept at most, and a full bank of patches.
        rows = 5000 if name == "patches.patches" else 1000 if tensor.shape[:1].numel() in counts else None
        values = tensor.numel() if rows is None else rows * tensor[0].numel()
        most += values * tensor.element_size()
    most += 1000 * len(reference.trained[0])
    assert most < 10_000_000


def test_a_reference_of_an_older_version_in_a_model_file_is_as_none(
    vae: Autoencoder, tiny_pack: Pack, tmp_path: Path
) -> None:
    model = copy.copy(vae)
    fit_reference(model, tiny_pack, keep=True)
    assert model.reference is not None
    for content in ({"version": FORMAT_VERSION - 1}, {"pack": None, "trained": 3}):
        model.reference = Kept(model.reference.tensors, {**model.reference.content, **content})
        save_model(tmp_path / "old.safetensors", model, model.provenance)
        with pytest.raises(ConfigError, match="fit_reference"):
            load_reference(tmp_path / "old.safetensors")


def test_what_is_not_of_the_model_is_not_loaded(
    vae: Autoencoder, trained: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    fit_reference(vae, tiny_pack, tmp_path / "kept")
    (tmp_path / "other").write_bytes(b"no reference")
    for path, model in (("none", vae), ("other", vae), ("kept", load_model(trained.model_path))):
        with pytest.raises(ConfigError, match="The model file does not hold the normal images of its"):
            load_reference(model, tmp_path / path)


def test_a_pack_of_another_size_is_rejected(vae: Autoencoder, photos: Path, tmp_path: Path) -> None:
    other = pack_folder(photos / "coast", tmp_path / "other.pack", Preprocessing(16, 16))
    with pytest.raises(ConfigError, match=r"height 16, not 32.*Give the pack it was trained on"):
        fit_reference(vae, other)


def test_a_pack_without_held_out_images_has_no_calibration(
    vae: Autoencoder, tiny_pack: Pack, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    entries = [entry for entry in tiny_pack.entries if entry.split == "train"][:2]
    for entry in entries:
        shutil.copy(photos / entry.path, tmp_path / "two")
    reference = fit_reference(vae, pack_folder(tmp_path / "two", tmp_path / "two.pack", vae.preprocessing))
    assert reference.calibration_images == 0
    assert reference.calibration == reference.validation == {}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.update({"spectrum.scale": torch.ones(1000, dtype=torch.float64)}),
        lambda tensors: tensors.update({"knn.neighbours": tensors["knn.neighbours"][:, :3].clone()}),
        lambda tensors: tensors.update({"knn.neighbours": tensors["knn.neighbours"] * torch.nan}),
        lambda tensors: [tensors.pop(f"path.{part}") for part in ("mean", "scale", "whitening")],
        lambda tensors: tensors.pop("kl.median"),
        lambda tensors: tensors.pop("calibration.knn"),
        lambda tensors: tensors.update({"kl.median": tensors["kl.median"] * torch.nan}),
        lambda tensors: tensors.update({"kl.median": torch.ones(2)}),
        lambda tensors: tensors.update({"validation.elbo": tensors["validation.elbo"][:-1].clone()}),
        lambda tensors: tensors.update({"validation.elbo": tensors["validation.elbo"] * torch.nan}),
    ],
)
def test_one_that_was_kept_with_parts_that_do_not_fit_is_replaced(
    spoil: Callable[[dict[str, torch.Tensor]], object], vae: Autoencoder, tiny_pack: Pack, tmp_path: Path
) -> None:
    sound = fit_reference(vae, tiny_pack, tmp_path / "kept")
    tensors, content, _ = read_tensors(tmp_path / "kept", KIND, FORMAT_VERSION, PackError)
    spoil(tensors)
    rest = {name: value for name, value in content.items() if name not in ("kind", "version")}
    write_tensors(tmp_path / "kept", KIND, FORMAT_VERSION, tensors, rest)
    assert_equal(fit_reference(vae, tiny_pack, tmp_path / "kept"), sound)


def test_one_of_an_older_version_is_replaced(vae: Autoencoder, tiny_pack: Pack, tmp_path: Path) -> None:
    sound = fit_reference(vae, tiny_pack, tmp_path / "kept")
    tensors, content, _ = read_tensors(tmp_path / "kept", KIND, FORMAT_VERSION, PackError)
    rest = {name: value for name, value in content.items() if name not in ("kind", "version")}
    write_tensors(tmp_path / "kept", KIND, FORMAT_VERSION - 1, tensors, rest)
    assert_equal(fit_reference(vae, tiny_pack, tmp_path / "kept"), sound)
    _, content, _ = read_tensors(tmp_path / "kept", KIND, FORMAT_VERSION, PackError)
    assert content["version"] == FORMAT_VERSION
