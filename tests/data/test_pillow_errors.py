"""What is said of files that Pillow cannot decode."""

from __future__ import annotations

import pytest

from autoencode.data.pillow_errors import plain_reason


@pytest.mark.parametrize(
    "err",
    [
        AssertionError(),
        TypeError("function takes at most 3 arguments (4 given)"),
        OSError("could not create decoder object"),
        OSError("decoder error -2 when reading image file"),
        KeyError(258),
    ],
)
def test_errors_of_the_inside_of_a_decoder_become_what_is_wrong_with_the_file(err: Exception) -> None:
    assert plain_reason(err) == "damaged, or not what its name says"


def test_what_is_said_of_the_file_stays() -> None:
    assert plain_reason(OSError("image file is truncated (3 bytes not processed).")) == (
        "image file is truncated (3 bytes not processed)"
    )
