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


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://bucket/pack",
        "reference://pack",
        "zip://pack",
        "github://owner:repository@main/pack",
        "file:///tmp/pack::zip://x",
        "simplecache://pack",
    ],
)
def test_a_kind_of_storage_that_interprets_files_or_is_unknown_is_not_opened(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.url_to_fs", lambda url: pytest.fail("was opened"))
    with pytest.raises(StorageError, match=r"is no storage of a known kind\. Give a URL such as s3://"):
        open_pack(url)
