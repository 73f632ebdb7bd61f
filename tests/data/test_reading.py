from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np

from autoencode.data.reading import KnownDigests


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_exactly_the_digests_given_are_known(tmp_path: Path) -> None:
    ends = [bytes(31) + b"\1", b"\xff" * 32, b"\1" + bytes(31), digest(5)[:30] + bytes(2)]
    inside = [digest(number) for number in range(0, 2000, 2)] + ends
    known = KnownDigests.written(tmp_path / "known", np.array(inside * 2, "S32"))
    assert all(value in known for value in inside)
    outside = [digest(number) for number in range(1, 2000, 2)] + [
        bytes(32),
        b"\1" * 32,
        digest(5)[:31] + b"\0",
    ]
    assert not any(value in known for value in outside)


def test_nothing_is_known_of_an_empty_set_and_no_file_made(tmp_path: Path) -> None:
    assert digest(0) not in KnownDigests.written(tmp_path / "known", np.array([], "S32"))
    assert not list(tmp_path.iterdir())


def test_what_is_sent_to_a_worker_does_not_grow(tmp_path: Path) -> None:
    digests = np.array([digest(number) for number in range(5000)], "S32")
    known = KnownDigests.written(tmp_path / "known", digests)
    assert len(pickle.dumps(known)) < 1000
    assert digest(77) in pickle.loads(pickle.dumps(known))
