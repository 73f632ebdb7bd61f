"""Which file of a group stays: by pixels, date and path; and what links and borders count for."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from tests.duplicates.pictures import texture

from autoencode import ConfigError, find_duplicates
from autoencode.configuration import Keep
from autoencode.duplicates import DuplicateGroup


def test_a_picture_in_a_border_is_not_the_one_that_stays(tmp_path: Path) -> None:
    texture(0).save(tmp_path / "b.png")
    ImageOps.expand(texture(0), 12, "white").save(tmp_path / "a.png")
    (group,) = find_duplicates(tmp_path).groups
    assert [(file.path.name, file.kinds) for file in group.files] == [("b.png", ()), ("a.png", ("cropped",))]


def test_a_jpeg_stays_and_not_a_lossless_copy_of_it_but_a_lossless_source_does(tmp_path: Path) -> None:
    texture(0).save(tmp_path / "b.jpg", quality=60)
    with Image.open(tmp_path / "b.jpg") as decoded:
        decoded.save(tmp_path / "a.png")
    texture(1).save(tmp_path / "d.png")
    texture(1).save(tmp_path / "c.jpg", quality=60)
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))  # as after a copy of all of them
    groups = find_duplicates(tmp_path).groups
    assert {group.files[0].path.name for group in groups} == {"b.jpg", "d.png"}
    assert [file.decoded for group in groups for file in group.files].count(True) == 1


def sizes(group: DuplicateGroup) -> list[tuple[int, int]]:
    return [(file.width, file.height) for file in group.files]


def test_a_picture_with_a_margin_of_its_own_is_larger_than_its_half(tmp_path: Path) -> None:
    """The whole frame is on the whole frame: nobody put the one into a border."""
    for margin in (6, 9, 12, 15):
        picture = ImageOps.expand(texture(margin, 300, 400), margin, "white")
        picture.save(tmp_path / f"{margin} b.jpg", quality=95)
        picture.reduce(2).save(tmp_path / f"{margin} a.jpg", quality=95)
    groups = find_duplicates(tmp_path).groups
    assert [sizes(group)[0] for group in groups] == [(424, 324), (430, 330), (412, 312), (418, 318)]
    assert {file.kinds for group in groups for file in group.files[1:]} == {("resized",)}


def test_what_a_border_shows_counts_and_the_border_does_not(tmp_path: Path) -> None:
    large, small = texture(0, 300, 400), texture(0, 300, 400).resize((320, 240), Image.Resampling.LANCZOS)
    ImageOps.expand(large, 16, "black").save(tmp_path / "framed large.png")
    small.save(tmp_path / "small.png")
    other = texture(1, 300, 400)
    other.save(tmp_path / "z large.png")
    ImageOps.expand(other.reduce(2), 150, "white").save(tmp_path / "y framed small.png")
    first, second = find_duplicates(tmp_path).groups
    assert [file.path.stem for file in first.files] == ["framed large", "small"]
    assert first.files[0].picture == pytest.approx(400 * 300, rel=0.05)
    assert [file.path.stem for file in second.files] == ["z large", "y framed small"]


def test_an_icon_is_larger_than_its_crop(tmp_path: Path) -> None:
    """The crop ends inside the white margin on two sides, and cuts the drawing on the others."""
    generator = np.random.default_rng(0)
    for number in range(6):
        icon = Image.new("RGB", (64, 64), "white")
        draw = ImageDraw.Draw(icon)
        draw.ellipse((4, 1, 59, 62), fill=tuple(generator.integers(0, 200, 3).tolist()))
        for x, y in generator.integers(6, 50, (14, 2)).tolist():
            draw.rectangle((x, y, x + 7, y + 7), tuple(generator.integers(0, 255, 3).tolist()))
        icon.save(tmp_path / f"{number} b.png")
        icon.crop((3, 3, 61, 61)).save(tmp_path / f"{number} a.png")
    groups = find_duplicates(tmp_path).groups
    assert [sizes(group) for group in groups] == [[(64, 64), (58, 58)]] * 6


@pytest.mark.parametrize("old", ["plain", "framed", "saved"])
def test_the_oldest_of_equally_many_pixels_stays(tmp_path: Path, old: str) -> None:
    """A copy that was marked or saved again may have more bytes, and is younger."""
    picture = texture(0, 300, 400)
    picture.save(tmp_path / "plain.jpg", quality=80)
    ImageOps.expand(picture, 24, "white").save(tmp_path / "framed.jpg")
    picture.save(tmp_path / "saved.jpg", quality=98)
    os.utime(tmp_path / f"{old}.jpg", (1, 1))
    (group,) = find_duplicates(tmp_path).groups
    assert group.files[0].path.stem == old


def test_copies_are_described_by_the_file_that_stays(few: Path) -> None:
    for name in ("mirror.jpg", "same.png"):
        os.utime(few / name, (1, 1))
    groups = find_duplicates(few, keep="oldest").groups
    stay, go = zip(*(group.files for group in groups), strict=True)
    assert [file.path.name for file in stay] == ["mirror.jpg", "same.png"]
    assert [(file.path.name, file.kinds) for file in go] == [
        ("3.png", ("mirrored",)),
        ("4.png", ("identical",)),
    ]
    assert [file.like for file in go] == [file.path for file in stay]
    with pytest.raises(ConfigError, match="keep"):
        find_duplicates(few, keep="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", ["largest", "oldest", "first"])
def test_a_file_and_its_links_are_one(few: Path, tmp_path: Path, keep: Keep) -> None:
    (few / "0 link.png").symlink_to("0.png")
    (few / "9 hard.png").hardlink_to(few / "1.png")
    (few / "- chain.png").symlink_to("0 link.png")
    (tmp_path / "folder").symlink_to(few)
    found = find_duplicates([tmp_path / "folder" / "2.png", few], keep=keep)
    wanted = {"0 link.png": "0.png", "9 hard.png": "1.png", "- chain.png": "0.png", "2.png": "2.png"}
    assert {link.name: file for link, file in found.links} == {a: few / b for a, b in wanted.items()}
    assert (found.images, found.skipped) == (7, [])
    assert {file.path.name for group in found.groups for file in group.files} == {
        *("3.png", "mirror.jpg", "4.png", "same.png"),
    }


def test_a_link_to_a_file_elsewhere_stays_among_links_alone(few: Path, tmp_path: Path) -> None:
    texture(0, 75, 100).resize((200, 150), Image.Resampling.LANCZOS).save(tmp_path / "elsewhere.png")
    (few / "0 link.png").symlink_to(tmp_path / "elsewhere.png")
    (group,) = (g for g in find_duplicates(few).groups if "0.png" in {file.path.name for file in g.files})
    assert [file.path.name for file in group.files] == ["0.png", "0 link.png"]
