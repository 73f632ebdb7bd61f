"""Names for files of one folder: each once, also where letters have no case."""

from __future__ import annotations

from autoencode.data.file_names import FileNames


def test_no_name_is_given_twice_and_numbers_follow_the_stem() -> None:
    names = FileNames(["A-2.png"])
    assert [names.free(name) for name in ("a.png", "A.PNG", "a.png", "b.gif", "a-3.png")] == [
        "a.png",
        "A-3.PNG",
        "a-4.png",
        "b.gif",
        "a-3-2.png",
    ]


def test_ten_thousand_files_of_one_name_are_named_at_once() -> None:
    names = FileNames()
    assert [names.free("a.png") for _ in range(10_000)][-1] == "a-10000.png"
