"""Reconstructions on disk against the model itself, and their numbers against scikit-image."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageFolderError,
    Limits,
    OutputError,
    Pack,
    Run,
    load_model,
    reconstruct,
)
from autoencode import reconstruction as application
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.pixels import to_float, to_pixels
from autoencode.reconstruction import reconstruct_pixels


@pytest.fixture(scope="module")
def model(trained: Run) -> Autoencoder:
    return load_model(trained.model_path)


@pytest.fixture(scope="module")
def coast(photos: Path) -> list[Path]:
    """Sixteen image files."""
    return sorted((photos / "coast").iterdir())


def table(out: Path) -> list[dict[str, str]]:
    with (out / "reconstructions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_are_what_the_model_makes_of_the_images(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    made = reconstruct(model, coast, tmp_path / "out")
    expected = to_pixels(model.reconstruct(model.read(coast)))
    assert [result.path for result in made.results] == coast
    for result, pixels in zip(made.results, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out/images" / result.file)), pixels)


def test_the_numbers_are_those_of_scikit_image(model: Autoencoder, coast: list[Path], tmp_path: Path) -> None:
    made = reconstruct(model, coast, tmp_path / "out")
    images = model.read(coast)
    restored = model.reconstruct(images)
    for result, image, back, line in zip(
        made.results, images, restored, table(tmp_path / "out"), strict=True
    ):
        expected = peak_signal_noise_ratio(image.numpy(), back.numpy(), data_range=1)
        assert result.psnr_db == pytest.approx(expected, abs=1e-3)
        assert float(line["psnr_db"]) == pytest.approx(result.psnr_db, abs=1e-4)
        assert float(line["ssim"]) == pytest.approx(result.ssim, abs=1e-4)
        assert (line["path"], line["file"], line["corrupted_psnr_db"]) == (str(result.path), result.file, "")
        assert -1 <= result.ssim <= 1


def test_with_corruptions_both_are_measured_against_the_clean_image(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    made = reconstruct(model, coast, tmp_path / "out", corruptions=["gaussian:0.1"])
    for result, line in zip(made.results, table(tmp_path / "out"), strict=True):
        # Noise of standard deviation s has a PSNR of -20 log10 s: 20 dB.
        assert result.corrupted_psnr_db == pytest.approx(20, abs=0.5)
        assert float(line["corrupted_psnr_db"]) == pytest.approx(result.corrupted_psnr_db, abs=1e-4)
    clean = reconstruct(model, coast)
    assert made.sheet.shape[1] > clean.sheet.shape[1]


def test_the_corruption_depends_on_the_seed_alone(model: Autoencoder, coast: list[Path]) -> None:
    torch.manual_seed(5)
    first, again, other = (
        reconstruct(model, coast[:3], corruptions=["gaussian:0.3"], seed=seed).results for seed in (1, 1, 2)
    )
    assert first == again != other


def test_nothing_is_written_where_no_folder_is_given(model: Autoencoder, coast: list[Path]) -> None:
    made = reconstruct(model, coast[0])
    assert [result.file for result in made.results] == [""]
    assert made.sheet.dtype == np.uint8
    assert made.sheet.ndim == 3


def test_folders_and_files_may_be_mixed_and_none_comes_twice(
    model: Autoencoder, photos: Path, coast: list[Path]
) -> None:
    made = reconstruct(model, [coast[3], photos / "coast", str(coast[0])])
    assert [result.path for result in made.results] == [coast[3], *coast[:3], *coast[4:]]


def test_images_of_the_same_name_get_files_of_their_own(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "c" / "X.PNG"]
    for path, source in zip(paths, coast, strict=False):
        path.parent.mkdir()
        shutil.copy(source, path)
    made = reconstruct(model, paths, tmp_path / "out")
    assert [result.file for result in made.results] == ["x.png", "x-2.png", "X-3.png"]
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [
        "X-3.png",
        "x-2.png",
        "x.png",
    ]


def test_images_that_cannot_be_used_are_listed_and_the_others_done(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    made = reconstruct(model, [tmp_path / "broken.jpg", coast[0], tmp_path / "none.png"])
    assert [result.path for result in made.results] == [coast[0]]
    assert [path.name for path, _ in made.skipped] == ["broken.jpg", "none.png"]
    assert all(reason and "\n" not in reason for _, reason in made.skipped)


def test_limits_are_kept(model: Autoencoder, coast: list[Path]) -> None:
    with pytest.raises(ImageFolderError, match="more than the limit of 10"):
        reconstruct(model, coast, limits=Limits(max_pixels=10))


def test_where_no_image_can_be_used_the_reasons_are_given(model: Autoencoder, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageFolderError, match=r"No image could be used, of 1 given\. .*broken\.jpg: "):
        reconstruct(model, tmp_path, tmp_path / "out")


def test_what_was_stopped_half_way_can_be_run_again(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, coast, tmp_path / "out", progress=stop)
    assert len(reconstruct(model, coast, tmp_path / "out").results) == len(coast)


@pytest.mark.parametrize("images", [[], "none.png"])
def test_no_images_at_all_are_rejected(model: Autoencoder, images: str | list[str], tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError):
        reconstruct(model, images)
    with pytest.raises(ImageFolderError, match="No images in"):
        reconstruct(model, tmp_path)


def test_a_folder_of_something_else_is_left_alone_and_an_earlier_result_is_replaced(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="not empty and holds no earlier reconstructions"):
        reconstruct(model, coast[0], tmp_path / "theirs")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        reconstruct(model, coast[0], tmp_path / "file")
    for count in (2, 1):
        reconstruct(model, coast[:count], tmp_path / "ours")
        assert len(table(tmp_path / "ours")) == count


def test_images_of_an_earlier_result_go_and_what_is_not_ours_stays(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    images = tmp_path / "out" / "images"
    reconstruct(model, coast[:4], tmp_path / "out")
    (images / "theirs.png").write_text("mine")
    (images / coast[5].name).write_text("mine")
    reconstruct(model, coast[3:6], tmp_path / "out")
    assert (images / "theirs.png").read_text() == (images / coast[5].name).read_text() == "mine"
    written = [line["file"] for line in table(tmp_path / "out")]
    assert written == [coast[3].name, coast[4].name, f"{coast[5].stem}-2.png"]
    assert {path.name for path in images.iterdir()} == {*written, "theirs.png", coast[5].name}


def test_images_of_a_result_that_was_stopped_go_too(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, coast, tmp_path / "out", progress=stop)
    reconstruct(model, coast[:1], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == [coast[0].name]


def test_a_table_that_was_tampered_with_removes_nothing_elsewhere(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.png").write_text("mine")
    reconstruct(model, coast[:1], tmp_path / "out")
    with (tmp_path / "out" / "reconstructions.csv").open("a") as file:
        file.write(f"x,1,1,,../../mine.png\nx,1,1,,{tmp_path / 'mine.png'}\nx\n")
    reconstruct(model, coast[:1], tmp_path / "out")
    assert (tmp_path / "mine.png").read_text() == "mine"
    with (tmp_path / "out" / "reconstructions.csv").open("a") as file:
        file.write("x" * 200_000)
    with pytest.raises(OutputError, match="is damaged"):
        reconstruct(model, coast[:1], tmp_path / "out")


def test_images_are_not_read_from_where_they_would_be_removed(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    reconstruct(model, coast[:2], tmp_path / "out")
    with pytest.raises(OutputError, match="holds input images"):
        reconstruct(model, tmp_path / "out" / "images", tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_a_downscaling_to_less_than_a_pixel_is_rejected(model: Autoencoder, coast: list[Path]) -> None:
    with pytest.raises(ConfigError, match="for images of 32x32 the FACTOR is at most 32"):
        reconstruct(model, coast, corruptions=["downscale:33"])
    reconstruct(model, coast[:1], corruptions=["downscale:32"])


def test_a_corruption_that_cannot_be_used_is_rejected_before_any_work(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Cannot corrupt by"):
        reconstruct(model, coast, tmp_path / "out", corruptions=["fog:1"])
    assert not (tmp_path / "out").exists()


def test_more_images_than_fit_in_memory_at_once_are_done_in_parts(
    model: Autoencoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reconstruct(model, photos)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(application, "CHUNK", 7)
    parts = reconstruct(model, photos, progress=lambda *done: seen.append(done))
    assert seen == [(min(done, 48), 48) for done in range(7, 55, 7)]
    assert [result.path for result in parts.results] == [result.path for result in whole.results]
    for part, result in zip(parts.results, whole.results, strict=True):
        assert part.psnr_db == pytest.approx(result.psnr_db, abs=1e-4)
    assert parts.sheet.shape == whole.sheet.shape


def test_the_sheet_after_training_shows_held_out_images_as_the_training_damaged_them(
    model: Autoencoder, tiny_pack: Pack
) -> None:
    plain = application.validation_sheet(model, tiny_pack)
    model.provenance["train"]["corrupt"] = ["gaussian:0.3"]
    try:
        assert application.validation_sheet(model, tiny_pack).shape[1] > plain.shape[1]
    finally:
        model.provenance["train"]["corrupt"] = []


def test_restoring_one_image_measures_what_reconstructing_its_file_measures(
    model: Autoencoder, coast: list[Path]
) -> None:
    pixels = to_pixels(model.read(coast[0]))[0]
    (expected,) = reconstruct(model, coast[0], corruptions=["gaussian:0.2"]).results
    made = reconstruct_pixels(model, pixels[None], corruptions=["gaussian:0.2"])
    assert made.psnr_db == [pytest.approx(expected.psnr_db, abs=1e-4)]
    assert made.ssim == [pytest.approx(expected.ssim, abs=1e-5)]
    assert made.corrupted_psnr_db == [pytest.approx(expected.corrupted_psnr_db, abs=1e-4)]
    np.testing.assert_array_equal(made.reconstructed, to_pixels(model.reconstruct(corrupted(pixels))))


def corrupted(pixels: np.ndarray) -> torch.Tensor:
    generator = torch.Generator().manual_seed(random_seed("reconstruct", 0, 0))
    return corrupt(to_float(pixels[None]), parse_corruptions(["gaussian:0.2"]), generator, training=True)


def test_restoring_compares_with_the_clean_image_where_one_is_given(
    model: Autoencoder, coast: list[Path]
) -> None:
    damaged, clean = to_pixels(model.read(coast[:2]))
    made = reconstruct_pixels(model, damaged[None], clean=clean[None])
    expected = peak_signal_noise_ratio(clean, damaged, data_range=255)
    assert made.corrupted_psnr_db == [pytest.approx(expected, abs=0.01)]
    assert reconstruct_pixels(model, damaged[None]).corrupted_psnr_db is None
    np.testing.assert_array_equal(made.corrupted[0], damaged)


def test_the_sheet_of_an_earlier_call_is_not_replaced_while_it_is_read(
    model: Autoencoder, coast: list[Path], tmp_path: Path
) -> None:
    reconstruct(model, coast, tmp_path / "out")
    with pytest.raises(ConfigError, match="would overwrite an input"):
        reconstruct(model, [tmp_path / "out" / "reconstructions.png"], tmp_path / "out")
