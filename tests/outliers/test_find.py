"""Scored images in order and on disk, the two rules, and the errors."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageFolderError,
    OutlierReference,
    OutputError,
    Pack,
    Run,
    find_outliers,
    fit_reference,
    load_model,
)
from autoencode.outliers import find as application
from autoencode.outliers.conformal import conformal_p_values, fpr_bound
from autoencode.outliers.find import COLUMNS, sheet_path
from autoencode.outliers.measurements import measurer
from autoencode.outliers.scores import apply_detectors


@pytest.fixture(scope="module")
def reference(vae: Autoencoder, tiny_pack: Pack) -> OutlierReference:
    return fit_reference(vae, tiny_pack)


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Three normal pictures, two of noise and a broken file."""
    folder = tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    for path in sorted((photos / "coast").iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    generator = np.random.default_rng(0)
    for name in ("noise1.png", "sub/noise2.png"):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


def test_the_most_anomalous_images_come_first_with_the_p_values_of_their_scores(
    vae: Autoencoder, tiny_pack: Pack, reference: OutlierReference, mixed: Path
) -> None:
    found = find_outliers(vae, mixed, tiny_pack, fpr=0.3)
    assert {image.path.name for image in found.images[:2]} == {"noise1.png", "noise2.png"}
    assert [image.outlier for image in found.images[:2]] == [True, True]
    scores = [image.score for image in found.images]
    assert scores == sorted(scores, reverse=True)
    measured = measurer(vae)(vae.read([f.path for f in found.images]))
    direct = apply_detectors(reference.detectors, measured)["auto"]
    digests = [hashlib.sha256(image.path.read_bytes()).hexdigest() for image in found.images]
    assert len(set(digests) & set(reference.trained)) >= 1  # judged by detectors that have not seen it
    direct = reference.cross_scored("auto", direct, digests)
    np.testing.assert_allclose(scores, direct, rtol=1e-3)
    expected = conformal_p_values(reference.calibration["auto"], np.array(scores))
    np.testing.assert_array_equal([image.p_value for image in found.images], expected)
    assert [image.outlier for image in found.images] == list(expected <= 0.3)
    assert found.skipped == [(mixed / "broken.jpg", found.skipped[0][1])]


def test_few_images_promise_the_smallest_rate_they_can(
    vae: Autoencoder, reference: OutlierReference, mixed: Path
) -> None:
    found = find_outliers(vae, mixed, reference)
    assert found.fpr == 1 / (reference.calibration_images + 1)
    largest = reference.calibration["auto"].max()
    assert [image.outlier for image in found.images] == [f.score > largest for f in found.images]
    assert found.images[0].outlier
    assert found.threshold == largest
    assert found.fpr_bound == fpr_bound(reference.calibration_images, found.fpr)


def test_the_measured_rate_is_that_of_the_validation_images(
    vae: Autoencoder, reference: OutlierReference, mixed: Path
) -> None:
    found = find_outliers(vae, mixed, reference, fpr=0.4)
    p_values = conformal_p_values(reference.calibration["auto"], reference.validation["auto"])
    assert found.validation_fpr is not None
    assert found.validation_fpr.value == (p_values <= 0.4).mean()
    assert found.validation_fpr.images == len(p_values)


@pytest.mark.parametrize("heatmaps", [False, True])
def test_the_table_and_the_sheet_are_written(
    vae: Autoencoder, reference: OutlierReference, mixed: Path, tmp_path: Path, heatmaps: bool
) -> None:
    out = tmp_path / "new" / "found.csv"
    found = find_outliers(vae, mixed, reference, out, fpr=0.3, heatmaps=heatmaps)
    with out.open(newline="") as file:
        *rows, broken = csv.DictReader(file)
    assert tuple(rows[0]) == COLUMNS
    assert {name: cell for name, cell in broken.items() if cell} == {
        "path": str(mixed / "broken.jpg"),
        "error": found.skipped[0][1],
    }
    assert [float(row["threshold"]) for row in rows] == pytest.approx([found.threshold] * len(rows), rel=1e-5)
    ratios = [0.3 / image.p_value for image in found.images]
    assert [float(row["ratio"]) for row in rows] == pytest.approx(ratios, rel=1e-5)
    assert {row[column] for row in rows for column in COLUMNS[6:]} == {""}  # a model knows no place
    assert [row["path"] for row in rows] == [str(image.path) for image in found.images]
    assert [row["outlier"] == "true" for row in rows] == [image.outlier for image in found.images]
    np.testing.assert_allclose(
        [float(row["score"]) for row in rows], [f.score for f in found.images], rtol=1e-5
    )
    sheet = np.asarray(Image.open(sheet_path(out)))
    assert found.sheet is not None
    np.testing.assert_array_equal(sheet, found.sheet)


def test_heat_maps_widen_the_sheet(vae: Autoencoder, reference: OutlierReference, mixed: Path) -> None:
    one = [mixed / "noise1.png"]
    without, with_maps = (
        find_outliers(vae, one, reference, fpr=0.3, heatmaps=h).sheet for h in (False, True)
    )
    assert with_maps is not None and without is not None
    assert with_maps.shape[1] > without.shape[1]


def test_json_holds_the_same_and_what_was_skipped(
    vae: Autoencoder, reference: OutlierReference, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    found = find_outliers(vae, mixed, reference, out, score="knn", fpr=0.3)
    content = json.loads(out.read_bytes())
    assert content["score"] == "knn"
    assert content["fpr"] == 0.3
    assert content["calibration_images"] == reference.calibration_images
    assert {tuple(row) for row in content["images"]} == {COLUMNS}
    *rows, broken = content["images"]
    assert [row["path"] for row in rows] == [str(image.path) for image in found.images]
    assert [row["score"] for row in rows] == [image.score for image in found.images]
    assert {row["threshold"] for row in rows} == {found.threshold}
    assert broken == {
        **dict.fromkeys(COLUMNS),
        "path": str(mixed / "broken.jpg"),
        "error": found.skipped[0][1],
    }
    assert content["skipped"] == [{"path": str(mixed / "broken.jpg"), "reason": found.skipped[0][1]}]


def test_the_papers_rule_is_the_median_kl_and_calls_half_of_normal_images_outliers(
    vae: Autoencoder, reference: OutlierReference, photos: Path
) -> None:
    found = find_outliers(vae, photos, reference, rule="paper")
    assert found.score == "kl"
    assert found.fpr is None
    assert found.fpr_bound is None
    assert found.threshold == reference.median_kl_nats
    assert {one.ratio for one in found.images} == {None}
    assert reference.median_kl_nats is not None
    assert all(f.outlier == (f.score > reference.median_kl_nats) for f in found.images)
    assert 0.3 < np.mean([image.outlier for image in found.images]) < 0.7


def test_the_sheet_of_an_earlier_call_is_not_scored(
    vae: Autoencoder, reference: OutlierReference, mixed: Path
) -> None:
    counts = [
        len(find_outliers(vae, mixed, reference, mixed / "found.csv", fpr=0.3).images) for _ in range(2)
    ]
    assert counts == [5, 5]


def test_images_pass_in_chunks_and_the_sheet_shows_only_the_most_anomalous(
    vae: Autoencoder, reference: OutlierReference, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find_outliers(vae, photos, reference, fpr=0.3)
    monkeypatch.setattr(application, "CHUNK", 7)
    monkeypatch.setattr(application, "SHEET_IMAGES", 3)
    seen: list[tuple[str, int, int]] = []
    chunked = find_outliers(vae, photos, reference, fpr=0.3, progress=lambda *at: seen.append(at))
    assert seen[0] == ("scoring", 7, 48)
    assert seen[-1] == ("scoring", 48, 48)
    np.testing.assert_allclose([f.score for f in chunked.images], [f.score for f in whole.images], rtol=1e-3)
    assert chunked.sheet is not None and whole.sheet is not None
    assert chunked.sheet.size < whole.sheet.size


def test_a_name_that_is_no_text_survives_in_the_table(
    vae: Autoencoder, reference: OutlierReference, mixed: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/odd\xff.png"
    with open(odd, "wb") as file:  # noqa: PTH123 - the name is bytes
        file.write((mixed / "noise1.png").read_bytes())
    for name in ("found.csv", "found.json"):
        find_outliers(vae, [os.fsdecode(odd)], reference, tmp_path / name, fpr=0.3)
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(tmp_path / "odd\\udcff.png")]
    assert json.loads((tmp_path / "found.json").read_bytes())["images"][0]["path"] == os.fsdecode(odd)


def test_wrong_requests_are_rejected_before_any_work(
    vae: Autoencoder, trained: Run, tiny_pack: Pack, reference: OutlierReference, mixed: Path, tmp_path: Path
) -> None:
    plain = load_model(trained.model_path)
    test_images = len(tiny_pack.rows("test"))
    with pytest.raises(ConfigError, match="score kl needs a VAE"):
        find_outliers(plain, mixed, tiny_pack, score="kl")
    with pytest.raises(ConfigError, match="paper's rule needs a VAE, and this model is a plain autoencoder"):
        find_outliers(plain, mixed, tiny_pack, rule="paper")
    with pytest.raises(ConfigError, match="paper's rule is about the score kl, not knn"):
        find_outliers(vae, mixed, reference, rule="paper", score="knn")
    with pytest.raises(ConfigError, match="paper's rule has no rate"):
        find_outliers(vae, mixed, reference, rule="paper", fpr=0.3)
    with pytest.raises(ConfigError, match=r"Unknown rule 'luck'\. Choose conformal or paper\."):
        find_outliers(vae, mixed, reference, rule="luck")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=f"needs 99 test images to calibrate on; the pack has {test_images}"
    ):
        find_outliers(vae, mixed, tiny_pack, fpr=0.01)
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.json"):
        find_outliers(vae, mixed, reference, tmp_path / "found.txt", fpr=0.3)
    sheet = mixed / "noise1.png"
    for out, given in (
        (mixed / "table.csv", [sheet, mixed / "table.csv"]),
        (mixed / "n.csv", [mixed / "n-worst.png"]),
    ):
        Path(given[-1]).write_bytes(sheet.read_bytes())
        with pytest.raises(ConfigError, match="would overwrite an input"):
            find_outliers(vae, given, reference, out, fpr=0.3)
    with pytest.raises(ConfigError, match="reference is of another model"):
        find_outliers(plain, mixed, reference, fpr=0.3)


def test_folders_without_a_usable_image_are_named(
    vae: Autoencoder, reference: OutlierReference, mixed: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageFolderError, match="No images in"):
        find_outliers(vae, tmp_path / "empty", reference, fpr=0.3)
    with pytest.raises(ImageFolderError, match=r"No image could be used, of 1 given.*broken\.jpg"):
        find_outliers(vae, mixed / "broken.jpg", reference, fpr=0.3)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        find_outliers(vae, mixed, reference, tmp_path / "file" / "found.csv", fpr=0.3)
