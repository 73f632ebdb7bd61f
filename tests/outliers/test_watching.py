"""Files are judged as they come: once each, when they are whole, and not again after a new start."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from tests.outliers.test_normal import normal, part, parts  # noqa: F401 - fixtures

from autoencode import ConfigError, ImageFolderError, NormalImages, Verdict
from autoencode.outliers.watching import watch_images


def rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


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
    found = list(watch_images(normal, camera, table, fpr=0.05, interval_s=0, most_rounds=4))
    assert len(found) == 2
    assert any(isinstance(one, Verdict) and one.outlier for one in found)
    assert any(isinstance(one, tuple) and one[0].name == "broken.png" for one in found)
    shutil.copy(parts / "new" / "1000.png", camera)
    again = watch_images(normal, camera, table, interval_s=0, most_rounds=3, maps=tmp_path / "maps")
    assert [one.path.name for one in again if isinstance(one, Verdict)] == ["1000.png"]
    assert sorted(Path(row["path"]).name for row in rows(table)) == ["1000.png", "a.png", "broken.png"]
    assert {row["outlier"] for row in rows(table) if row["path"].endswith("a.png")} == {"true"}
    assert sorted(path.name for path in (tmp_path / "maps").iterdir())[0] == "00003-1000-map.png"


def test_a_file_that_still_grows_is_left_for_later(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    camera = tmp_path / "camera"
    camera.mkdir()
    part(1).save(camera / "a.png")
    looks = watch_images(normal, camera, tmp_path / "t.csv", interval_s=0, most_rounds=1)
    assert list(looks) == []  # one look cannot tell


def test_a_line_that_a_crash_cut_short_is_judged_again(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    camera, table = tmp_path / "camera", tmp_path / "t.csv"
    camera.mkdir()
    part(1).save(camera / "a.png")
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=2))
    whole = table.read_bytes()
    table.write_bytes(whole[:-7])
    list(watch_images(normal, camera, table, interval_s=0, most_rounds=2))
    assert table.read_bytes() == whole


def test_another_table_and_no_folder_are_rejected(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ImageFolderError, match="There is no folder"):
        next(watch_images(normal, tmp_path / "none", tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="is another table"):
        next(watch_images(normal, tmp_path, tmp_path / "t.csv"))
    with pytest.raises(ConfigError):
        next(watch_images(normal, tmp_path, tmp_path / "t.json"))
