"""A file is whole or as it was before, whatever goes wrong; a folder has one writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from autoencode import atomic
from autoencode.atomic import (
    TABLES,
    atomic_file,
    check_output,
    exclusive,
    free_path,
    make_folder,
    parse_json,
    remove_temporaries,
    write_bytes,
    write_csv,
    write_json,
)
from autoencode.csv_files import csv_bytes
from autoencode.errors import ConfigError, OutputError, RunError


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with atomic_file(path) as file:
        file.write(b"con")
        assert not path.exists()
        file.write(b"tent")
    assert path.read_bytes() == b"content"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "\u00e9" * 125 + ".csv"])
def test_a_name_may_be_as_long_as_the_system_allows(name: str, tmp_path: Path) -> None:
    write_bytes(tmp_path / name, b"whole")
    with atomic.atomic_folder(tmp_path / name.replace("csv", "dir")) as folder:
        (folder / "a").touch()
    assert (tmp_path / name).read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(atomic.os if fails == "fsync" else Path, fails, no_space)
    with pytest.raises(
        OutputError, match=r"Could not write .*file: No space left on device.*unchanged"
    ) as err:
        write_bytes(path, b"new")
    assert str(path) in str(err.value)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_device_that_is_full_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.open
    monkeypatch.setattr(os, "open", lambda *_: original("/dev/full", os.O_WRONLY))
    with pytest.raises(OutputError, match="No space left on device"):
        write_bytes(tmp_path / "file", bytes(100_000))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_any_other_error_inside_comes_through_and_leaves_the_old_file(
    error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(type(error)), atomic_file(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    actions: list[Callable[[], object]] = [
        lambda: write_bytes(tmp_path / "file" / "below", b""),
        lambda: make_folder(tmp_path / "file" / "below"),
        lambda: make_folder(tmp_path / "file"),
    ]
    for action in actions:
        with pytest.raises(OutputError, match=r"Could not write .*file"):
            action()


KILLED = """
import os, signal, sys
from pathlib import Path
from autoencode.atomic import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_what_it_left_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["file"]


def test_json_is_readable_by_any_reader(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"a": [1, 2.5, None, "ä"]})
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": [1, 2.5, None, "ä"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"a": float("nan")})
    assert json.loads((tmp_path / "value.json").read_text())["a"][0] == 1


def test_a_folder_has_one_writer_and_the_next_one_may_follow(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with (
        exclusive(folder, "busy", RunError),
        pytest.raises(RunError, match="busy"),
        exclusive(folder, "busy", RunError),
    ):
        pytest.fail("two writers")
    with exclusive(folder, "busy", RunError):
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path, "busy", RunError):
        raise ZeroDivisionError
    with exclusive(tmp_path, "busy", RunError):
        pass


HOLDS = """
import sys, time
from pathlib import Path
from autoencode.atomic import exclusive
with exclusive(Path(sys.argv[1]), "busy", RuntimeError):
    print("holding", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        with pytest.raises(RunError, match="busy"), exclusive(tmp_path, "busy", RunError):
            pytest.fail("two writers")
        process.kill()
    with exclusive(tmp_path, "busy", RunError):
        pass


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic.atomic_folder(tmp_path / "a") as folder:
        (folder / "part").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic.atomic_folder(tmp_path / "a") as folder:
        (folder / "whole").write_text("x")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "whole"]
    with pytest.raises(OutputError), atomic.atomic_folder(tmp_path / "a") as folder:
        (folder / "other").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "whole"]


def test_a_lock_shows_from_outside_and_looking_takes_nothing(tmp_path: Path) -> None:
    assert not atomic.is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with atomic.exclusive(tmp_path, "busy", RunError):
        assert atomic.is_locked(tmp_path)
    assert not atomic.is_locked(tmp_path)


def test_an_empty_folder_that_another_process_holds_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with contextlib.ExitStack() as other:
        with pytest.raises(RuntimeError, match="rejected"), atomic.removed_if_empty(folder):
            other.enter_context(atomic.exclusive(folder, "busy", OutputError))
            raise RuntimeError("rejected")
        assert atomic.is_locked(folder)
        (folder / "begun").touch()
        atomic.claim_folder(folder, "mark", "results")  # not rejected: the lock will be
    with pytest.raises(OutputError, match="holds no earlier results"):
        atomic.claim_folder(folder, "mark", "results")
    with pytest.raises(RuntimeError, match="rejected"), atomic.removed_if_empty(tmp_path / "own"):
        (tmp_path / "own").mkdir()
        raise RuntimeError("rejected")
    assert not (tmp_path / "own").exists()
    with atomic.exclusive(tmp_path, "busy", RunError):
        pass


def test_a_lock_that_is_held_for_a_moment_does_not_stop_a_writer(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    released = threading.Timer(0.05, lock.release)
    released.start()
    with exclusive(tmp_path, "busy", RunError):
        released.join()


def test_waiting_threads_are_let_through_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with atomic.one_at_a_time(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(8)))
    assert (inside, most) == (0, 1)


def test_a_lock_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match=r"Could not write .*\.lock"), exclusive(tmp_path, "", RunError):
        pytest.fail("no lock")


def test_a_lock_and_temporary_files_alone_are_nothing(tmp_path: Path) -> None:
    assert atomic.names_in(tmp_path / "missing") == set()
    with exclusive(tmp_path, "busy", RunError):
        (tmp_path / f"a{atomic.TEMPORARY_SUFFIX}").touch()
        (tmp_path / ".tmp12ibAA").touch()  # safetensors, killed
        assert atomic.names_in(tmp_path) == set()
    (tmp_path / "b").touch()
    (tmp_path / ".tmp").touch()
    assert atomic.names_in(tmp_path) == {"b", ".tmp"}
    atomic.remove_temporaries(tmp_path)
    atomic.remove_temporaries(tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "b", ".tmp"}


def test_lines_are_appended_and_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    for line in ("one", "two"):
        atomic.append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(OutputError, match="Could not write"):
        atomic.append_line(tmp_path / "none" / "log", "three")


def test_json_that_no_writer_of_ours_makes_is_a_plain_value_error() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "NaN", '{"a": -Infinity}', "[-1e999]", "", b"\xff"):
        with pytest.raises(ValueError):
            parse_json(text)


def test_an_output_that_would_lose_a_file_is_rejected(tmp_path: Path) -> None:
    picture, table = tmp_path / "a.png", tmp_path / "a.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    table.write_text("path,score\n")
    (tmp_path / "link.png").symlink_to(picture)
    (tmp_path / "renamed.json").write_bytes(picture.read_bytes())
    (tmp_path / "renamed.png").write_bytes(table.read_bytes())
    (tmp_path / "folder.csv").mkdir()
    rejected = {
        "a.png": (".png",),
        "link.png": (".png",),
        "renamed.json": TABLES,
        "renamed.png": (".png", ".gif"),
        "folder.csv": TABLES,
    }
    for name, endings in rejected.items():
        with pytest.raises(ConfigError, match=name):
            check_output(tmp_path / name, endings, [tmp_path / "gone.png", picture])
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.json"):
        check_output(picture, TABLES)
    for path, endings in ((picture, (".png",)), (table, TABLES), (tmp_path / "new" / "b.JSON", TABLES)):
        check_output(path, endings, [tmp_path / "gone.png"])
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        check_output(tmp_path / "file" / "deep" / "a.csv", TABLES)
    with pytest.raises(OutputError, match="name too long"):
        check_output(tmp_path / f"{'a' * 300}.csv", TABLES)
    monkeypatch.setattr(tempfile, "TemporaryFile", no_space)
    with pytest.raises(OutputError, match="No space left"):
        check_output(tmp_path / "new" / "a.csv", TABLES)


def test_a_long_table_is_written_row_by_row_and_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows(most: int) -> Iterator[tuple[object, ...]]:
        for number in range(100_000):
            if number == most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield (f"image-{number}.png", number / 7)

    table = tmp_path / "table.csv"
    tracemalloc.start()
    write_csv(table, rows(-1))
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 200_000 < table.stat().st_size
    assert table.read_bytes() == csv_bytes(rows(-1))
    before = table.read_bytes()
    with pytest.raises(OutputError, match="No space left"):
        write_csv(table, rows(50_000))
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://bucket/a/b", "file:///mnt/run"])
def test_a_url_that_became_a_path_is_rejected_before_anything_is_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (make_folder, lambda path: write_bytes(path, b"")):
        with pytest.raises(ConfigError, match=r"://\w.* is in object storage\. Give a path on"):
            write(Path(url))
    assert not list(tmp_path.iterdir())
    (tmp_path / url.partition("/")[0]).mkdir()  # somebody does call a folder that
    make_folder(Path(url))


@pytest.mark.skipif(os.name != "posix", reason="flock is POSIX's")
def test_a_disk_without_locks_is_an_error_and_not_a_stale_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(OutputError, match="Could not write"), exclusive(tmp_path / "run", "busy", RunError):
        pytest.fail("locked")


def test_a_path_that_is_taken_gets_the_next_number(tmp_path: Path) -> None:
    for expected in ("photos", "photos-2", "photos-3"):
        free = free_path(tmp_path / "photos")
        assert free == tmp_path / expected
        free.mkdir()
    assert free_path(tmp_path / "photos", ".gif") == tmp_path / "photos.gif"
    (tmp_path / "photos.gif").touch()
    assert free_path(tmp_path / "photos", ".gif") == tmp_path / "photos-2.gif"


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("mine")
    for path in (tmp_path / "a.jpg", tmp_path / "a.jpg" / "run" / "inner"):
        with pytest.raises(OutputError, match=r"a\.jpg is a file, not a folder\. Choose another place"):
            make_folder(path)
    with pytest.raises(OutputError) as caught:
        write_bytes(tmp_path / "a.jpg" / "table.csv", b"")
    assert "unchanged" not in str(caught.value)
    assert (tmp_path / "a.jpg").read_text() == "mine"


def test_a_folder_that_was_made_for_nothing_is_removed_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "made"
    with pytest.raises(ZeroDivisionError), exclusive(folder, "busy", RunError):
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), exclusive(folder, "busy", RunError):
        (folder / "result").touch()
        raise ZeroDivisionError
    assert (folder / "result").exists()
