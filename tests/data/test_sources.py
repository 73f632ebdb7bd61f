"""Which files a folder stands for, and files and folders together."""

from __future__ import annotations

import errno
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import blobs

from autoencode import AutoencodeError, Pack, open_pack, pack_folder, train
from autoencode.data import listing
from autoencode.data.folders import LinksWarning, by_type
from autoencode.data.listing import Paths
from autoencode.data.sources import expanded, find_images, listed, train_and_test
from autoencode.errors import ConfigError, ImageError, ImageFolderError
from torture import seeds


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_images_are_found_in_sub_folders_in_order_and_hidden_ones_are_not(tmp_path: Path) -> None:
    found = ["B.JPG", "a/2.png", "a/b/c/1.TiFF", "a/x.jpeg", "z.webp"]
    touch(
        *(tmp_path / name for name in [*found, ".hidden.png", ".git/a.png", "note.txt", "jpg", "a.jpg.txt"])
    )
    assert names(tmp_path) == found


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "o.png", tmp_path / "in" / "z" / "real.png")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "z" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "outside")
    with pytest.warns(LinksWarning, match=r"a link leads out of .*in and is followed: out -> .*outside$"):
        assert names(tmp_path / "in") == ["out/o.png", "z/real.png"]


def test_a_link_to_a_folder_that_holds_the_one_given_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "other" / "o.png", tmp_path / "in" / "a.png")
    (tmp_path / "in" / "machine").symlink_to("/")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    found = listed(tmp_path / "in")
    assert found.names == ["a.png"]
    assert [name for name, _ in found.skipped] == ["machine", "up"]
    assert by_type(found.skipped)[0] == "2 links to a folder that holds the one given, not followed"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL])
def test_a_sub_folder_that_cannot_be_read_costs_only_itself(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "locked" / "b.png", tmp_path / "open" / "a.png")
    scandir = os.scandir

    def scan(folder: str) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "locked":
            raise OSError(code, os.strerror(code))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    found = listed(tmp_path)
    assert found.names == ["open/a.png"]
    assert found.skipped == [("locked", f"this folder cannot be read: {os.strerror(code)}")]
    with pytest.raises(ImageFolderError, match=f"Could not read the folder .*locked: {os.strerror(code)}"):
        listed(tmp_path / "locked")
    (tmp_path / "open" / "a.png").unlink()
    with pytest.raises(ImageFolderError, match=r"No images in .* locked: this folder cannot be read"):
        listed(tmp_path)


def test_hidden_images_and_folders_are_counted_and_other_hidden_files_are_not(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.png", ".b.png", "c/._d.JPG", ".DS_Store", ".thumbs/e.png")))
    found = listed(tmp_path)
    assert found.names == ["a.png"]
    assert [name for name, _ in found.skipped] == [".b.png", ".thumbs", "c/._d.JPG"]
    assert by_type(found.skipped) == ("2 files: 2 hidden; 1 hidden folder", [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (seeds.encoded(seeds.picture(), "PNG")[:90], "cannot be decoded: image file is truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "cannot be decoded: broken PNG file"),
        (seeds.png(30_000, 30_000, 8, 2, b""), "more than the limit of 200,000,000"),
        (b"text", "not an image of a known format"),
    ],
)
def test_bytes_of_a_dataset_that_are_no_image_are_rejected_in_one_line(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=reason) as err:
        pack_folder([seeds.encoded(seeds.picture(), "PNG"), content], tmp_path / "pack", size=16, workers=1)
    assert "\n" not in str(err.value)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "cats.png" / "1.png")
    assert names(tmp_path) == ["cats.png/1.png"]


def test_a_pack_inside_the_folder_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "1.png", tmp_path / "p" / "pack.json", tmp_path / "p" / "shards" / "00000.png")
    assert names(tmp_path) == ["1.png"]


@pytest.mark.parametrize("marks", [("run.json", "metrics.jsonl"), ("samples.json", "images/sample-0.png")])
def test_pictures_of_our_own_results_are_no_images_of_the_user(tmp_path: Path, marks: tuple[str]) -> None:
    touch(tmp_path / "1.png", *(tmp_path / "results" / name for name in (*marks, "grid.png")))
    assert names(tmp_path) == ["1.png"]


def test_restored_images_are_listed_where_their_folder_is_given_but_not_around_it(tmp_path: Path) -> None:
    made = tmp_path / "results" / "restore-photos"
    touch(tmp_path / "a.png", made / "a.png", made / "sub" / "b.png", made / "comparisons" / "a.png")
    touch(made / "restored.jsonl")
    assert names(tmp_path) == ["a.png"]
    assert names(made) == ["a.png", "sub/b.png"]


def test_files_and_folders_are_listed_once_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "b.png", tmp_path / "in" / "a.png", tmp_path / "c.png")
    inside = [tmp_path / "in" / "a.png", tmp_path / "in" / "b.png"]
    assert list(expanded([tmp_path / "c.png", tmp_path / "in", inside[0]])) == [tmp_path / "c.png", *inside]
    assert list(expanded(str(tmp_path / "missing.png"))) == [tmp_path / "missing.png"]


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    touch(tmp_path / "file.png", tmp_path / "empty" / "note.txt")
    for name, reason in (
        ("none", "does not exist"),
        ("file.png", "is a file"),
        ("empty", r"No images in .*Looked for \.jpg, .*sub-folders are searched too"),
    ):
        with pytest.raises(ImageFolderError, match=reason):
            find_images(tmp_path / name)


def test_paths_are_made_as_they_are_asked_for(tmp_path: Path) -> None:
    names = [tmp_path / "b.png", tmp_path / "a.png", tmp_path / "c.png"]
    paths = Paths(map(str, names))
    assert list(paths) == names
    assert paths[-1] == names[-1]
    assert list(paths[1:]) == names[1:]
    assert list(paths.take([2, 0])) == [names[2], names[0]]


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blobs(seed, 20, 20)).save(path)
    return path


def splits_and_labels(pack: Pack) -> dict[str, tuple[str | None, str | None]]:
    return {entry.path: (entry.split, entry.label) for entry in pack.entries}


def test_files_of_other_types_are_counted_by_type_and_listed_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    picture(folder / "a.png")
    for name in ("b.mp4", "c.mp4", "d.CR2", "readme", ".hidden"):
        (folder / name).write_bytes(b"x")
    pack = pack_folder(folder, tmp_path / "pack", size=16)
    assert {entry.path: entry.reason for entry in pack.skipped} == {
        "b.mp4": ".mp4 files are not read",
        "c.mp4": ".mp4 files are not read",
        "d.CR2": ".cr2 files are not read",
        "readme": "other files are not read",
    }
    line, others = by_type((entry.path, str(entry.reason)) for entry in pack.skipped)
    assert line == "4 files: 2 .mp4, 1 .cr2, 1 other"
    assert others == []
    assert [path.name for path, _ in expanded(folder).skipped] == ["b.mp4", "c.mp4", "d.CR2", "readme"]
    before = (tmp_path / "pack" / "manifest.jsonl").stat().st_ino
    assert len(pack_folder(folder, tmp_path / "pack", size=16)) == 1  # none of them was tried again
    assert (tmp_path / "pack" / "manifest.jsonl").stat().st_ino == before


def test_heic_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "EXTENSIONS", (".png",))
    picture(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"x")
    line, _ = by_type(expanded(tmp_path).skipped)
    assert line == "1 file: 1 .heic (install autoencode[heif])"


@pytest.mark.parametrize("name", ["a.jp2", "a.tga", "a.dib", "a.ppm", "a.heic"])
def test_rarer_formats_are_read(name: str, tmp_path: Path) -> None:
    if name == "a.heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(blobs(3, 32, 32)).save(tmp_path / name)
    pack = pack_folder(tmp_path, tmp_path / "pack", size=32)
    assert np.abs(pack.pixels(pack.rows())[0].astype(int) - blobs(3, 32, 32)).mean() < 4


def test_folders_called_train_and_test_are_splits_and_masks_are_no_images(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "part"
    for number in range(20):
        picture(folder / "train" / "good" / f"{number}.png", number)
    picture(folder / "test" / "good" / "a.png", 100)
    picture(folder / "test" / "crack" / "b.png", 101)
    picture(folder / "ground_truth" / "crack" / "b_mask.png", 102)
    pack = pack_folder(folder, tmp_path / "pack", size=16)
    found = splits_and_labels(pack)
    assert found["test/good/a.png"] == ("test", "good")
    # A crack is not like what is trained on: it calibrates nothing.
    assert found["test/crack/b.png"] == (None, "crack")
    assert {split for path, (split, _) in found.items() if path.startswith("train/")} == {
        "train",
        "validation",
    }
    assert [(entry.path, entry.reason) for entry in pack.skipped] == [
        ("ground_truth/crack/b_mask.png", "a mask, not an image")
    ]
    assert pack.labels == ["crack", "good"]
    assert "test, train are the splits" in pack.note
    assert splits_and_labels(open_pack(tmp_path / "pack")) == found


def test_masks_in_ground_truth_are_no_images_beside_any_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("good", "crack", "ground_truth")):
        picture(tmp_path / "parts" / name / "a.png", number)
    for found in (listed(tmp_path / "parts").paths, expanded([tmp_path / "parts"])):
        assert [path.parent.name for path in found] == ["crack", "good"]
        assert found.skipped == [(tmp_path / "parts" / "ground_truth" / "a.png", "a mask, not an image")]
    # Asked for by its name, a folder of masks is one of images.
    assert len(expanded(tmp_path / "parts" / "ground_truth")) == 1


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test", "ground_truth"), ("train", "test")),
        (("Train", "valid", "testing"), ("Train", "testing")),
        (("train", "val"), ("train", "val")),
        (("train", "ground_truth"), None),
        (("test", "ground_truth"), None),
        (("train", "test", "ship"), None),
        ((), None),
    ],
)
def test_a_data_set_has_a_folder_to_learn_from_and_one_to_judge(
    folders: tuple[str, ...], expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert train_and_test(tmp_path) == (expected and (tmp_path / expected[0], [tmp_path / expected[1]]))
    assert train_and_test(tmp_path / "none") is None


def test_a_table_with_splits_has_images_to_learn_from_and_to_judge(tmp_path: Path) -> None:
    table = tmp_path / "parts.csv"
    table.write_text("path,split\na.png,train\nb.png,test\nc.png,train\nd.png,\n")
    assert train_and_test(table) == ([tmp_path / "a.png", tmp_path / "c.png"], [tmp_path / "b.png"])
    table.write_text("path,split\na.png,train\nb.png,\n")
    assert train_and_test(table) is None
    table.write_text("path\na.png\n")
    assert train_and_test(table) is None


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "plane", "ship")):
        picture(tmp_path / "images" / name / "a.png", number)
    pack = pack_folder(tmp_path / "images", tmp_path / "pack", size=16)
    assert pack.labels == ["plane", "ship", "train"]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet", "pandas"])
def test_a_table_gives_paths_labels_and_splits(kind: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [
        {"path": str(picture(tmp_path / "x" / "=1.png", 1)), "label": "cat", "split": "train"},
        {"path": "y/2.png", "label": "dog", "split": "valid"},
        {"path": "y/3.png", "label": None, "split": "test"},
    ]
    for number in (2, 3):
        picture(tmp_path / "y" / f"{number}.png", number)
    frame, table = pandas.DataFrame(rows), tmp_path / f"table{kind}"
    given: Any = table
    if kind == "pandas":
        given = frame.assign(path=[str(tmp_path / row["path"]) for row in rows])
    elif kind == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(table)
    else:
        frame.to_csv(table, index=False, sep="\t" if kind == ".tsv" else ",")
    pack = pack_folder(given, tmp_path / "pack", size=16)
    assert splits_and_labels(pack) == {
        "x/=1.png": ("train", "cat"),
        "y/2.png": ("validation", "dog"),
        "y/3.png": ("test", None),
    }
    assert pack.labels == ["cat", "dog"]
    assert pack_folder(given, tmp_path / "pack", size=16).fingerprint == pack.fingerprint


def test_lists_files_of_paths_several_folders_and_patterns_are_taken(tmp_path: Path) -> None:
    a, b, c = (picture(tmp_path / name, n) for n, name in enumerate(("one/a.png", "one/b.png", "two/c.png")))
    (tmp_path / "paths.txt").write_text(f"# mine\none/a.png\n{c}\n")
    for given, names in (
        ([a, str(c)], ["one/a.png", "two/c.png"]),
        (tmp_path / "paths.txt", ["one/a.png", "two/c.png"]),
        ([tmp_path / "one", tmp_path / "two"], ["one/a.png", "one/b.png", "two/c.png"]),
        ([tmp_path / "one", c], ["one/a.png", "one/b.png", "two/c.png"]),
    ):
        assert listed(given).names == names
    assert listed(b).names == ["b.png"]
    assert listed(tmp_path, include=["one/*"], exclude=["*a.png"]).names == ["one/b.png"]
    assert listed([tmp_path / "one", tmp_path / "two"]).labels == ["one", "one", "two"]


def test_a_list_that_names_itself_is_one_of_its_files(tmp_path: Path) -> None:
    image, listing = picture(tmp_path / "a.png", 1), tmp_path / "paths.txt"
    table = tmp_path / "table.csv"
    table.write_text("path\na.png\n")
    listing.write_text("a.png\npaths.txt\ntable.csv\n")
    assert list(expanded(listing)) == list(expanded([listing])) == [image, listing, table]
    assert list(expanded([table])) == [image]


def test_a_small_table_of_many_equal_rows_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("autoencode.data.tables.TEXT_BYTES", 10**8)
    table = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"path": ["a" * 1000 + ".png"] * 50_000}), table)
    (tmp_path / "table.csv").write_text("path\n" + "a.png\n" * 50_000)
    assert table.stat().st_size < 10_000
    for given in (table, tmp_path / "table.csv"):
        tracemalloc.start()
        try:
            assert len(listed(given).names) == 1
            assert tracemalloc.get_traced_memory()[1] < 8e6
        finally:
            tracemalloc.stop()
    monkeypatch.setattr("autoencode.data.tables.TEXT_BYTES", 10**7)
    with pytest.raises(ImageFolderError, match="it holds more than 10,000,000 bytes of text"):
        listed(table)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("paths.txt", "a.png\n\0b.png\n"),
        ("table.csv", "path\na.png\n\0b.png\n"),
        ("table.csv", "path,mask\na.png,\nb.png,\0.png\n"),
    ],
)
def test_a_zero_byte_in_a_name_is_named_with_its_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    for read in (listed, expanded):
        with pytest.raises(ConfigError, match=r"(?:Row|Line) 2 of .* has a zero byte"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "An int is no source of images. Give a folder"),
        ({"path": "a.png"}, "A dict is no source of images. Give one of its values: ['path']"),
        (torch.utils.data.DataLoader([1, 2]), "A DataLoader gives batches. Give what it loads: its .dataset"),
        (["none.png", "there.png"], "none.png: cannot be read: No such file"),
        ([], "No image was given"),
    ],
)
def test_what_is_no_source_gets_one_line_on_what_is(
    given: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (lambda: pack_folder(given, tmp_path / "pack"), lambda: train(given, tmp_path / "run")):
        with pytest.raises(AutoencodeError, match=re.escape(message)) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_wrong_table_is_named_with_its_row_and_columns(tmp_path: Path) -> None:
    for content, message in (
        (
            "file,label\na.png,x\n",
            "Row 1 of .* has no path. Name the columns path .*: file, label",
        ),
        ("path,split\na.png,middle\n", "has the split 'middle'. Write train, training, val"),
        ("path\n", "names no image"),
    ):
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(AutoencodeError, match=message):
            listed(tmp_path / "t.csv")
    with pytest.raises(AutoencodeError, match=r"is left by include=\['\*\.gif'\]"):
        listed(picture(tmp_path / "f" / "a.png").parent, include=["*.gif"])


def test_a_pack_is_a_dataset_for_torch(tiny_pack: Pack) -> None:
    pixels, label, path = tiny_pack[-1]
    assert np.array_equal(pixels, tiny_pack.pixels(np.array([tiny_pack.entries[-1].row]))[0])
    assert (label, path) == (tiny_pack.entries[-1].label, tiny_pack.entries[-1].path)
    batches = list(torch.utils.data.DataLoader(tiny_pack, batch_size=16))
    assert [len(batch[1]) for batch in batches] == [16, 16, 16]
    assert batches[0][0].shape == (16, 32, 32, 3)
    assert len(list(tiny_pack)) == 48
    assert repr(tiny_pack).startswith("Pack(48 images of 32x32, from /")


def test_a_pack_is_not_made_by_its_class(tiny_pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"A pack is opened by open_pack\('"):
        Pack(str(tiny_pack.path))  # type: ignore[arg-type]
