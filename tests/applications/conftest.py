"""Images that the tests of applications change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def change_some(folder: Path) -> None:
    """Delete an image, replace one, add one, move one and copy one."""
    paths = sorted(folder.rglob("*.png"))
    paths[0].unlink()
    Image.new("RGB", (40, 40), "red").save(paths[1])
    Image.new("RGB", (40, 40), "blue").save(folder / "new.png")
    paths[2].rename(folder / "moved.png")
    shutil.copy(paths[3], folder / "copy.png")
