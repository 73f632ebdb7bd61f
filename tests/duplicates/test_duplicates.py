"""Copies made of known images, and images that only look alike."""

import io
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from tests.duplicates.pictures import Picture, picture_of, texture

from autoencode import Duplicates, ImageFolderError, OutputError, build_index, find_duplicates
from autoencode.duplicates import features, verification


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def marked(picture: Picture) -> Picture:
    copy = picture.copy()
    ImageDraw.Draw(copy).text((100, 75), "SAMPLE", "white", font_size=30, anchor="mm")
    return copy


def replaced(picture: Picture) -> Picture:
    copy = picture.copy()
    copy.paste(texture(999, 50, 60), (20, 80))
    return copy


COPIES: dict[str, tuple[Callable[[Picture], Picture], set[str]]] = {
    "jpeg": (lambda p: jpeg(p, 30), {"re-encoded"}),
    "half": (lambda p: p.resize((100, 75), Image.Resampling.LANCZOS), {"resized"}),
    "quarter": (lambda p: p.resize((50, 38), Image.Resampling.LANCZOS), {"resized"}),
    "bright": (lambda p: ImageEnhance.Brightness(p).enhance(1.3), {"recoloured"}),
    "grey": (lambda p: p.convert("L").convert("RGB"), {"recoloured"}),
    "centre": (lambda p: p.crop((25, 19, 175, 131)), {"cropped"}),
    "corner": (lambda p: p.crop((40, 30, 200, 150)), {"cropped"}),
    "framed": (lambda p: ImageOps.expand(p, 12, "black"), {"cropped"}),
    "mirror": (ImageOps.mirror, {"mirrored"}),
    "upside": (ImageOps.flip, {"mirrored"}),
    "quarter turn": (lambda p: p.transpose(Image.Transpose.ROTATE_90), {"rotated"}),
    "half turn": (lambda p: p.transpose(Image.Transpose.ROTATE_180), {"rotated"}),
    "three degrees": (lambda p: p.rotate(3, Image.Resampling.BICUBIC), {"rotated"}),
    "marked": (marked, {"edited"}),
    "replaced": (replaced, {"edited"}),
    "small mirrored crop": (
        lambda p: ImageOps.mirror(p.crop((20, 0, 180, 150))).resize((107, 100), Image.Resampling.LANCZOS),
        {"mirrored", "cropped", "resized"},
    ),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images, and of each of the first of them one kind of copy."""
    folder = tmp_path_factory.mktemp("copied")
    for number in range(18):
        texture(number).save(folder / f"{number:02}.png")
    for number, (name, (copy, _)) in enumerate(COPIES.items()):
        copy(texture(number)).save(folder / f"{number:02} {name}.jpg", quality=92)
    shutil.copy(folder / "17.png", folder / "17 same.png")
    return folder


@pytest.fixture(scope="module")
def found(copied: Path) -> Duplicates:
    return find_duplicates(copied)


def test_each_copy_is_with_its_original_and_with_nothing_else(found: Duplicates) -> None:
    groups = [{file.path.stem.partition(" ")[0] for file in group.files} for group in found.groups]
    assert sorted(min(numbers) for numbers in groups) == [f"{n:02}" for n in (*range(len(COPIES)), 17)]
    assert all(len(numbers) == 1 for numbers in groups)
    assert [len(group.files) for group in found.groups] == [2] * (len(COPIES) + 1)
    assert (found.images, found.redundant, found.possible, found.skipped) == (35, 17, [], [])


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_of_the_kind_that_was_made(found: Duplicates, name: str) -> None:
    (copy,) = [
        file for group in found.groups for file in group.files[1:] if file.path.stem.endswith(f" {name}")
    ]
    assert set(copy.kinds) == COPIES[name][1]
    assert copy.like is not None
    assert copy.like.stem == copy.path.stem[:2]


def test_what_was_edited_is_where_it_was_edited(found: Duplicates) -> None:
    (copy,) = [file for group in found.groups for file in group.files if file.path.stem.endswith("replaced")]
    wanted = np.array([20 / 200, 80 / 150, 80 / 200, 130 / 150])
    assert copy.differs is not None
    np.testing.assert_allclose(copy.differs, wanted, atol=0.05)


def test_a_changed_number_on_a_page_is_an_edit_with_its_place(tmp_path: Path) -> None:
    """At the size at which pages are compared first, nobody could read it."""

    def page(numbers: list[int]) -> Picture:
        image = Image.new("RGB", (620, 877), "white")
        draw = ImageDraw.Draw(image)
        for line, number in enumerate(numbers):
            draw.text(
                (60, 60 + 26 * line),
                f"Item {line:03}, of the account: {number} pounds",
                "black",
                font_size=18,
            )
        return image

    numbers = np.random.default_rng(0).integers(100, 999, 30).tolist()
    page(numbers).save(tmp_path / "bill.png")
    page(numbers).save(tmp_path / "saved.jpg", quality=60)
    numbers[10] = 888
    page(numbers).save(tmp_path / "forged.png")
    (group,) = find_duplicates(tmp_path).groups
    files = {file.path.name: file for file in group.files}
    assert (files["saved.jpg"].kinds or files["bill.png"].kinds) == ("re-encoded",)
    edited = max(group.files, key=lambda file: "edited" in file.kinds)
    assert edited.kinds == ("edited",)
    assert edited.differs is not None
    left, top, right, bottom = edited.differs
    assert top < (60 + 26 * 10 + 10) / 877 < bottom
    assert (right - left, bottom - top) < (0.15, 0.06)


def test_pages_that_differ_in_their_words_alone_are_no_copies(tmp_path: Path) -> None:
    """Lines in the same places, from edge to edge: at 128 pixels every page is the same stripes."""
    generator = np.random.default_rng(0)
    for number in range(10):
        image = Image.new("RGB", (465, 658), "white")
        for line in range(33):
            words = [
                "".join(generator.choice(list("abdeghiklmnoprstuw"), size))
                for size in generator.integers(2, 9, 16)
            ]
            ImageDraw.Draw(image).text((-5, 2 + 20 * line), " ".join(words), "black", font_size=15)
        image.save(tmp_path / f"{number}.png")
    image.save(tmp_path / "copy.jpg", quality=60)
    (group,) = find_duplicates(tmp_path).groups
    assert {file.path.name for file in group.files} == {"9.png", "copy.jpg"}


def test_strokes_that_fit_into_each_other_are_no_copies(tmp_path: Path) -> None:
    """Digits of 28 pixels: each is a part of another, turned and enlarged, and says nothing."""
    for number, slope in enumerate((0, 1, 2, 4, 6, 8)):
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).line(((14 - slope, 4), (14 + slope, 23 - number % 3)), 255, 3)
        image.save(tmp_path / f"{number}.png")
    assert find_duplicates(tmp_path).groups == []


def test_files_of_the_same_bytes_are_identical_with_their_size(found: Duplicates, copied: Path) -> None:
    first, second = found.groups[-1].files
    assert (first.kinds, second.kinds) == ((), ("identical",))
    assert second.like == first.path
    assert (second.width, second.height, second.bytes) == (200, 150, second.path.stat().st_size)
    assert second.time == pytest.approx(second.path.stat().st_mtime, abs=1e-3)


def test_shots_of_like_things_are_no_copies(tmp_path: Path) -> None:
    """Parts in one place: their outlines and their shading are the same, and their surfaces are their own."""
    y, x = np.mgrid[:160, :160] / 160
    folder, cache = tmp_path / "parts", tmp_path / "cache"
    folder.mkdir()
    part = 90 + 90 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.15) - 40 * (abs(x - 0.5) < 0.1) + 30 * x
    for number in range(8):
        surface = np.asarray(texture(100 + number, 160, 160).convert("L"), np.float64) - 127
        picture_of(part + 0.35 * surface).save(folder / f"{number:02}.png")
    found = find_duplicates(folder, cache=cache)
    assert found.groups == []
    assert found.different < found.threshold
    # And a copy among them is found all the same.
    part_7 = Image.open(folder / "07.png")
    jpeg(part_7.crop((8, 8, 152, 152)), 60).save(folder / "copy.png")
    (group,) = find_duplicates(folder, cache=cache).groups
    assert {file.path.name for file in group.files} == {"07.png", "copy.png"}


def test_one_drawing_in_other_colours_is_another_image(tmp_path: Path) -> None:
    for colour in ("red", "blue", "green", "orange", "purple"):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).regular_polygon((48, 48, 36), 5, fill=colour)
        image.save(tmp_path / f"{colour}.png")
    assert find_duplicates(tmp_path).groups == []


def test_drawings_that_differ_in_a_detail_are_listed_and_not_called_copies(tmp_path: Path) -> None:
    """Clocks: nine tenths of two of them are equal. The name keeps a turned one from being another hour."""
    for hour in range(12):
        image = Image.new("RGB", (128, 128), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((8, 8, 120, 120), "#e0f0ff", "#205080", 6)
        for mark in range(12):
            y, x = 64 + 44 * np.sin(mark * np.pi / 6), 64 + 44 * np.cos(mark * np.pi / 6)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), "black")
        end = (64 + 28 * np.sin(hour * np.pi / 6), 64 - 28 * np.cos(hour * np.pi / 6))
        draw.line(((64, 64), end), "black", 5)
        draw.text((64, 44), "Noon", "black", font_size=14, anchor="mm")
        image.save(tmp_path / f"{hour:02}.png")
    found = find_duplicates(tmp_path)
    assert found.redundant <= 1
    pairs = [pair.agreement for pair in found.possible]
    assert len(pairs) > 5
    assert pairs == sorted(pairs, reverse=True)


def test_a_search_that_was_killed_goes_on_and_gives_the_same(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = find_duplicates(few)
    monkeypatch.setattr(features, "_BLOCK", 4)
    monkeypatch.setattr(verification, "_BLOCK", 1)
    cache, calls = tmp_path / "cache", itertools.count()

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "comparing" and next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_duplicates(few, cache=cache, progress=kill)
    assert len(list(cache.glob("*.npz"))) == 2 + 1
    seen: list[tuple[str, int, int]] = []
    assert find_duplicates(few, cache=cache, progress=lambda *report: seen.append(report)) == wanted
    assert [report for report in seen if report[0] == "reading"] == []
    assert min(done for stage, done, _ in seen if stage == "comparing") > 1


def test_only_new_files_are_read(few: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    find_duplicates(few, cache=cache)
    ImageOps.flip(texture(1, 75, 100)).save(few / "new.png")
    (few / "same.png").unlink()
    seen: list[tuple[str, int, int]] = []
    changed = find_duplicates(few, cache=cache, progress=lambda *report: seen.append(report))
    assert [report for report in seen if report[0] == "reading"] == [("reading", 7, 7)]
    names = [{file.path.name for file in group.files} for group in changed.groups]
    assert {frozenset(group) for group in names} == {
        frozenset(("1.png", "new.png")),
        frozenset(("3.png", "mirror.jpg")),
    }


def test_files_that_cannot_be_used_are_skipped_with_the_reason(tmp_path: Path) -> None:
    texture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    (tmp_path / "note.txt").touch()
    found = find_duplicates(tmp_path)
    assert [path.name for path, _ in found.skipped] == ["b.png", "c.png", "note.txt"]
    assert found.skipped[0][1].startswith("not an image of a known format")
    assert (found.images, found.groups) == (1, [])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageFolderError, match="No image could be used, of 2 given"):
        find_duplicates(tmp_path)


def test_the_files_of_an_index_are_compared(few: Path, tmp_path: Path) -> None:
    build_index(few, tmp_path / "i")
    of_folder = find_duplicates(few, cache=tmp_path / "cache")
    assert find_duplicates(tmp_path / "i", cache=tmp_path / "cache") == of_folder


def test_a_folder_of_something_else_is_no_cache(few: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no earlier search for duplicates"):
        find_duplicates(few, cache=tmp_path)


def test_a_damaged_or_forged_cache_is_made_again(few: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = find_duplicates(few, cache=cache)
    [kept] = cache.glob("sketches-*.npz")
    sound = kept.read_bytes()
    with np.load(io.BytesIO(sound)) as file:
        arrays = dict(file)
    forged = [
        {**arrays, "sizes": arrays["sizes"][:1]},
        {**arrays, "features": arrays["features"].astype(np.float64)},
        {**arrays, "boxes": arrays["boxes"] * np.nan},
        {**arrays, "texts": np.frombuffer(b"[1]", np.uint8)},
        {**arrays, "more": arrays["sizes"]},
        {name: array for name, array in arrays.items() if name != "times"},
    ]
    contents = [sound[:100], sound[:-300], sound[: len(sound) // 2], b"", b"PK\3\4"]
    for one in forged:
        made = io.BytesIO()
        np.savez(made, **one)
        contents.append(made.getvalue())
    made = io.BytesIO()
    np.savez_compressed(made, **{**arrays, "thumbnails": np.zeros((10**8,), np.uint8)})
    contents.append(made.getvalue())
    for number, content in enumerate(contents):
        (cache / f"sketches-{number:05}.npz").write_bytes(content)
        assert list(features.kept_blocks(cache)) == []
    [compared] = cache.glob("thorough-*.npz")
    os.truncate(compared, compared.stat().st_size // 2)
    assert find_duplicates(few, cache=cache) == whole
    # What was made again is found next time.
    assert [len(block) for block in features.kept_blocks(cache)] == [whole.images]


def test_little_detail_is_no_agreement_of_different_images(tmp_path: Path) -> None:
    """A corner of one drawing fits perfectly, and it is one curve: listed, and not as below a threshold."""
    icon = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(icon).ellipse((2, 2, 61, 61), fill="gold", outline="orange", width=5)
    icon.save(tmp_path / "icon.png")
    icon.crop((8, 8, 56, 56)).save(tmp_path / "crop.png")
    texture(0).save(tmp_path / "other.png")
    found = find_duplicates(tmp_path)
    assert found.groups == []
    assert [(pair.agreement > found.threshold) for pair in found.possible] == [True]
    assert (found.overlaps, found.different < found.threshold) == (False, True)


def test_an_interrupted_search_leaves_nothing_that_looks_like_a_result(few: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def kill(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_duplicates(few, cache=cache, progress=kill)
    assert not (cache / "duplicates.json").exists()
    assert len(find_duplicates(few, cache=cache).groups) == 2
    # One of an earlier version.
    (cache / "search.json").rename(cache / "duplicates.json")
    assert len(find_duplicates(few, cache=cache).groups) == 2
