"""A file of a stranger is read if it is a plain file of bounded length; copies are as private as sources."""

from __future__ import annotations

import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from autoencode.atomic import append_line, atomic_folder, make_folder, write_bytes
from autoencode.errors import OutputError
from autoencode.untrusted import (
    UnsafeFileError,
    allowed_beside,
    allowed_by,
    check_file,
    lines_of,
    open_file,
    read_file,
    read_head,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def folder(path: Path, permissions: int) -> Path:
    path.mkdir()
    path.chmod(permissions)
    return path


def test_a_stream_that_calls_itself_a_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "stream")
    monkeypatch.setattr(
        "autoencode.untrusted._check", lambda *_: None
    )  # as of /proc/kmsg, which root can read
    writer = os.open(tmp_path / "stream", os.O_RDWR)
    try:
        with pytest.raises(UnsafeFileError, match="is a stream without data"):
            read_file(tmp_path / "stream")
        with open_file(tmp_path / "stream") as file, pytest.raises(UnsafeFileError, match="without data"):
            next(lines_of(file))
        with open_file(tmp_path / "stream") as file, pytest.raises(UnsafeFileError, match="without data"):
            file.read()
        assert read_head(tmp_path / "stream", 9) == b""
        os.write(writer, b"some data")
        with open_file(tmp_path / "stream") as file:
            assert file.read(9) == b"some data"
    finally:
        os.close(writer)


@pytest.mark.parametrize("opened", [open_file, read_file, check_file])
def test_pipes_devices_and_folders_are_not_opened(opened: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, kind in {"pipe": "a pipe", "zero": "a device", "folder": "a folder"}.items():
        with pytest.raises(UnsafeFileError, match=f"^is {kind}, not a file$"):
            opened(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "missing")
    with pytest.raises(UnsafeFileError, match=r"^has a zero byte in its name$"):
        opened(tmp_path / "a\0b")


def test_a_pipe_that_takes_the_place_of_a_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"file")
    os.mkfifo(tmp_path / "pipe")
    before = (tmp_path / "file").stat()
    monkeypatch.setattr("autoencode.untrusted.os.stat", lambda path: before)
    with pytest.raises(UnsafeFileError, match="is a pipe"):
        read_file(tmp_path / "pipe")


def test_a_longer_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**40)
    tracemalloc.start()
    with pytest.raises(UnsafeFileError, match=r"^has 1,099,511,627,776 bytes, more than the limit of 10$"):
        read_file(path, 10)
    assert read_head(path, 5) == bytes(5)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    path.write_bytes(b"0123456789")
    assert read_file(path, 10) == b"0123456789"


def test_lines_are_those_of_the_file_and_an_endless_one_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\nthree\r\nlast")
    with open_file(path) as file:
        assert list(lines_of(file)) == [b"one\n", b"\n", b"three\r\n", b"last"]
    path.write_bytes(b"short\n" + b"x" * 100)
    with open_file(path) as file, pytest.raises(UnsafeFileError, match="line of more than 50 bytes"):
        list(lines_of(file, 50))


def test_a_link_may_not_lead_out_of_a_folder_where_that_matters(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (made / "own").write_bytes(b"own")
    (made / "within").symlink_to("own")
    (made / "out").symlink_to("../secret")
    (tmp_path / "link to made").symlink_to(made)
    assert read_file(made / "within", inside=made) == b"own"
    assert read_file(tmp_path / "link to made" / "own", inside=tmp_path / "link to made") == b"own"
    with pytest.raises(UnsafeFileError, match="leads out of its folder"):
        read_file(made / "out", inside=made)
    assert read_file(made / "out") == b"secret"  # as in a cache that keeps each file once


def test_nothing_is_appended_through_a_link_or_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("mine\n")
    (tmp_path / "log").symlink_to("profile")
    os.mkfifo(tmp_path / "pipe")
    for name in ("log", "pipe"):
        with pytest.raises(OutputError, match=name):
            append_line(tmp_path / name, "theirs")
    assert (tmp_path / "profile").read_text() == "mine\n"


def test_a_temporary_name_cannot_be_guessed_and_a_link_there_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile").write_text("mine")
    names = set()
    original = os.open

    def noted(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith(".partial"):
            names.add(Path(path).name)
        return original(path, flags, *rest)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(2):
        write_bytes(tmp_path / "out.csv", b"table")
    assert len(names) == 2
    assert not any(str(os.getpid()) in name for name in names)
    # A name that was guessed all the same.
    monkeypatch.setattr("autoencode.atomic.secrets.token_hex", lambda _: "guessed")
    for name in ("out.csv.guessed.partial", "folder.guessed.partial"):
        (tmp_path / name).symlink_to("profile")
    with pytest.raises(OutputError, match="File exists"):
        write_bytes(tmp_path / "out.csv", b"changed")
    with pytest.raises(OutputError, match="File exists"), atomic_folder(tmp_path / "folder"):
        pytest.fail("followed")
    assert (tmp_path / "profile").read_text() == "mine"
    assert (tmp_path / "out.csv").read_bytes() == b"table"


@pytest.mark.parametrize(
    ("of_folder", "of_file", "of_below"),
    [(0o700, 0o600, 0o700), (0o750, 0o640, 0o750), (0o711, 0o644, 0o755), (0o755, 0o644, 0o755)],
)
def test_a_new_file_is_for_those_who_may_enter_its_folder(
    of_folder: int, of_file: int, of_below: int, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    made = folder(tmp_path / "made", of_folder)
    write_bytes(made / "file", b"")
    append_line(made / "log", "")
    assert (mode(made / "file"), mode(made / "log")) == (of_file, of_file)
    make_folder(made / "a" / "b")
    assert mode(made / "a") == mode(made / "a" / "b") == of_below
    assert allowed_by(made) & 0o666 & ~0o022 == of_file


def test_a_copy_beside_a_private_folder_is_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for of_source, of_copy in ((0o700, 0o700), (0o750, 0o750), (0o711, 0o700), (0o755, 0o755)):
        source = folder(tmp_path / f"source-{of_source:o}", of_source)
        make_folder(tmp_path / f"copy-{of_source:o}", source)
        assert mode(tmp_path / f"copy-{of_source:o}") == of_copy
    make_folder(tmp_path / "cache", is_private=True)
    assert mode(tmp_path / "cache") == 0o700


def test_a_private_folder_above_the_source_counts_and_one_above_both_does_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    home = folder(tmp_path / "home", 0o700)
    photos = folder(home / "photos", 0o755)
    assert allowed_beside(photos, tmp_path / "copy") == 0o700
    assert allowed_beside(photos, home / "copy") == 0o777
    assert allowed_beside(tmp_path / "missing", tmp_path / "copy") == 0o777
