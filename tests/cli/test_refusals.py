"""What is said of files that could not be used, and when that is an error."""

from pathlib import Path

import pytest

from autoencode.cli.progress import fail_if_named, show_skipped
from autoencode.errors import ImageError


def test_the_first_few_are_listed_and_the_rest_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show_skipped([(Path(f"{number}.png"), "no image") for number in range(1007)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"skipped {number}.png: no image" for number in range(5)), "skipped 1,002 more"]


def test_a_file_given_by_name_is_an_error_and_one_in_a_folder_is_not() -> None:
    skipped = [(Path("in/a.png"), "no image"), (Path("b.png"), "empty"), (Path("c.png"), "cut")]
    fail_if_named(skipped, [Path("in")])
    with pytest.raises(
        ImageError, match=r"^2 files asked for by name could not be used. b.png: empty; c.png: cut.$"
    ):
        fail_if_named(skipped, [Path("in"), Path("b.png"), Path("c.png")])
