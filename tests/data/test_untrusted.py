"""Files of strangers, decoded apart: what they can cost is bounded."""

from __future__ import annotations

import io
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from autoencode import ImageError, Limits, Preprocessing
from autoencode.data.preprocessing import read_image
from autoencode.data.untrusted import UntrustedDecoder

SIZE = Preprocessing(32, 32)


def content(width: int = 50, height: int = 40) -> bytes:
    file = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_the_pixels_are_those_of_reading_it_here() -> None:
    decoder = UntrustedDecoder(SIZE)
    try:
        for _ in range(2):
            np.testing.assert_array_equal(decoder.decode(content()), read_image(content(), SIZE))
    finally:
        decoder.close()


def test_limits_hold_and_say_why() -> None:
    decoder = UntrustedDecoder(SIZE, Limits(max_pixels=1000, max_bytes=10_000))
    try:
        with pytest.raises(ImageError, match="pixels are more than the limit"):
            decoder.decode(content())
        with pytest.raises(ImageError, match="more bytes than the limit"):
            decoder.decode(bytes(10_001))
        with pytest.raises(ImageError, match="not an image"):
            decoder.decode(b"text")
    finally:
        decoder.close()


def test_too_little_memory_costs_the_file_alone() -> None:
    file = io.BytesIO()
    # A byte a pixel in the file, four once its transparency is looked up.
    Image.new("P", (7900, 7900)).save(file, "PNG", transparency=0, compress_level=1)
    decoder = UntrustedDecoder(SIZE, memory_bytes=450 * 1024**2)
    try:
        with pytest.raises(ImageError, match=r"memory|cannot be decoded"):
            decoder.decode(file.getvalue())
        assert decoder.decode(content()).shape == (32, 32, 3)
    finally:
        decoder.close()


def test_a_process_that_ends_is_replaced() -> None:
    decoder = UntrustedDecoder(SIZE)
    try:
        decoder.decode(content())
        worker = decoder._helper._worker
        assert worker is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="killed"):
            decoder.decode(content())
        assert decoder.decode(content()).shape == (32, 32, 3)
    finally:
        decoder.close()


def test_it_does_not_outlive_its_time() -> None:
    decoder = UntrustedDecoder(SIZE, Limits(seconds_per_file=0.01))
    file = io.BytesIO()
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(file, "PNG")
    started = time.monotonic()
    try:
        with pytest.raises(ImageError, match="took longer than"):
            decoder.decode(file.getvalue())
    finally:
        decoder.close()
    assert time.monotonic() - started < 10
