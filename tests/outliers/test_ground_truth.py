"""Agreement with masks against scikit-learn and a region overlap written out, and masks that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from autoencode import ConfigError, ImageFolderError, Verdict
from autoencode.outliers.ground_truth import beside, compare, draw_curves, left_over, masks_of

SIDE = 32


def verdict(path: Path, score: float, heat: NDArray[np.floating], *, outlier: bool) -> Verdict:  # type: ignore[type-arg]
    return Verdict(path, score, 1.0, 0.5, outlier, None, 0.0, heat.astype(np.float16), (SIDE, SIDE))


@pytest.fixture
def judged(tmp_path: Path) -> tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]]:
    """Ten images, of which the first four have a defect of one or two regions; the heat is higher there."""
    generator, verdicts, truth = np.random.default_rng(0), [], np.zeros((10, SIDE, SIDE), bool)
    truth[:4, 3:9, 4:12] = True
    truth[:2, 20:28, 22:25] = True
    (tmp_path / "masks").mkdir()
    for index, defect in enumerate(truth):
        heat = generator.uniform(0, 1, (SIDE, SIDE)) + 0.5 * defect
        path = tmp_path / f"{index}.png"
        verdicts.append(verdict(path, [5, 4, 3, 1, 2, 0, 0, 0.5, 0.2, 0.1][index], heat, outlier=index < 2))
        if index < 4:
            Image.fromarray(np.where(defect, 255, 0).astype(np.uint8)).save(
                tmp_path / "masks" / f"{index}.png"
            )
    return verdicts, masks_of(tmp_path / "masks", [one.path for one in verdicts]), truth


def test_areas_under_the_curves_are_those_of_scikit_learn(
    judged: tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]],
) -> None:
    verdicts, masks, truth = judged
    found = compare(verdicts, masks)
    bad = truth.any((1, 2))
    scores = [one.score for one in verdicts]
    assert (found.bad, found.good, found.false_positives) == (4, 6, 0)
    assert found.image_auroc is not None
    assert found.image_auroc.value == pytest.approx(roc_auc_score(bad, scores))
    heat = np.stack([one.heat.astype(np.float32) for one in verdicts])
    assert found.pixel_auroc == pytest.approx(roc_auc_score(truth.ravel(), heat.ravel()))
    assert (found.precision, found.recall, found.f1) == (1, 0.5, pytest.approx(2 / 3))
    precision, recall = found.curves["images"]
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert area == pytest.approx(average_precision_score(bad, scores))
    assert found.to_json()["aupro"] == found.aupro


def test_the_region_overlap_is_the_mean_over_regions_at_each_rate(
    judged: tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]],
) -> None:
    verdicts, masks, truth = judged
    heat = np.stack([one.heat.astype(np.float32) for one in verdicts])
    regions = [(index, np.s_[3:9, 4:12]) for index in range(4)]
    regions += [(index, np.s_[20:28, 22:25]) for index in range(2)]
    rates = np.linspace(0, 0.3, 2001)
    overlap = [
        np.mean([(heat[index][where] > at).mean() for index, where in regions])
        for at in np.quantile(heat[~truth], 1 - rates)
    ]
    assert compare(verdicts, masks).aupro == pytest.approx(np.trapezoid(overlap, rates) / 0.3, abs=0.005)


def test_masks_are_found_by_name_and_folder(tmp_path: Path) -> None:
    for name in ("scratch/000_mask.png", "hole/000_mask.png", "007.png"):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "masks" / name)
    images = [tmp_path / name for name in ("scratch/000.jpg", "hole/000.jpg", "good/000.jpg", "x/007.jpg")]
    found = masks_of(tmp_path / "masks", images)
    assert left_over(tmp_path / "masks", found) is None
    misspelt = tmp_path / "masks" / "misspelt_mask.png"
    Image.new("L", (4, 4)).save(misspelt)
    assert left_over(tmp_path / "masks", found) == f"1 mask belongs to no image that is judged: {misspelt}."
    assert [found[path].relative_to(tmp_path / "masks").as_posix() for path in images if path in found] == [
        "scratch/000_mask.png",
        "hole/000_mask.png",
        "007.png",
    ]
    assert images[2] not in found
    (tmp_path / "test").mkdir()
    assert beside([tmp_path / "test"]) is None
    (tmp_path / "ground_truth").mkdir()
    assert beside([tmp_path / "test"]) == tmp_path / "ground_truth"
    assert beside([tmp_path / "test", tmp_path / "more"]) is None


def test_masks_are_those_of_the_column_of_a_table(tmp_path: Path) -> None:
    lines = ["path,mask", "test/0.png,truth/a.png", "test/1.png,", "elsewhere/2.png,truth/c.png"]
    table, plain = tmp_path / "parts.csv", tmp_path / "plain.csv"
    table.write_text("\n".join(lines))
    plain.write_text("path,label\ntest/0.png,good")
    images = [tmp_path / "test" / "0.png", tmp_path / "test" / "1.png"]
    assert masks_of(table, images) == {images[0]: tmp_path / "truth" / "a.png"}
    # The images judged need not be named by the table, but by the same place.
    assert masks_of(table, [tmp_path / "other" / ".." / "test" / "0.png"]).keys() != set()
    assert (beside([table]), beside([plain])) == (table, None)
    with pytest.raises(ConfigError, match=r"No mask in .*plain\.csv belongs to an image that is judged"):
        masks_of(plain, images)
    with pytest.raises(ConfigError, match="No mask in a data frame belongs"):
        masks_of(pytest.importorskip("pandas").read_csv(plain), images)
    frame = pytest.importorskip("pandas").read_csv(table).assign(path=lambda t: str(tmp_path) + "/" + t.path)
    assert masks_of(frame, images) == {images[0]: Path("truth/a.png").absolute()}


def test_masks_that_do_not_fit_are_one_line(
    judged: tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]], tmp_path: Path
) -> None:
    verdicts, masks, _ = judged
    with pytest.raises(ImageFolderError):
        masks_of(tmp_path / "none", masks)
    with pytest.raises(ConfigError, match=r"No mask in .* belongs to an image that is judged"):
        masks_of(tmp_path / "masks", [tmp_path / "other.png"])
    first = masks[verdicts[0].path]
    Image.new("L", (16, 32)).save(first)
    with pytest.raises(ConfigError, match=r"has 16x32 pixels, and .*0.png has 32x32. Make them equal."):
        compare(verdicts, masks)
    Image.effect_noise((16, 32), 50).save(first)
    first.write_bytes(first.read_bytes()[:300])  # not decoded for its size to be wrong
    with pytest.raises(ConfigError, match=r"has 16x32 pixels"):
        compare(verdicts, masks)
    first.write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"The mask .* cannot be used: not an image"):
        compare(verdicts, masks)
    for path in masks.values():
        Image.new("L", (SIDE, SIDE)).save(path)
    with pytest.raises(ConfigError, match="All masks are black"):
        compare(verdicts, masks)


def test_masks_of_zeros_and_ones_are_masks_too(
    judged: tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]],
) -> None:
    verdicts, masks, _ = judged
    before = compare(verdicts, masks).pixel_auroc
    for path in masks.values():
        with Image.open(path) as image:
            levels = np.asarray(image) // 255
        Image.fromarray(levels).save(path)
    assert compare(verdicts, masks).pixel_auroc == before


def test_the_curves_are_drawn(
    judged: tuple[list[Verdict], dict[Path, Path], NDArray[np.bool_]], tmp_path: Path
) -> None:
    verdicts, masks, _ = judged
    draw_curves(compare(verdicts, masks), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500
