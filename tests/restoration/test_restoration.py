"""Images restored at full size: tiles without seams, files of their kind, calls that go on after a stop."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tests.data.pictures import picture

from autoencode import (
    ConfigError,
    ImageError,
    ImageFolderError,
    ModelConfig,
    ModelFileError,
    OutputError,
    Preprocessing,
    Restorer,
    restore,
    save_model,
)
from autoencode.data.decoding import ORIENTATION_TAG
from autoencode.data.pictures import Picture
from autoencode.data.preprocessing import Limits
from autoencode.pixels import to_float
from autoencode.restoration import _before_and_after, tiles
from autoencode.restoration import picture as measures
from autoencode.restoration.clean_images import CleanImages
from autoencode.restoration.picture import restore_picture
from autoencode.restoration.results import COMPARISONS_NAME, LOG_NAME
from autoencode.restoration.tiles import restore_levels
from autoencode.training.runtime import choose_runtime

FP32 = choose_runtime("cpu", "fp32")


def restorer(corrupt: tuple[str, ...] = ("gaussian:0.1",)) -> Restorer:
    """A network of random weights that changes images by a few levels."""
    torch.manual_seed(0)
    config = ModelConfig(kind="restorer", network="gated", widths=(4, 6, 8))
    model = Restorer(config, Preprocessing(32, 32))
    with torch.no_grad():
        for parameter in model.net.last.parameters():
            parameter.mul_(3)
    model.provenance = {"train": {"corrupt": corrupt}}
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, restorer(), {"train": {"corrupt": ["gaussian:0.1"]}})
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(picture(40 + number, 52)).save(folder / f"{number}.png")
    return folder


def whole(model: Restorer, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    restored = model.restore(to_float(levels[None]))[0]
    return restored.mul(255).round().byte().permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(200, 331), (8, 700), (513, 40), (3, 3)])
def test_tiles_leave_no_seams(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 64)
    model, levels = restorer(), picture(*shape)
    found = restore_levels(model, levels, runtime=FP32)
    # Sums are rounded in another order, and a value just between two levels may fall either way.
    assert np.abs(found.astype(int) - whole(model, levels)).max() <= 1
    assert (found == whole(model, levels)).mean() > 0.999


def test_an_enlarged_image_has_no_seams_and_is_the_restored_bicubic_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, levels = restorer(), picture(90, 75)
    expected = restore_levels(model, levels, scale=3, runtime=FP32)
    monkeypatch.setattr(tiles, "TILE", 96)
    found = restore_levels(model, levels, scale=3, runtime=FP32)
    assert found.shape == (270, 225, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1
    larger = Image.fromarray(levels).resize((225, 270), Image.Resampling.BICUBIC)
    assert peak_signal_noise_ratio(np.asarray(larger), restore_levels(model, levels, amount=0, scale=3)) > 30


def test_no_amount_changes_nothing_and_half_of_it_half() -> None:
    model, levels = restorer(), picture(40, 56)
    assert np.array_equal(restore_levels(model, levels, amount=0), levels)
    full = restore_levels(model, levels, runtime=FP32).astype(float) - levels
    half = restore_levels(model, levels, amount=0.5, runtime=FP32).astype(float) - levels
    inside = (whole(model, levels) > 0) & (whole(model, levels) < 255)
    assert np.abs(half - full / 2)[inside].max() <= 1


def test_grey_is_restored_as_grey_and_inks_one_by_one() -> None:
    model, levels = restorer(), picture(40, 56)
    grey = restore_levels(model, levels[..., :1], runtime=FP32)
    three = whole(model, np.repeat(levels[..., :1], 3, axis=2)).astype(float).mean(2)
    assert np.abs(grey[..., 0] - three).max() <= 1
    inks = np.dstack([levels, levels[..., 0]])
    found = restore_levels(model, inks, runtime=FP32)
    assert np.abs(255 - found[..., :3].astype(int) - whole(model, 255 - levels)).max() <= 1
    black = restore_levels(model, 255 - levels[..., :1], runtime=FP32)
    assert np.abs(255 - found[..., 3:].astype(int) - black).max() <= 1


def test_sixteen_bits_are_kept() -> None:
    model = restorer()
    deep = picture(40, 56)[..., :1].astype(np.uint16) * 257
    found = restore_levels(model, deep, runtime=FP32)
    shallow = restore_levels(model, (deep // 257).astype(np.uint8), runtime=FP32)
    assert found.dtype == np.uint16
    assert np.abs(found / 257 - shallow).max() <= 0.51
    assert len(np.unique(found % 257)) > 100


def test_each_file_is_restored_into_one_of_its_name(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    made = restore(model_path, photographs, tmp_path / "out", compare=True, device="cpu")
    assert [one.file for one in made.results] == ["0.png", "1.png", "2.png", "3.png"]
    for one in made.results:
        with Image.open(one.path) as before, Image.open(tmp_path / "out" / one.file) as after:
            difference = np.asarray(after).astype(float) - np.asarray(before)
        assert one.removed_rms * 255 == pytest.approx(np.sqrt(np.square(difference).mean()), abs=0.3)
        with Image.open(tmp_path / "out" / COMPARISONS_NAME / one.file) as sheet:
            assert sheet.width > 2 * 40


@pytest.mark.parametrize("shape", [(20, 3000), (3000, 20)])
def test_the_comparison_of_a_very_long_image_shows_all_of_it(shape: tuple[int, int]) -> None:
    black = Picture(np.zeros((*shape, 3), np.uint8))
    grey = Picture(np.full((*shape, 3), 90, np.uint8))
    sheet = _before_and_after(black, grey)
    # Beside a crop of 20 x 20, a line of 20 pixels for the whole of it, in each column.
    assert (sheet == 90).all(axis=2).sum() >= 20 * 20 + 20
    assert (sheet == 0).all(axis=2).sum() >= 20 * 20 + 20


def test_a_call_that_was_stopped_goes_on_where_it_was(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"
    restore(model_path, photographs, expected)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(model_path, photographs, out, progress=stop)
    (out / "0.png.123.partial").write_bytes(b"left by a kill")
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    made = restore(model_path, photographs, out)
    assert (made.kept, len(made.results), len(written)) == (2, 4, 2)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    for number in range(4):
        assert (out / f"{number}.png").read_bytes() == (expected / f"{number}.png").read_bytes()
    assert not list(out.glob("*.partial"))


def test_a_changed_image_other_arguments_and_a_lost_result_are_restored_again(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    restore(model_path, photographs, out)
    assert restore(model_path, photographs, out).kept == 4
    assert restore(model_path, photographs, out, amount=0.5).kept == 0
    assert restore(model_path, photographs, out, amount=0.5).kept == 4
    Image.fromarray(picture(30, 30)).save(photographs / "1.png")
    (out / "3.png").unlink()
    assert restore(model_path, photographs, out, amount=0.5).kept == 2
    lines = (out / LOG_NAME).read_text()
    (out / LOG_NAME).write_text(lines + lines.splitlines()[-1][:30])  # cut short by a crash
    assert restore(model_path, photographs, out, amount=0.5).kept == 4


def test_results_of_the_same_name_are_numbered(model_path: Path, photographs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(photographs, other)
    Image.fromarray(picture(20, 20)).save(other / "0.gif")
    out, long = tmp_path / "out", f"{'1' * 251}.png"
    for folder in (photographs, other):
        shutil.copy(folder / "0.png", folder / long)
    named = restore(model_path, [photographs / long, other / long], tmp_path / "long")
    assert [one.file for one in named.results] == [long, f"{'1' * 200}-2.png"]
    made = restore(model_path, [photographs / "0.png", other / "0.png", other / "0.gif"], out)
    assert [one.file for one in made.results] == ["0.png", "0-2.png", "0-3.png"]
    assert restore(model_path, [photographs / "0.png", other / "0.png", other / "0.gif"], out).kept == 3


def test_sub_folders_stay_and_a_file_of_the_very_name_keeps_it(model_path: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "given", tmp_path / "out"
    for name in ("same.gif", "same.png", "same.jpg", "a/p.png", "b/p.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20, 24)).save(folder / name)
    expected = ["a/p.png", "b/p.png", "same-2.png", "same.jpg", "same.png"]
    for kept in (0, 5):
        made = restore(model_path, folder, out, compare=True)
        assert [one.file for one in made.results] == expected
        assert made.kept == kept
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*g") if path.is_file()) == sorted(
        [
            *expected,
            *(f"comparisons/{one}" for one in expected if one != "same.jpg"),
            "comparisons/same.jpg.png",
        ]
    )
    several = restore(model_path, [folder / "a", folder / "b", folder / "same.png"], tmp_path / "several")
    assert [one.file for one in several.results] == ["a/p.png", "b/p.png", "same.png"]
    made.results[0].path.unlink()
    with pytest.raises(OutputError, match="holds images that are to be restored"):
        restore(model_path, out, out)  # which would overwrite those in its sub-folders


def test_a_table_lists_results_and_skipped_files_with_the_reason(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photographs / "video.mp4").touch()
    made = restore(model_path, photographs, tmp_path / "out", clean=photographs / "0.png")
    rows = list(csv.DictReader((tmp_path / "out" / "restored.csv").read_text().splitlines()))
    assert [row["result"] for row in rows] == [
        *(f"{n}.png" for n in range(len(made.results))),
        "",
        "",
        "",
        "",
        "",
    ]
    assert float(rows[0]["psnr_db"]) == made.results[0].psnr_db
    assert rows[0]["original"] == str(photographs / "0.png")
    assert [(row["original"], row["skipped"]) for row in rows[1:]] == [
        (str(path), reason) for path, reason in made.skipped
    ]


def test_a_result_is_measured_against_the_clean_image(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(photographs, clean)
    rng = np.random.default_rng(0)
    for path in photographs.iterdir():
        noisy = np.asarray(Image.open(path)) + rng.normal(0, 20, np.asarray(Image.open(path)).shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    made = restore(model_path, photographs, tmp_path / "out", clean=clean)
    for one in made.results:
        truth = np.asarray(Image.open(clean / one.path.name))
        for file, found in ((one.path, one.corrupted_psnr_db), (tmp_path / "out" / one.file, one.psnr_db)):
            assert found == pytest.approx(
                peak_signal_noise_ratio(truth, np.asarray(Image.open(file))), abs=0.05
            )
        restored = np.asarray(Image.open(tmp_path / "out" / one.file))
        # scikit-image also leaves out the windows that reach over a border.
        expected = structural_similarity(
            truth, restored, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert one.ssim == pytest.approx(expected, abs=1e-6)


def test_measures_are_those_of_the_whole_image_however_many_tiles_and_strips_it_has(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE", 32)
    monkeypatch.setattr(measures, "_STRIP_PX", 800)
    clean = picture(75, 90)
    noisy = (clean + np.random.default_rng(0).normal(0, 20, clean.shape)).clip(0, 255).astype(np.uint8)
    for name, levels in (("clean.png", clean), ("noisy.png", noisy)):
        Image.fromarray(levels).save(tmp_path / name)
    out = tmp_path / "out"
    [made] = restore(model_path, tmp_path / "noisy.png", out, clean=tmp_path / "clean.png").results
    restored = np.asarray(Image.open(out / "noisy.png"))
    expected = structural_similarity(
        clean, restored, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert made.ssim == pytest.approx(expected, abs=1e-6)
    assert made.psnr_db == pytest.approx(peak_signal_noise_ratio(clean, restored), abs=0.01)


@pytest.mark.parametrize("size", [(40, 40), (30, 50)])
def test_a_clean_image_is_compared_upright_however_either_file_has_it(
    model_path: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    clean = Image.fromarray(picture(*size))
    clean.save(tmp_path / "clean.png")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    clean.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    out = tmp_path / "out"
    [made] = restore(model_path, tmp_path / "turned.png", out, clean=tmp_path / "clean.png").results
    assert made.corrupted_psnr_db == math.inf


def test_a_clean_image_that_was_replaced_is_measured_again(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(photographs, clean)
    before = restore(model_path, photographs, tmp_path / "out", clean=clean)
    assert restore(model_path, photographs, tmp_path / "out", clean=clean).kept == 4
    Image.fromarray(255 - np.asarray(Image.open(clean / "2.png"))).save(clean / "2.png")
    after = restore(model_path, photographs, tmp_path / "out", clean=clean)
    assert after.kept == 3
    assert after.results[2].psnr_db < before.results[2].psnr_db  # type: ignore[operator]
    assert restore(model_path, photographs, tmp_path / "out").results[2].psnr_db is None


def test_an_image_equal_to_the_clean_one_has_an_infinite_psnr_in_every_run(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    for kept in (0, 4):
        made = restore(model_path, photographs, tmp_path / "out", clean=photographs, amount=0)
        assert made.kept == kept
        assert [one.psnr_db for one in made.results] == [math.inf] * 4
        assert [one.corrupted_psnr_db for one in made.results] == [math.inf] * 4


def in_folders(top: Path, images: dict[str, int]) -> Path:
    """Write an image of a grey level at each path."""
    for name, level in images.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), level, np.uint8)).save(top / name)
    return top


def test_the_clean_image_of_the_same_path_is_taken_before_others_of_its_name(tmp_path: Path) -> None:
    noisy = in_folders(tmp_path / "noisy", {"day/a/1.png": 60, "night/a/1.png": 90})
    clean = in_folders(tmp_path / "clean", {"1.png": 1, "day/a/1.png": 2, "night/a/1.png": 3})
    found = CleanImages(clean, [noisy])
    for name in ("day/a/1.png", "night/a/1.png"):
        assert found.of(noisy / name) == clean / name
    # An image that was given by name: its folder and its name decide, where they can.
    other = in_folders(tmp_path / "other", {"b/2.png": 4, "c/2.png": 5, "2.png": 6, "b/3.png": 7})
    assert CleanImages(other).of(noisy / "c" / "2.png") == other / "2.png"
    assert CleanImages(other).of(noisy / "3.png") == other / "b" / "3.png"
    assert CleanImages(other / "b" / "3.png").of(noisy / "1.png") == other / "b" / "3.png"


def test_the_clean_image_of_a_jpeg_may_be_a_png(tmp_path: Path) -> None:
    noisy = in_folders(tmp_path / "noisy", {"a/1.jpg": 60, "b/1.jpg": 60, "2.jpg": 60})
    clean = in_folders(tmp_path / "clean", {"a/1.png": 1, "b/1.png": 2, "b/1.bmp": 2, "2.png": 3, "2.jpg": 3})
    found = CleanImages(clean, [noisy])
    assert found.of(noisy / "a/1.jpg") == clean / "a/1.png"
    assert found.of(noisy / "2.jpg") == clean / "2.jpg"
    with pytest.raises(ImageError, match="2 clean images could be its own"):
        found.of(noisy / "b/1.jpg")


def test_an_image_whose_clean_one_is_ambiguous_is_skipped_with_both_names(
    model_path: Path, tmp_path: Path
) -> None:
    noisy = in_folders(tmp_path / "noisy", {"1.png": 60, "2.png": 60})
    clean = in_folders(tmp_path / "clean", {"x/noisy/1.png": 1, "y/noisy/1.png": 2, "z/2.png": 3})
    made = restore(model_path, noisy, tmp_path / "out", clean=clean)
    assert [one.path.name for one in made.results] == ["2.png"]
    [(path, reason)] = made.skipped
    assert path.name == "1.png"
    assert reason == (
        f"2 clean images could be its own, such as {clean / 'x/noisy/1.png'} and {clean / 'y/noisy/1.png'}"
    )


def test_a_clean_image_of_another_size_or_none_is_a_reason_to_skip(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(photographs, clean)
    (clean / "0.png").unlink()
    Image.fromarray(picture(10, 10)).save(clean / "1.png")
    made = restore(model_path, photographs, tmp_path / "out", clean=clean)
    assert len(made.results) == 2
    assert "clean image" in made.skipped[0][1]
    assert "10x10 of 3 channels" in made.skipped[1][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": 1.5}, "The amount is 1.5; it must be from 0 to 1."),
        ({"scale": 0}, "The scale is 0; it must be at least 1."),
        ({"scale": 2}, "This model was not trained to enlarge."),
    ],
)
def test_arguments_that_cannot_be_used_are_rejected(
    arguments: dict[str, object], message: str, model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        restore(model_path, photographs, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_image_is_enlarged_no_more_than_the_model_was_trained_to_and_the_limit_allows(
    photographs: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "larger.safetensors", restorer(), {"train": {"corrupt": ["downscale:2-3"]}})
    with pytest.raises(ConfigError, match="The scale is 4; this model was trained to enlarge by 2 or 3"):
        restore(tmp_path / "larger.safetensors", photographs, tmp_path / "out", scale=4)
    limits = Limits(max_pixels=41 * 52 * 9)
    made = restore(tmp_path / "larger.safetensors", photographs, tmp_path / "out", scale=3, limits=limits)
    assert [one.path.name for one in made.results] == ["0.png", "1.png"]
    assert [reason for _, reason in made.skipped] == [
        f"its 156x{side} pixels after enlarging are more than the limit of 19,188" for side in (126, 129)
    ]
    with pytest.raises(ImageError, match="156x126 pixels after enlarging"):
        restore_picture(tmp_path / "larger.safetensors", photographs / "2.png", scale=3, limits=limits)


def test_results_of_other_images_keep_their_names_and_their_rows(model_path: Path, tmp_path: Path) -> None:
    first = in_folders(tmp_path / "first", {"1.png": 60, "2.png": 90})
    second = in_folders(tmp_path / "second", {"1.png": 120})
    restore(model_path, first, tmp_path / "out")
    kept = (tmp_path / "out" / "1.png").read_bytes()
    for amount in (1, 0.5):  # the same image again has the name it had
        made = restore(model_path, second, tmp_path / "out", amount=amount)
        assert [one.file for one in made.results] == ["1-2.png"]
    assert (tmp_path / "out" / "1.png").read_bytes() == kept
    with (tmp_path / "out" / "restored.csv").open() as file:
        rows = [(row["original"], row["result"]) for row in csv.DictReader(file)]
    expected = [(second / "1.png", "1-2.png"), (first / "1.png", "1.png"), (first / "2.png", "2.png")]
    assert rows == [(str(path), name) for path, name in expected]
    assert restore(model_path, first, tmp_path / "out").kept == 2


def test_a_result_that_other_arguments_wrote_since_is_made_again(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    Image.open(photographs / "2.png").save(photographs / "4.bmp")  # of one size, whatever is restored
    for amount, kept in ((1, 0), (1.0, 5), (0.5, 0), (1, 0)):
        assert restore(model_path, photographs, tmp_path / "out", amount=amount).kept == kept


def test_a_comparison_goes_with_the_result_it_showed(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    inner = in_folders(photographs / COMPARISONS_NAME, {"0.png": 60})  # its result has the name of a picture
    first = restore(model_path, photographs, tmp_path / "out", compare=True)
    assert all(one.comparison for one in first.results)
    restore(model_path, photographs, tmp_path / "out", amount=0.5)
    left = [path for path in (tmp_path / "out" / COMPARISONS_NAME).rglob("*") if path.is_file()]
    assert left == [tmp_path / "out" / COMPARISONS_NAME / "0.png"]
    assert {one.path for one in first.results} >= set(inner.iterdir())


def test_no_result_takes_or_deletes_the_comparison_of_another(model_path: Path, tmp_path: Path) -> None:
    images = in_folders(tmp_path, {"first/1.png": 60, "second/1.png": 90, "b.jpg": 60, "b.jpg.png": 90})
    first, second = images / "first" / "1.png", images / "second" / "1.png"
    out = tmp_path / "out"
    restore(model_path, [first, images / "b.jpg"], out, compare=True)
    before = (out / COMPARISONS_NAME / "b.jpg.png").read_bytes()
    # The second now has the name, and so the comparison, that the first had.
    made = restore(model_path, [second, first, images / "b.jpg.png"], out, compare=True, amount=0.5)
    assert [one.file for one in made.results] == ["1.png", "1-2.png", "b.jpg.png"]
    drawn = [one.comparison for one in made.results]
    assert drawn == [f"{COMPARISONS_NAME}/{name}.png" for name in ("1", "1-2", "b.jpg-2")]
    assert all((out / str(name)).is_file() for name in drawn)
    assert (out / COMPARISONS_NAME / "b.jpg.png").read_bytes() == before


def test_images_in_memory_replace_those_of_an_earlier_call(model_path: Path, tmp_path: Path) -> None:
    for level in (60, 90):
        made = restore(model_path, [np.full((20, 20, 3), level, np.uint8)], tmp_path / "out")
        assert [one.file for one in made.results] == ["000000.png"]


def test_an_image_is_known_by_its_place_however_it_is_written(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, level in (("first", 60), ("second", 90)):
        in_folders(tmp_path / name / "photos", {"1.png": level})
    monkeypatch.chdir(tmp_path / "first")
    assert restore(model_path, "photos", tmp_path / "out").results[0].file == "1.png"
    assert restore(model_path, "../first/photos", tmp_path / "out").results[0].file == "1.png"
    monkeypatch.chdir(tmp_path / "second")
    assert restore(model_path, "photos", tmp_path / "out").results[0].file == "1-2.png"


def test_originals_are_never_overwritten(model_path: Path, photographs: Path) -> None:
    before = {path: path.read_bytes() for path in photographs.iterdir()}
    with pytest.raises(OutputError, match="holds images that are to be restored"):
        restore(model_path, photographs, photographs)
    assert {path: path.read_bytes() for path in photographs.iterdir()} == before


def test_a_call_without_a_result_leaves_no_folder(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "restored"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for given in (tmp_path / "missing.png", tmp_path / "broken.png"):
        with pytest.raises(ImageFolderError, match="No image could be used"):
            restore(model_path, given, out)
    shutil.copytree(photographs, tmp_path / "clean")
    (tmp_path / "clean" / "0.png").rename(tmp_path / "clean" / "other.png")
    with pytest.raises(ImageFolderError, match="No image could be used"):
        restore(model_path, photographs / "0.png", out, clean=tmp_path / "clean")
    assert not out.parent.exists()
    out.mkdir(parents=True)
    (out / ".lock").touch()  # a kill at once leaves it
    assert len(restore(model_path, photographs, out).results) == 4


def test_a_folder_around_its_own_results_is_restored_and_gone_on_with(
    model_path: Path, photographs: Path
) -> None:
    made = photographs / "results" / "restore-photographs"
    assert len(restore(model_path, photographs, made, compare=True).results) == 4
    again = restore(model_path, photographs, made, compare=True)
    assert (len(again.results), again.kept) == (4, 4)
    assert len(restore(model_path, photographs, photographs / "others").results) == 4
    assert len(restore(model_path, made, photographs / "twice").results) == 4  # given itself


def test_a_folder_of_something_else_is_left_alone(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters.txt").write_text("private")
    with pytest.raises(OutputError, match="is not empty and holds no earlier restored images"):
        restore(model_path, photographs, tmp_path)
    assert not (tmp_path / LOG_NAME).exists()


def test_files_that_cannot_be_used_are_skipped_with_the_reason(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "4.png").write_bytes(b"not an image")
    (photographs / "note.txt").touch()
    made = restore(model_path, photographs, tmp_path / "out", limits=Limits(max_pixels=42 * 52))
    assert [path.name for path, _ in made.skipped] == ["3.png", "4.png", "note.txt"]
    assert len(made.results) == 3
    with pytest.raises(ImageFolderError, match="No image could be used, of 1 given"):
        restore(model_path, photographs / "4.png", tmp_path / "other")


def test_a_full_disk_is_one_error_and_loses_nothing(
    model_path: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    restore(model_path, photographs / "0.png", out)
    before = (out / "0.png").read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OutputError, match="No space left on device"):
            restore(model_path, photographs, out)
    assert (out / "0.png").read_bytes() == before
    assert restore(model_path, photographs, out).kept == 1


def test_a_model_that_is_no_restorer_is_rejected_before_anything_is_written(
    photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        restore(tmp_path / "model.safetensors", photographs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_line_of_json_for_each_image(
    model_path: Path, photographs: Path, tmp_path: Path
) -> None:
    restore(model_path, photographs, tmp_path / "out")
    about, *lines = map(json.loads, (tmp_path / "out" / LOG_NAME).read_text().splitlines())
    assert about == {"about": "images restored by autoencode, one a line"}
    assert [line["restored"]["file"] for line in lines] == [f"{number}.png" for number in range(4)]
    assert lines[0]["key"][0] == str(photographs / "0.png")  # readable, and no text of JSON in it
