"""What a worker takes to be packed already; `test_pack` has the packs themselves."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np

from autoencode import Limits, Preprocessing
from autoencode.data.packing import Decoder
from autoencode.data.shards import Shards


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def decoder_knowing(digests: list[bytes], folder: Path) -> Decoder:
    decoder = Decoder(folder, Preprocessing(32, 32), Limits(), Shards(folder, 32, 32, 10))
    return decoder.knowing(np.array(digests, "S32"))


def test_exactly_the_digests_given_are_known(tmp_path: Path) -> None:
    ends = [bytes(31) + b"\1", b"\xff" * 32, b"\1" + bytes(31), digest(5)[:30] + bytes(2)]
    inside = [digest(number) for number in range(0, 2000, 2)] + ends
    decoder = decoder_knowing(inside * 2, tmp_path)
    assert all(decoder.is_packed(value) for value in inside)
    outside = [digest(number) for number in range(1, 2000, 2)] + [
        bytes(32),
        b"\1" * 32,
        digest(5)[:31] + b"\0",
    ]
    assert not any(decoder.is_packed(value) for value in outside)


def test_nothing_is_known_of_an_empty_set_and_no_file_made(tmp_path: Path) -> None:
    assert not decoder_knowing([], tmp_path).is_packed(digest(0))
    assert not list(tmp_path.iterdir())


def test_what_is_sent_to_a_worker_does_not_grow(tmp_path: Path) -> None:
    decoder = decoder_knowing([digest(number) for number in range(5000)], tmp_path)
    assert len(pickle.dumps(decoder)) < 1000
    assert pickle.loads(pickle.dumps(decoder)).is_packed(digest(77))
