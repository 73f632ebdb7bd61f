"""Normal images as a pretrained network sees them: scores, heat maps, rates, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from autoencode import ConfigError, ImageFolderError, ModelFileError, fit_normal, inspect_images, load_normal
from autoencode.data.preprocessing import Limits
from autoencode.metrics.statistics import auroc
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.outliers import normal as module
from autoencode.outliers.detectors import PatchBank
from autoencode.outliers.normal import FORMAT_VERSION, KIND, NormalImages, holds_normal
from autoencode.outliers.patches import read_in_shape, seen_sizes

ROWS, COLUMNS = 96, 240  # a long part


def part(seed: int, *, scratched: bool = False) -> Image.Image:
    """A grey part with a dark ring and grain, never twice in the same place; a scratch is a bright line."""
    generator = np.random.default_rng(seed)
    down, across = np.indices((ROWS, COLUMNS)).astype(float)
    centre = generator.uniform((40, 100), (56, 140))
    ring = np.abs(np.hypot(down - centre[0], across - centre[1]) - 28) < 5
    pixels = 150 + 8 * generator.standard_normal((ROWS, COLUMNS)) - 70 * ring
    if scratched:
        row, column = generator.integers((10, 150), (60, 200))
        for step in range(26):
            pixels[row + step, column + step // 2 : column + step // 2 + 3] = 235
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name, first, count, scratched in (
        ("good", 0, 40, False),
        ("new", 1000, 12, False),
        ("bad", 2000, 12, True),
    ):
        (folder / name).mkdir()
        for seed in range(first, first + count):
            part(seed, scratched=scratched).save(folder / name / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def normal(parts: Path) -> NormalImages:
    return fit_normal(parts / "good")


def scores(normal: NormalImages, folder: Path) -> np.ndarray:
    return np.array([normal.measure(read_in_shape(path, Limits()))[0] for path in sorted(folder.iterdir())])


def test_defects_are_distinguished_from_parts_that_were_not_seen(normal: NormalImages, parts: Path) -> None:
    new, bad = scores(normal, parts / "new"), scores(normal, parts / "bad")
    assert auroc(new, bad) > 0.95
    assert (normal.p_values(bad) <= 0.05).mean() > 0.8
    assert (normal.p_values(new) <= 0.05).mean() < 0.3


def test_the_order_in_which_images_are_given_changes_no_score(normal: NormalImages, parts: Path) -> None:
    paths = sorted((parts / "good").iterdir(), key=lambda path: path.name[::-1])
    again = fit_normal(paths)
    assert again.paths == normal.paths
    np.testing.assert_array_equal(again.calibration, normal.calibration)


def test_the_heat_is_where_the_defect_is(normal: NormalImages, tmp_path: Path) -> None:
    pixels = np.asarray(part(3000)).copy()
    pixels[60:84, 190:214] = 240
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    _, heat = normal.measure(read_in_shape(tmp_path / "spot.png", Limits()))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 50 < (row + 0.5) * ROWS / heat.shape[0] < 94
    assert 180 < (column + 0.5) * COLUMNS / heat.shape[1] < 224
    assert heat.max() > 1


def test_images_keep_their_shape_whatever_their_size(tmp_path: Path) -> None:
    for size, expected in (((500, 1260), (320, 128)), ((30, 20), (128, 192)), ((8, 8000), (2048, 16))):
        Image.new("L", size).save(tmp_path / "image.png")
        picture = read_in_shape(tmp_path / "image.png", Limits())
        assert (picture.width, picture.height) == size
        assert picture.pixels[0].shape == (*expected, 3)


def test_each_normal_image_is_measured_against_others(normal: NormalImages, parts: Path) -> None:
    held_out = normal.calibration
    assert sorted(scores(normal, parts / "good")) == sorted(held_out)
    fitted = scores(dataclasses.replace(normal, digests=()), parts / "good")
    assert len(held_out) == 40
    assert np.median(fitted) < np.median(held_out)  # a patch of the bank is its own nearest neighbour
    new = scores(normal, parts / "new")
    assert abs(np.median(new) - np.median(held_out)) < 1.5  # of images that were not seen, it is not


def test_a_few_outliers_among_the_normal_images_come_first(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "good", tmp_path / "mixed")
    for path in sorted((parts / "bad").iterdir())[:3]:
        shutil.copy(path, tmp_path / "mixed" / f"bad-{path.name}")
    mixed = fit_normal(tmp_path / "mixed")
    first = [mixed.paths[index].name for index in np.argsort(-mixed.calibration)[:5]]
    assert mixed.note is not None
    assert all(f"mixed/{name}" in mixed.note for name in first[:3])
    unusual, limit = inspect_images(mixed).notes
    assert unusual == mixed.note
    assert "of 43 images that judge each other can be called outliers" in limit
    assert sum(name.startswith("bad-") for name in first) >= 2


def test_copies_of_an_image_are_one_observation(normal: NormalImages, parts: Path, tmp_path: Path) -> None:
    # Its copy in the bank would make each image look ordinary, and the threshold fall.
    for path in (parts / "good").iterdir():
        shutil.copy(path, tmp_path / path.name)
        Image.open(path).save(tmp_path / f"{path.stem}-again.bmp")  # other bytes, the same pixels
    doubled = fit_normal(tmp_path)
    assert len(doubled.calibration) == 40
    assert len(doubled.paths) == 80
    assert np.median(doubled.calibration) == pytest.approx(np.median(normal.calibration), abs=0.2)
    found = {one.path.stem: one.score for one in inspect_images(doubled).images}
    assert len(found) == 80
    assert found["7"] == found["7-again"]


def test_more_images_than_fit_a_bank_are_measured_against_it(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FITTED", 20)
    seen: list[tuple[int, int]] = []
    found = fit_normal(parts / "good", progress=lambda *at: seen.append(at))
    assert len(found.calibration) == len(found.paths) == 40
    assert seen[-1] == (60, 60)
    # The same limit, as one of patches.
    picture = read_in_shape(found.paths[0], Limits())
    grids = [rows * columns // 16**2 for rows, columns, _ in (one.shape for one in picture.pixels)]
    monkeypatch.setattr(module, "MOST_FITTED", 500)
    monkeypatch.setattr(module, "_MOST_PATCHES", 20 * sum(grids))
    np.testing.assert_array_equal(fit_normal(parts / "good").calibration, found.calibration)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((300, 350), [(128, 144), (256, 304)]),
        ((1000, 1000), [(128, 128), (256, 256)]),
        ((2000, 2000), [(128, 128), (512, 512)]),
        ((4000, 3000), [(176, 128), (1024, 768)]),
        ((500, 8000), [(128, 2048), (256, 4096)]),
        ((20, 4000), [(16, 2048), (16, 2048)]),
    ],
)
def test_images_of_over_a_megapixel_are_seen_at_more_pixels(
    size: tuple[int, int], seen: list[tuple[int, int]]
) -> None:
    assert seen_sizes(*size) == seen


def test_the_bound_of_the_rate_is_that_of_the_binomial(normal: NormalImages) -> None:
    rate = 3 / 41  # the three highest of 40 scores
    bound = normal.fpr_bound(rate)
    # With that rate, 40 images have fewer than 3 scores beyond the threshold in one of 100 draws.
    assert binom.cdf(2, 40, bound) == pytest.approx(0.01, abs=1e-6)
    assert normal.threshold(rate) == np.sort(normal.calibration)[-3]


def test_a_bank_gives_the_mahalanobis_distance_to_the_nearest_patch() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((6, 6))
    patches = (generator.standard_normal((30, 4, 6)) @ mixing).astype(np.float16)
    bank = PatchBank.fit([patches[:15], patches[15:]])
    queries = (generator.standard_normal((2, 3, 6)) @ mixing).astype(np.float16)
    flat = patches.reshape(-1, 6).astype(float)
    covariance = np.cov(flat.T, bias=True)
    precision = np.linalg.inv(covariance + 1e-3 * covariance.trace() / 6 * np.eye(6))
    gaps = queries.reshape(-1, 1, 6).astype(float) - flat
    expected = np.sqrt(np.einsum("nmi,ij,nmj->nm", gaps, precision, gaps).min(1) / 6).reshape(2, 3)
    np.testing.assert_allclose(bank.distances(queries), expected, rtol=0.02, atol=0.01)
    many = np.concatenate([queries.reshape(-1, 6)] * 200)  # more than are compared at once
    np.testing.assert_allclose(bank.distances(many), np.tile(bank.distances(queries).ravel(), 200), rtol=1e-3)
    blank = np.ones((3, 3, 6), np.float16)
    assert np.isfinite(PatchBank.fit([blank]).distances(blank + 1)).all()


def test_what_is_learned_is_kept_in_one_file_that_needs_no_image(
    normal: NormalImages, parts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "good.safetensors"
    normal.save(path)
    assert path.stat().st_size < 30e6
    loaded = load_normal(path)
    np.testing.assert_allclose(scores(loaded, parts / "bad"), scores(normal, parts / "bad"), rtol=1e-5)
    assert loaded.passing == normal.passing
    assert holds_normal(path)
    assert holds_normal(parts / "good")


def test_a_file_that_is_something_else_is_rejected_in_one_line(normal: NormalImages, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    normal.save(path)
    tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, ModelFileError)
    content = {name: value for name, value in content.items() if name not in ("kind", "version")}
    for changed, stated, message in (
        (tensors, {**content, "weights": "another 2"}, "was made with another 2, and"),
        (tensors, {**content, "usual_size": [0]}, "does not hold usable normal images"),
        (
            {**tensors, "content.neighbours": tensors["content.neighbours"][:, :3]},
            content,
            "does not hold usable normal images",
        ),
        (
            {**tensors, "combination.spread": tensors["combination.spread"] * float("nan")},
            content,
            "its numbers are not finite",
        ),
        ({**tensors, "bank.mean": torch.zeros(2)}, content, "does not hold usable normal images"),
        ({**tensors, "fine.mean": torch.zeros(2)}, content, "does not hold usable normal images"),
        (
            {**tensors, "places128.spread": tensors["places128.spread"] * float("nan")},
            content,
            "its numbers are not finite",
        ),
        (
            {k: v for k, v in tensors.items() if k != "combination.centre"},
            content,
            "does not hold usable normal images",
        ),
    ):
        write_tensors(path, KIND, FORMAT_VERSION, changed, stated)
        with pytest.raises(ModelFileError, match=message) as caught:
            load_normal(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="No normal images file at"):
        load_normal(tmp_path / "none.safetensors")


def test_too_few_images_and_files_that_are_none_are_named(parts: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    with pytest.raises(ImageFolderError):
        fit_normal(few)
    for path in sorted((parts / "good").iterdir())[:9]:
        shutil.copy(path, few)
    (few / "broken.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"Give 10 or more normal images; there are 9. 1 cannot be used"):
        fit_normal(few)
    shutil.copy(parts / "good" / "20.png", few)
    (few / "note.txt").touch()
    found = fit_normal(few)
    assert len(found.calibration) == 10
    assert [path.name for path, _ in found.skipped] == ["broken.png", "note.txt"]
    judged = inspect_images(found, few)
    assert [path.name for path, _ in judged.skipped] == ["broken.png", "note.txt"]


def test_parts_are_alike_and_photographs_vary(normal: NormalImages, tmp_path: Path) -> None:
    assert normal.are_alike
    for seed in range(12):
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 256, (*generator.integers(2, 9, 2), 3), np.uint8)
        Image.fromarray(coarse).resize((90, 90), Image.Resampling(seed % 2 * 3)).save(
            tmp_path / f"{seed}.png"
        )
    varied = fit_normal(tmp_path)
    assert not varied.are_alike
    weights = varied.combination.weights[0]
    scores = np.exp(varied.combination.centre) * np.random.default_rng(0).lognormal(size=(9, len(weights)))
    z = (np.log(scores + 1e-6) - varied.combination.centre) / varied.combination.spread
    above = np.sqrt((weights * np.square(z.clip(min=0))).sum(1))
    expected = np.where(above > 0, above, z[:, weights > 0].max(1))
    np.testing.assert_allclose(varied.combination.score(scores), expected)


def test_images_of_12_bits_in_files_of_16_are_not_nearly_black(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    for number in range(12):
        levels = 500 + generator.normal(0, 20, (16, 16))
        grey = Image.fromarray(levels.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
        Image.fromarray(np.asarray(grey).astype(np.uint16)).save(tmp_path / "good" / f"{number}.png")
    normal = fit_normal(tmp_path / "good")
    low, high = normal.value_range
    assert 300 < low < 500 < high < 700
    normal.save(tmp_path / "good.safetensors")
    assert load_normal(tmp_path / "good.safetensors").value_range == normal.value_range
    assert len(set(normal.calibration.round(6).tolist())) == 12  # nearly black, all were alike
    picture = read_in_shape(tmp_path / "good" / "0.png", Limits(), normal.value_range)
    assert picture.pixels[0].std() > 20
    assert read_in_shape(tmp_path / "good" / "0.png", Limits()).pixels[0].max() < 4
    (tmp_path / "photos").mkdir()
    for number in range(12):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(
            tmp_path / "photos" / f"{number}.png"
        )
    assert fit_normal(tmp_path / "photos").value_range == ()


def test_the_nearest_patch_is_that_of_an_exact_search() -> None:
    generator = np.random.default_rng(1)
    patches = generator.standard_normal((20, 100, 24)).astype(np.float16)
    bank = PatchBank.fit(list(patches[:, :, None]))
    queries = generator.standard_normal((7, 200, 24)).astype(np.float16)
    whitened = (queries.reshape(-1, 24).astype(np.float32) - bank.mean) @ bank.whitening
    index: Any = faiss.IndexFlatL2(24)
    index.add(bank.patches.astype(np.float32))
    expected = np.sqrt(index.search(whitened, 1)[0][:, 0] / 24).reshape(7, 200)
    np.testing.assert_allclose(bank.distances(queries), expected, rtol=1e-4)
    itself = bank.distances((bank.patches.astype(np.float64) @ np.linalg.inv(bank.whitening)) + bank.mean)
    assert itself.max() < 0.01
