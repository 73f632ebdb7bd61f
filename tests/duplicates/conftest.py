"""A small folder with copies, and one process for the files of a test."""

import shutil
from pathlib import Path

import pytest
from PIL import ImageOps
from tests.duplicates.pictures import texture

from autoencode.data import workers


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start one process for the files of a test, as starting one takes longer than decoding them."""
    monkeypatch.setattr(workers, "available_cores", lambda: 1)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Five images, and two copies."""
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(5):
        texture(number, 75, 100).save(folder / f"{number}.png")
    ImageOps.mirror(texture(3, 75, 100)).save(folder / "mirror.jpg")
    shutil.copy(folder / "4.png", folder / "same.png")
    return folder
