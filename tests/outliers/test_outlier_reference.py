"""What is ordinary: from the right images, computed once, and never taken for another model's or pack's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencode import (
    Autoencoder,
    ConfigError,
    OutlierReference,
    Pack,
    PackError,
    Preprocessing,
    Run,
    fit_reference,
    load_model,
    pack_folder,
)
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.outliers import calibration as application
from autoencode.outliers.calibration import FORMAT_VERSION, KIND, reference_name, reference_rows
from autoencode.outliers.scores import measure, training_statistics
from autoencode.pixels import to_float


@pytest.fixture(scope="module")
def vae(trained_vae: Run) -> Autoencoder:
    return load_model(trained_vae.model_path)


def assert_equal(one: OutlierReference, other: OutlierReference) -> None:
    for split in ("calibration", "validation"):
        mine, theirs = getattr(one, split), getattr(other, split)
        assert mine.keys() == theirs.keys()
        for score, values in mine.items():
            np.testing.assert_array_equal(values, theirs[score])
    np.testing.assert_array_equal(one.statistics.vectors, other.statistics.vectors)
    np.testing.assert_array_equal(one.statistics.spectra, other.statistics.spectra)
    assert one.statistics.gaussians.keys() == other.statistics.gaussians.keys()
    for quantity, gaussian in one.statistics.gaussians.items():
        for mine, theirs in zip(gaussian, other.statistics.gaussians[quantity], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert (one.median_kl_nats, one.encoder, one.pack) == (other.median_kl_nats, other.encoder, other.pack)


def test_statistics_are_of_training_images_and_scores_of_held_out_ones(
    vae: Autoencoder, tiny_pack: Pack
) -> None:
    reference = fit_reference(vae, tiny_pack)
    train, test, validation = (
        measure(vae, to_float(tiny_pack.pixels(np.unique(tiny_pack.rows(split)))))
        for split in ("train", "test", "validation")
    )
    statistics = training_statistics(train)
    for scores, measured in ((reference.calibration, test), (reference.validation, validation)):
        for score, expected in statistics.scores(measured).items():
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
    assert fit_reference(plain, tiny_pack, kept).encoder == plain.digest
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)
    kept.write_bytes(kept.read_bytes()[:-9])
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)
    shutil.copytree(photos / "coast", tmp_path / "fewer")
    fewer = pack_folder(tmp_path / "fewer", tmp_path / "fewer.pack", vae.preprocessing)
    assert fit_reference(vae, fewer, kept).pack == fewer.fingerprint
    assert_equal(fit_reference(vae, tiny_pack, kept), of_vae)


def test_pretrained_features_are_kept_apart_from_codes(
    vae: Autoencoder, trained: Run, tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reference_name("code") != reference_name("pretrained")
    kept = tmp_path / "kept"
    of_code = fit_reference(vae, tiny_pack, kept)
    pretrained = fit_reference(vae, tiny_pack, kept, embedding="pretrained")
    assert pretrained.encoder != of_code.encoder
    assert set(pretrained.calibration) == {"mahalanobis", "knn"}
    assert pretrained.median_kl_nats is None
    assert pretrained.calibration_images == of_code.calibration_images
    monkeypatch.setattr(application, "_fit", None)  # calling it would be an error
    for model in (vae, load_model(trained.model_path)):  # the same embedding, whatever the model's weights
        assert_equal(fit_reference(model, tiny_pack, kept, embedding="pretrained"), pretrained)


def test_a_place_that_cannot_be_written_is_done_without(
    vae: Autoencoder, tiny_pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fit_reference(vae, tiny_pack, tmp_path / "file" / "kept").encoder == vae.digest


def test_copies_of_an_image_count_once(vae: Autoencoder, photos: Path, tmp_path: Path) -> None:
    for name in ("once", "again"):
        shutil.copytree(photos, tmp_path / "photos" / name)
    doubled = pack_folder(tmp_path / "photos", tmp_path / "doubled.pack", vae.preprocessing)
    assert len(doubled) == 96
    reference = fit_reference(vae, doubled)
    assert len(reference.statistics.vectors) == len(doubled.rows("train")) / 2
    assert reference.calibration_images == len(doubled.rows("test")) / 2


def test_a_sample_of_many_images_is_enough(
    vae: Autoencoder, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "MOST_IMAGES", 5)
    reference = fit_reference(vae, tiny_pack)
    assert len(reference.statistics.vectors) == 5
    assert reference.calibration_images == len(tiny_pack.rows("test"))


def test_what_is_learned_from_a_sample_of_each_split_is_not_kept(
    vae: Autoencoder, tiny_pack: Pack, tmp_path: Path
) -> None:
    reference = fit_reference(vae, tiny_pack, tmp_path / "kept", most=3)
    assert len(reference.statistics.vectors) == 3
    assert reference.calibration_images == 3
    assert not (tmp_path / "kept").exists()
    rows = reference_rows(tiny_pack, 3)
    assert set(rows["test"]) <= set(tiny_pack.rows("test"))


def test_a_pack_of_another_size_is_rejected(vae: Autoencoder, photos: Path, tmp_path: Path) -> None:
    other = pack_folder(photos / "coast", tmp_path / "other.pack", Preprocessing(16, 16))
    with pytest.raises(ConfigError, match=r"16x16 pixels .*Give the pack it was trained on"):
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
        lambda tensors: tensors.update(vectors=tensors["vectors"][:, :3].clone()),
        lambda tensors: tensors.update(vectors=torch.full_like(tensors["vectors"], torch.nan)),
        lambda tensors: [tensors.pop(f"path.{part}") for part in ("mean", "scale", "whitening")],
        lambda tensors: tensors.pop("calibration.knn"),
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
