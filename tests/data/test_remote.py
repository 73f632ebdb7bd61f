"""Packs in storage: made there, read through a bounded cache, and what is wrong in one line."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from autoencode import (
    ConfigError,
    Pack,
    PackError,
    Preprocessing,
    StorageError,
    build_index,
    load_model,
    open_pack,
    pack_folder,
    train,
)
from autoencode.data import manifest, remote
from autoencode.data.loader import epoch_order
from autoencode.evaluation import evaluate
from autoencode.index import open_index
from autoencode.storage import RemoteFolder

ROW_BYTES = 32 * 32 * 3


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows a shard, four shards."""
    monkeypatch.setattr(manifest, "_SHARD_BYTES", 12 * ROW_BYTES)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where nothing is yet; the cache is a new folder."""
    monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))
    yield (
        "memory://store/photos.pack" if request.param == "memory" else f"file://{tmp_path}/store/photos.pack"
    )
    fsspec.filesystem("memory").store.clear()


def in_cache(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.suffix in (".cached", ".u8")]


def test_a_pack_in_storage_is_that_of_a_disk(
    url: str, photos: Path, tiny_pack: Pack, tmp_path: Path, small_shards: None
) -> None:
    made = pack_folder(photos, url, tiny_pack.preprocessing, workers=1)
    assert not in_cache(tmp_path), "what was written is still on the disk"
    shutil.rmtree(tmp_path / "cache")
    pack = open_pack(url)
    assert pack.location == url
    assert pack.fingerprint == made.fingerprint == tiny_pack.fingerprint
    assert np.array_equal(pack.pixels(pack.rows()), tiny_pack.pixels(tiny_pack.rows()))


def test_an_update_in_storage_reads_only_what_is_new_and_deletes_what_is_gone(
    url: str, photos: Path, tiny_size: Preprocessing, tmp_path: Path, small_shards: None
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    pack_folder(folder, url, tiny_size, workers=1)
    before = RemoteFolder(url).listing()
    gone = sorted(folder.rglob("*.png"))[:13]
    for path in gone:
        path.unlink()
    read: list[tuple[int, int]] = []
    pack = pack_folder(folder, url, tiny_size, workers=1, progress=lambda *at: read.append(at))
    assert read == [(0, 0)]
    assert len(pack) == 48 - len(gone)
    after = RemoteFolder(url).listing()
    assert "shards/00000.u8" in before.keys() - after.keys()
    assert after["shards/00003.u8"] == before["shards/00003.u8"]


@pytest.mark.parametrize("failing", ["manifest.jsonl", "shards/00005.u8"])
def test_a_pack_in_storage_is_as_it_was_when_the_storage_goes_away(
    failing: str, url: str, photos: Path, tiny_size: Preprocessing, tmp_path: Path, small_shards: None
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    old = pack_folder(folder, url, tiny_size, workers=1).fingerprint
    for number, path in enumerate(sorted(folder.rglob("*.png"))[:20]):
        path.write_bytes((folder / "coast" / "000.png").read_bytes() + bytes([number]))
    with pytest.MonkeyPatch.context() as broken:
        upload = RemoteFolder.upload

        def fail(*_: object) -> None:
            raise StorageError("gone")

        def upload_or_fail(folder: RemoteFolder, path: Path, name: str) -> None:
            if name == failing:
                for method in ("upload", "stamp", "listing", "delete"):
                    broken.setattr(RemoteFolder, method, fail)
                fail()
            upload(folder, path, name)

        broken.setattr(RemoteFolder, "upload", upload_or_fail)
        with pytest.raises(StorageError, match="gone"):
            pack_folder(folder, url, tiny_size, workers=1)
    pack = open_pack(url)
    assert pack.fingerprint == old
    assert len(pack.pixels(pack.rows())) == 48
    assert pack_folder(folder, url, tiny_size, workers=1).fingerprint != old
    numbers = {name for name in RemoteFolder(url).listing() if name.startswith("shards/")}
    assert numbers == {f"shards/{row // 12:05d}.u8" for row in open_pack(url).rows().tolist()}


def size_now(path: Path) -> int:
    """The bytes of a file, which another thread may just have removed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("share", [1, 0.1])
def test_reading_keeps_to_the_room_of_the_cache(
    share: float,
    url: str,
    photos: Path,
    tiny_pack: Pack,
    tmp_path: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack_folder(photos, url, tiny_pack.preprocessing, workers=1)
    room = 3 * 12 * ROW_BYTES
    monkeypatch.setenv("AUTOENCODE_CACHE_GB", str(room * share / 1e9))  # three shards are always kept
    pack = open_pack(url)
    assert pack.window == 12, "a third of the cache"
    for row, mine in zip(tiny_pack.rows(), pack.rows(), strict=True):
        pack.prefetch(pack.rows()[:9])
        assert np.array_equal(pack.pixels(mine[None]), tiny_pack.pixels(row[None]))
        # Two shards more may be on their way, each of which has looked for room already.
        assert sum(size_now(path) for path in in_cache(tmp_path)) <= room + 2 * 12 * ROW_BYTES


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda storage, path: storage.pipe_file(path, bytes(12 * ROW_BYTES)),
            *(PackError, r"shards/00000\.u8 has changed since the pack was opened"),
        ),
        # An error of the store, and not of the disk.
        (lambda storage, path: storage.rm_file(path), StorageError, "Could not find {url}"),
    ],
)
def test_a_shard_that_was_replaced_or_deleted_is_noticed(
    url: str,
    photos: Path,
    tiny_size: Preprocessing,
    small_shards: None,
    change: Callable[[Any, str], None],
    error: type[Exception],
    message: str,
) -> None:
    pack_folder(photos, url, tiny_size, workers=1)
    pack = open_pack(url)
    storage, root = fsspec.url_to_fs(url)
    change(storage, f"{root}/shards/00000.u8")
    with pytest.raises(error, match=message.format(url=url)):
        pack.pixels(np.arange(3))


def test_a_shard_that_is_cut_short_in_the_cache_is_fetched_again(
    url: str, photos: Path, tiny_pack: Pack, tmp_path: Path, small_shards: None
) -> None:
    pack_folder(photos, url, tiny_pack.preprocessing, workers=1)
    for _ in range(2):
        pack = open_pack(url)
        assert np.array_equal(pack.pixels(pack.rows()), tiny_pack.pixels(tiny_pack.rows()))
        for path in in_cache(tmp_path):
            path.write_bytes(path.read_bytes()[:-2000])


def test_whoever_opens_a_pack_while_it_is_written_waits(
    url: str, photos: Path, tiny_size: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = remote.files_at(url, must_exist=False)
    order: list[str] = []
    reader = threading.Thread(target=lambda: (remote.files_at(url, must_exist=False), order.append("read")))
    with files.changing("pack.json"):
        reader.start()
        reader.join(0.3)
        order.append("written")
    reader.join()
    assert order == ["written", "read"]


def test_train_index_and_evaluate_read_a_pack_in_storage_larger_than_the_cache(
    url: str,
    photos: Path,
    tiny_size: Preprocessing,
    tiny: dict[str, Any],
    tmp_path: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack_folder(photos, url, tiny_size, workers=1)
    monkeypatch.setenv("AUTOENCODE_CACHE_GB", str(3 * 12 * ROW_BYTES / 1e9))
    train(url, tmp_path / "whole", epochs=2, **tiny)
    train(url, tmp_path / "run", epochs=1, **tiny)
    run = train(url, tmp_path / "run", epochs=2, resume=True)
    assert '"window": 12' in (run.folder / "run.json").read_text()
    assert run.model_path.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert evaluate(load_model(run.model_path), open_pack(url), kid=False).images > 0
    build_index(url, tmp_path / "index", run.model_path, embedding="code")
    index = open_index(tmp_path / "index")
    assert index.source == url
    assert len(index.pack) == len(index) == 48
    assert build_index(url, tmp_path / "index", run.model_path, embedding="code").update.encoded == 0


def test_a_url_without_a_pack_says_so(url: str, photos: Path, tmp_path: Path) -> None:
    for opening in (open_pack, lambda place: train(place, tmp_path / "run")):
        with pytest.raises(PackError, match=f"There is no pack at {url}. Make one: autoencode pack"):
            opening(url)
    storage, root = fsspec.url_to_fs(url)
    storage.makedirs(root, exist_ok=True)
    storage.pipe_file(f"{root}/other.txt", b"mine")
    with pytest.raises(PackError, match=f"{url} is not a pack, and not empty"):
        pack_folder(photos, url)


def test_a_folder_outside_the_cache_reaches_no_storage(url: str, photos: Path, tmp_path: Path) -> None:
    pack_folder(photos, url, Preprocessing(32, 32), workers=1)
    copied = shutil.copytree(open_pack(url).path, tmp_path / "from a stranger")
    assert (copied / remote.REMOTE_NAME).exists()
    with pytest.raises(PackError, match=r"00000\.u8 is missing"):
        open_pack(copied)


def test_a_cache_of_no_size_is_rejected(url: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOENCODE_CACHE_GB", "none")
    with pytest.raises(ConfigError, match="AUTOENCODE_CACHE_GB is 'none'"):
        pack_folder(photos, url)


def test_a_windowed_order_shows_every_row_once_and_keeps_to_the_window() -> None:
    rows = np.delete(np.arange(200), np.arange(30, 37))
    order = epoch_order(rows, seed=1, epoch=2, rows_per_shard=10, window=40)
    assert sorted(order) == sorted(rows)
    starts = [0, *np.flatnonzero(np.diff([_window(order, at) for at in range(len(order))])) + 1]
    assert len(starts) == 5
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        assert len(set(order[start:stop] // 10)) <= 4
        assert list(order[start:stop]) != sorted(order[start:stop])
    assert list(order) != list(epoch_order(rows, seed=1, epoch=3, rows_per_shard=10, window=40))


def _window(order: np.ndarray[Any, Any], at: int) -> int:
    """Which window a place is in: as many as have four shards begun before it."""
    begun = list(dict.fromkeys((order // 10).tolist()))
    return begun.index(int(order[at]) // 10) // 4


@pytest.mark.scale
def test_pack_and_train_against_s3(
    bucket: str,
    photos: Path,
    tiny_pack: Pack,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_SHARD_BYTES", 12 * 32 * 32 * 3)
    pack_folder(photos, bucket, tiny_pack.preprocessing, workers=1)
    monkeypatch.setenv("AUTOENCODE_CACHE_GB", str(3 * 12 * 32 * 32 * 3 / 1e9))
    pack = open_pack(bucket)
    assert pack.fingerprint == tiny_pack.fingerprint
    assert np.array_equal(pack.pixels(pack.rows()), tiny_pack.pixels(tiny_pack.rows()))
    run = train(bucket, tmp_path / "run", epochs=1, **tiny)
    assert len(run.metrics) == 1


@pytest.mark.scale
def test_a_bucket_that_is_not_there_is_one_line(bucket: str, photos: Path) -> None:
    for used in (open_pack, lambda place: pack_folder(photos, place)):
        with pytest.raises(StorageError, match=r"s3://nosuch/photos.pack.*bucket does not exist") as found:
            used("s3://nosuch/photos.pack")
        assert "\n" not in str(found.value)


@pytest.mark.scale
def test_missing_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"No credentials for s3://images/photos\.pack\. Log in"):
        open_pack(bucket)


@pytest.mark.scale
def test_a_server_that_does_not_answer_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"Could not reach s3://images/photos\.pack"):
        open_pack(bucket)


def test_of_two_machines_that_pack_to_one_url_one_does(
    url: str, photos: Path, tiny_size: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = []

    def meanwhile(done: int, total: int) -> None:
        if done == 1:
            monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "another machine"))
            with pytest.raises(
                PackError, match=r"Another process is packing into .*, on .*writing\.lock"
            ) as err:
                pack_folder(photos, url, tiny_size, workers=1)
            rejected.append(err)
            monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))

    pack = pack_folder(photos, url, tiny_size, workers=1, progress=meanwhile)
    assert len(rejected) == 1
    assert len(pack.pixels(pack.rows())) == len(pack)
    assert remote.LOCK_NAME not in RemoteFolder(url).listing()


def test_the_lock_of_a_killed_process_is_taken_over_on_its_machine_and_named_on_others(
    url: str, photos: Path, tiny_size: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(RemoteFolder, "delete", lambda self, name: None)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(photos, url, tiny_size, workers=1, progress=killed)
    assert remote.LOCK_NAME in RemoteFolder(url).listing()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AUTOENCODE_CACHE", str(tmp_path / "another machine"))
        with pytest.raises(PackError, match=f"if it was killed, delete {url}/writing.lock"):
            pack_folder(photos, url, tiny_size, workers=1)
    assert len(pack_folder(photos, url, tiny_size, workers=1)) == len(open_pack(url))


def test_a_storage_without_conditional_writes_is_named(
    photos: Path, tiny_size: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autoencode.storage._CONDITIONAL", {"s3"})
    with pytest.raises(StorageError, match="memory://store/pack cannot be locked"):
        pack_folder(photos, "memory://store/pack", tiny_size, workers=1)


def test_a_file_is_created_once_by_many_writers(url: str) -> None:
    folder = RemoteFolder(url)
    assert [folder.create("lock", text) for text in (b"first", b"second")] == [True, False]
    assert folder.read("lock") == b"first"
