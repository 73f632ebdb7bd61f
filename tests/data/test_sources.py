"""Which files a folder stands for, and files and folders together."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoencode.data.sources import Paths, expanded, find_images
from autoencode.errors import ImageFolderError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_images_are_found_in_sub_folders_in_order_and_hidden_ones_are_not(tmp_path: Path) -> None:
    listed = ["B.JPG", "a/2.png", "a/b/c/1.TiFF", "a/x.jpeg", "z.webp"]
    touch(
        *(tmp_path / name for name in [*listed, ".hidden.png", ".git/a.png", "note.txt", "jpg", "a.jpg.txt"])
    )
    assert names(tmp_path) == listed


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "o.png", tmp_path / "in" / "z" / "real.png")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "z" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "outside")
    assert names(tmp_path / "in") == ["out/o.png", "z/real.png"]


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
