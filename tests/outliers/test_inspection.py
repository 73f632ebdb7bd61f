"""Verdicts on images: the order, the place, the tables and the pictures."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.outliers.test_normal import COLUMNS, ROWS, normal, part, parts  # noqa: F401 - fixtures

from autoencode import (
    ConfigError,
    ImageFolderError,
    NormalImages,
    OutputError,
    Verdict,
    fit_normal,
    inspect_images,
    load_normal,
    watch_images,
)
from autoencode.data.preprocessing import Limits
from autoencode.outliers.overlays import begin_maps, coloured, region, with_box
from autoencode.outliers.patches import read_in_shape


def test_defects_come_first_with_their_place(normal: NormalImages, parts: Path, tmp_path: Path) -> None:  # noqa: F811
    pixels = np.asarray(part(3001)).copy()
    pixels[8:40, 20:60] = 250
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    found = inspect_images(normal, [parts / "new", tmp_path / "spot.png"], fpr=0.05)
    first = found.images[0]
    assert first.path.name == "spot.png"
    assert first.outlier
    assert first.ratio >= 1 and first.score > found.threshold
    assert first.box is not None
    left, top, width, height = first.box
    # The region overlaps the spot, and is no larger than its neighbourhood.
    assert left < 60 and left + width > 20 and top < 40 and top + height > 8
    assert width < 0.5 * COLUMNS
    assert 0 < first.area < 0.2
    assert [one.score for one in found.images] == sorted((one.score for one in found.images), reverse=True)
    assert all(one.outlier == (one.score > found.threshold) for one in found.images)


def test_without_images_the_normal_ones_are_judged_by_each_other(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
) -> None:
    found = inspect_images(normal, fpr=0.05)
    assert len(found.images) == 40
    assert sorted(one.score for one in found.images) == sorted(normal.calibration)
    for rate in (0.03, 0.05, 0.1, 0.25):
        found = inspect_images(normal, fpr=rate)
        flagged = sum(one.outlier for one in found.images)
        assert any(f"at most {flagged} of 40 images that judge each other" in note for note in found.notes)
    assert not any("judge each other" in note for note in inspect_images(normal, parts / "new").notes)


def test_files_that_could_not_be_learned_from_are_listed_where_all_are_judged(
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    mixed = Path(shutil.copytree(parts / "good", tmp_path / "mixed"))
    (mixed / "broken.png").write_bytes(b"no image")
    (mixed / "film.mp4").touch()
    (mixed / "nowhere.png").symlink_to(mixed / "none")
    found = inspect_images(fit_normal(mixed), out=tmp_path / "found.json")
    assert len(found.images) == 40
    content = json.loads((tmp_path / "found.json").read_text())
    names = [Path(one["path"]).name for one in content["skipped"]]
    assert sorted(names) == ["broken.png", "film.mp4", "nowhere.png"]
    # A part that could not be judged has a row without a score; a film is no part.
    errors = [(Path(row["path"]).name, row["score"]) for row in content["images"] if row["error"]]
    assert sorted(errors) == [("broken.png", None), ("nowhere.png", None)]
    assert len(content["images"]) == 42


def test_the_heat_of_a_normal_image_is_that_of_banks_without_it(
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(parts / "good", tmp_path / "mixed")
    pixels = np.asarray(part(3002)).copy()
    pixels[8:40, 20:60] = 250
    Image.fromarray(pixels).save(tmp_path / "mixed" / "spot.png")
    mixed = fit_normal(tmp_path / "mixed")
    spot = next(one for one in inspect_images(mixed).images if one.path.name == "spot.png")
    mixed.save(tmp_path / "mixed.safetensors")
    kept = load_normal(tmp_path / "mixed.safetensors")
    score, from_own_bank = kept.measure(read_in_shape(tmp_path / "mixed" / "spot.png", Limits()))
    assert score == spot.score  # also from a file, and whatever the image is called
    assert spot.heat.max() > 2 * from_own_bank.max()
    assert spot.box is not None
    assert spot.box.left < 60
    assert spot.box.top < 40


def test_tables_and_pictures_of_every_image(normal: NormalImages, parts: Path, tmp_path: Path) -> None:  # noqa: F811
    table, maps = tmp_path / "found.csv", tmp_path / "deep" / "maps"
    found = inspect_images(normal, parts / "bad", table, maps=maps)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == [str(one.path) for one in found.images]
    assert float(rows[0]["threshold"]) == pytest.approx(found.threshold, rel=1e-4)
    assert {row["outlier"] for row in rows} <= {"true", "false"}
    pictures = sorted(path.name for path in maps.glob("*.png"))
    assert len(pictures) == 2 * len(rows)
    # Names begin with the rank, and the table has them.
    names = [f"{rank:05d}-{one.path.stem}" for rank, one in enumerate(found.images, 1)]
    assert pictures == sorted(f"{name}-{kind}.png" for name in names for kind in ("map", "overlay"))
    assert [row["overlay"] for row in rows] == [f"{name}-overlay.png" for name in names]
    name = next(one for one in names if one.endswith("-2000"))
    with Image.open(maps / f"{name}-map.png") as image:
        assert image.size == (COLUMNS, ROWS)
        assert image.mode == "I;16"
        hottest = np.asarray(image).max() / 4096
    verdict = next(one for one in found.images if one.path.name == "2000.png")
    assert hottest == pytest.approx(float(verdict.heat.max()), rel=0.2)
    with Image.open(maps / f"{name}-overlay.png") as image:
        assert image.size == (COLUMNS, ROWS)
    inspect_images(normal, parts / "bad", tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["calibration_images"] == 40
    assert len(content["images"]) == len(rows)
    # A program reads either table by the same names.
    for row, in_csv in zip(content["images"], rows, strict=True):
        assert list(row) == list(in_csv)
        numbers = {name: float(in_csv[name]) for name, value in row.items() if isinstance(value, float)}
        assert numbers == pytest.approx({name: row[name] for name in numbers}, rel=1e-5)
        assert [str(row[side]) for side in ("left", "top", "width", "height")] == [
            in_csv[side] for side in ("left", "top", "width", "height")
        ]
    assert content["fpr"] < content["fpr_bound"] < 1


def test_pictures_of_outliers_alone_and_names_with_their_folder(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    found = inspect_images(
        normal, [parts / "bad", parts / "new"], fpr=0.05, maps=tmp_path / "maps", only_outliers=True
    )
    names = {path.name for path in (tmp_path / "maps").glob("*.png")}
    flagged = [one.path for one in found.images if one.outlier]
    assert 0 < len(flagged) < len(found.images)
    assert len(names) == 2 * len(flagged)
    assert {name[6:].removesuffix("-map.png") for name in names if name.endswith("-map.png")} == {
        f"{path.parent.name}-{path.stem}" for path in flagged
    }


def test_maps_are_those_of_the_last_run_and_are_not_mixed_with_others(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    maps = tmp_path / "maps"
    first, second = sorted((parts / "bad").iterdir())[:2], sorted((parts / "new").iterdir())[:1]
    inspect_images(normal, first, maps=maps)
    (maps / "notes.txt").write_text("mine")
    inspect_images(normal, second, maps=maps)
    assert {path.name for path in maps.iterdir()} == {
        *("00001-1000-overlay.png", "00001-1000-map.png", "maps.json", "notes.txt")
    }
    # No outlier leaves no picture of a run that had some.
    inspect_images(normal, second, maps=maps, only_outliers=True, fpr=1 / 41)
    assert {path.name for path in maps.iterdir()} == {"maps.json", "notes.txt"}
    for name, content in (("maps.json", "{"), ("00007-other-overlay.png", "")):
        (maps / name).write_text(content)
    with pytest.raises(OutputError, match=r"holds pictures of another run, such as 00007-other-overlay"):
        inspect_images(normal, second, maps=maps)
    with pytest.raises(OutputError, match="pictures of another run"):
        next(watch_images(normal, parts / "new", tmp_path / "today.csv", maps=maps))
    assert (maps / "00007-other-overlay.png").exists()


def test_a_list_of_maps_removes_nothing_else(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    (tmp_path / "00001-a-map.png").touch()
    (maps / "photo.png").touch()
    (maps / "00002-b-map.png").touch()
    (maps / "maps.json").write_text('["../00001-a-map.png", "photo.png", "00002-b-map.png", 7]')
    begin_maps(maps, ["00001-c"], tmp_path)
    assert (tmp_path / "00001-a-map.png").exists()
    assert {path.name for path in maps.iterdir()} == {"photo.png", "maps.json"}
    assert json.loads((maps / "maps.json").read_text())[:2] == ["00001-c-map.png", "00001-c-overlay.png"]


def test_red_is_beyond_what_is_normal_and_blue_within_it() -> None:
    heat = np.full((8, 8), 0.3, np.float32)
    heat[6, 2] = 0.7
    within, hot = coloured(heat, 64, 64), coloured(3 * heat, 64, 64)
    assert within[52, 20, 2] > 200 and within[52, 20, 0] < 60 and within[52, 20, 3] > 80
    assert hot[52, 20, 0] > 200 and hot[52, 20, 2] < 60 and hot[52, 20, 3] > 120
    assert within[:32, 32:, 3].max() < 10
    assert not coloured(np.zeros((8, 8), np.float32), 64, 64)[..., 3].any()
    box, _ = region(3 * heat, 64, 64)
    assert box is not None
    drawn = with_box(np.full((64, 64, 3), 250, np.uint8), box, (64, 64))
    around = drawn[box.top - 1, box.left : box.left + box.width]
    assert (around[:, 0] > 200).all() and (around[:, 1] < 60).all()
    np.testing.assert_array_equal(drawn[box.top + 2, box.left + 2], [250] * 3)


def test_masks_say_how_well_defects_are_found(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "masks").mkdir()
    for path in (parts / "bad").iterdir():
        plain, scratched = (
            np.asarray(part(int(path.stem), scratched=scratched), float) for scratched in (False, True)
        )
        Image.fromarray(np.where(abs(plain - scratched) > 0, 255, 0).astype(np.uint8)).save(
            tmp_path / "masks" / path.name
        )
    out = tmp_path / "found.json"
    found = inspect_images(normal, [parts / "bad", parts / "new"], out, masks=tmp_path / "masks")
    assert found.agreement is not None
    assert (found.agreement.bad, found.agreement.good) == (12, 12)
    assert found.agreement.image_auroc is not None and found.agreement.image_auroc.value > 0.9
    assert found.agreement.pixel_auroc is not None and found.agreement.pixel_auroc > 0.9
    assert json.loads(out.read_text())["agreement"]["aupro"] == found.agreement.aupro
    assert not any("mask" in note for note in found.notes)
    assert (tmp_path / "found-curves.png").is_file()
    names = [*(parts / "bad").iterdir(), *(parts / "new").iterdir()]
    masks = {path: tmp_path / "masks" / path.name if path.parent.name == "bad" else "" for path in names}
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(["path,mask", *(f"{path},{mask}" for path, mask in masks.items())]))
    by_table = inspect_images(normal, table, masks=table)
    assert by_table.agreement is not None
    assert by_table.agreement.to_json() == found.agreement.to_json()


def test_a_rate_that_so_few_images_cannot_keep_is_rejected(normal: NormalImages, parts: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="needs 99 normal images; there are 40"):
        inspect_images(normal, parts / "new", fpr=0.01)
    assert inspect_images(normal, parts / "new").fpr == 0.05


def test_a_table_that_is_an_image_and_images_that_are_none_are_rejected(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError):
        inspect_images(normal, parts / "new", parts / "new" / "1000.png")
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageFolderError, match="No image could be used"):
        inspect_images(normal, tmp_path / "no.png")


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_file_is_judged_once_also_after_a_new_start(
    normal: NormalImages,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    camera, table = tmp_path / "camera", tmp_path / "today.csv"
    (camera / "line 1").mkdir(parents=True)
    assert list(watch_images(normal, camera, table, interval_s=0, most_rounds=2)) == []
    part(2000, scratched=True).save(camera / "line 1" / "a.png")
    (camera / "broken.png").write_bytes(b"no image")
    found = list(watch_images(normal, camera, table, fpr=0.05, interval_s=0, patience_s=0, most_rounds=4))
    assert len(found) == 2
    assert any(isinstance(one, Verdict) and one.outlier for one in found)
    assert any(isinstance(one, tuple) and one[0].name == "broken.png" for one in found)
    shutil.copy(parts / "new" / "1000.png", camera / f"{'1' * 251}.png")
    again = watch_images(normal, camera, table, interval_s=0, most_rounds=3, maps=tmp_path / "maps")
    assert [one.path.name for one in again if isinstance(one, Verdict)] == [f"{'1' * 251}.png"]
    assert sorted(Path(row["path"]).stem for row in rows(table)) == ["1" * 251, "a", "broken"]
    assert {row["outlier"] for row in rows(table) if row["path"].endswith("a.png")} == {"true"}
    assert {(row["score"], row["error"] != "") for row in rows(table) if "broken" in row["path"]} == {
        ("", True)
    }
    assert sorted(path.name for path in (tmp_path / "maps").iterdir())[0] == f"00002-{'1' * 194}-map.png"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, names are text of one line")
def test_names_of_any_bytes_and_links_to_nowhere_are_judged_once(
    normal: NormalImages,  # noqa: F811
    tmp_path: Path,
) -> None:
    camera, table = tmp_path / "camera", tmp_path / "today.csv"
    camera.mkdir()
    part(1).save(camera / "0.png")
    for name in (b"two\nlines.png", b"\xff.png", b"=1+1.png", "\u2028.png".encode()):
        shutil.copy(camera / "0.png", camera / os.fsdecode(name))
    (camera / "nowhere.png").symlink_to(camera / "none.png")
    (camera / "loop.png").symlink_to(camera / "loop.png")
    once = {"interval_s": 0, "patience_s": 0, "most_rounds": 3}
    assert len(list(watch_images(normal, camera, table, **once))) == 7
    assert list(watch_images(normal, camera, table, **once)) == []
    content = table.read_bytes()
    cut = content[: content.index(b"two\n") + 4]  # in the name, where a line ends but no row
    table.write_bytes(cut)
    again = list(watch_images(normal, camera, table, **once))
    assert len(again) == 7 - (cut.count(b"\n") - 2)
    assert len(rows(table)) == 7


def test_a_file_that_still_grows_is_left_for_later(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    camera = tmp_path / "camera"
    camera.mkdir()
    part(1).save(camera / "a.png")
    looks = watch_images(normal, camera, tmp_path / "t.csv", interval_s=0, most_rounds=1)
    assert list(looks) == []  # one look cannot tell


@pytest.mark.parametrize("patience_s", [0, 3600])
def test_a_file_that_pauses_while_it_is_written_is_judged_when_it_is_whole(
    normal: NormalImages,  # noqa: F811
    tmp_path: Path,
    patience_s: float,
) -> None:
    camera, table, path = tmp_path / "camera", tmp_path / "t.csv", tmp_path / "camera" / "a.png"
    camera.mkdir()
    part(2000, scratched=True).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    watching = watch_images(
        normal, camera, table, fpr=0.05, interval_s=0, patience_s=patience_s, most_rounds=200
    )
    if patience_s == 0:  # longer than one waits
        first = next(watching)
        assert isinstance(first, tuple) and first[0] == path
    else:
        list(watch_images(normal, camera, table, fpr=0.05, interval_s=0, most_rounds=5))
        assert rows(table) == []
    path.write_bytes(content)
    verdict = next(watching)
    assert isinstance(verdict, Verdict) and verdict.outlier
    assert [row["outlier"] for row in rows(table)] == ["", "true"][1 if patience_s else 0 :]
    assert list(watching) == []
    # Also after a new start.
    path.with_name("b.png").write_bytes(content[:100])
    once = {"interval_s": 0, "patience_s": 0, "most_rounds": 3}
    assert [one[0].name for one in watch_images(normal, camera, table, **once) if isinstance(one, tuple)] == [
        "b.png"
    ]
    path.with_name("b.png").write_bytes(content)
    assert [one.path.name for one in watch_images(normal, camera, table, **once)] == ["b.png"]


def test_a_line_that_a_crash_cut_short_is_judged_again(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    camera, table = tmp_path / "camera", tmp_path / "t.csv"
    camera.mkdir()
    part(1).save(camera / "a.png")
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=2))
    whole = table.read_bytes()
    table.write_bytes(whole[:-7])
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=2))
    assert table.read_bytes() == whole


@pytest.mark.parametrize("left", [0, 4, 9])
def test_a_table_without_its_whole_first_line_is_begun_again(
    normal: NormalImages,  # noqa: F811
    tmp_path: Path,
    left: int,
) -> None:
    camera, table = tmp_path / "camera", tmp_path / "t.csv"
    camera.mkdir()
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=1))
    header = table.read_bytes()
    table.write_bytes(header[:left])
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=1))
    assert table.read_bytes() == header


@pytest.mark.parametrize("content", ["a,b\n1,2", "my notes", '"' + "x" * 200_000 + '"\n'])
def test_another_table_is_left_as_it_is(normal: NormalImages, tmp_path: Path, content: str) -> None:  # noqa: F811
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ConfigError, match="is another table"):
        next(watch_images(normal, tmp_path, tmp_path / "t.csv"))
    assert (tmp_path / "t.csv").read_text() == content


def test_another_table_and_no_folder_are_rejected(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ImageFolderError, match="There is no folder"):
        next(watch_images(normal, tmp_path / "none", tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="is another table"):
        next(watch_images(normal, tmp_path, tmp_path / "t.csv"))
    with pytest.raises(ConfigError):
        next(watch_images(normal, tmp_path, tmp_path / "t.json"))
