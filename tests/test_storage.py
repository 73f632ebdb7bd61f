"""Folders in storage by their URL: files are replaced whole, and errors are one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import pytest

from autoencode import StorageError, open_pack
from autoencode.storage import RemoteFolder


def test_a_file_in_a_folder_by_its_url_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new" * 1000)
    store = RemoteFolder(f"file://{tmp_path}/store")
    store.upload(tmp_path / "new", "a/file")
    (tmp_path / "new").write_bytes(b"newer" * 1000)

    def cut_short(content: BinaryIO, file: BinaryIO) -> None:
        file.write(content.read(7))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", cut_short)
    with pytest.raises(KeyboardInterrupt):
        store.upload(tmp_path / "new", "a/file")
    assert store.read("a/file") == b"new" * 1000


def test_a_storage_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(
        StorageError, match="Could not reach nosuch://bucket/pack: Protocol not known: nosuch"
    ):
        open_pack("nosuch://bucket/pack")
