from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencode.atomic import exclusive
from autoencode.data import decoders, manifest, workers
from autoencode.data.entries import split_of
from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, Progress, open_pack, pack_folder
from autoencode.data.preprocessing import Limits, Preprocessing, read_image
from autoencode.data.shards import Shards
from autoencode.data.workers import Lost
from autoencode.errors import ConfigError, ImageFolderError, OutputError, PackError

SMALL = Preprocessing(16, 32)


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve different images in two sub-folders and beside them."""
    folder = tmp_path / "photos"
    for number in range(12):
        write_image(folder / ("cats", "dogs/big", "")[number % 3] / f"{number}.png", number)
    return folder


def in_this_process(
    function: Callable[[Any], Any], items: Sequence[Any], *, seconds: float, workers: int
) -> Generator[tuple[int, Any]]:
    """Stands in for `workers.run` where processes do not matter: starting one takes a while."""
    for index, item in enumerate(items):
        yield index, function(item)


def pack(
    folder: Path,
    out: Path,
    processes: int = 0,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Pack:
    """Pack in worker processes, or with none of them in this one."""
    with pytest.MonkeyPatch.context() as patch:
        if processes == 0:
            patch.setattr(workers, "run", in_this_process)
        return pack_folder(folder, out, SMALL, limits=limits, workers=processes or 1, progress=progress)


def files_read(folder: Path, out: Path) -> int:
    """How many files an update reads."""
    totals = []
    pack(folder, out, progress=lambda done, total: totals.append(total))
    return totals[-1]


def shard_files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((out / "shards").iterdir())}


def assert_holds_what_is_in(pack: Pack, folder: Path) -> None:
    read = pack.pixels(pack.rows())
    for entry, pixels in zip(pack.entries, read, strict=True):
        assert entry.sha256 == hashlib.sha256((folder / entry.path).read_bytes()).hexdigest()
        np.testing.assert_array_equal(pixels, read_image(folder / entry.path, SMALL))


def test_a_pack_holds_the_pixels_of_every_image(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "p", processes=2)
    assert len(packed) == 12
    assert packed.skipped == []
    assert packed.folder == photos
    assert_holds_what_is_in(packed, photos)
    assert_holds_what_is_in(open_pack(tmp_path / "p"), photos)


def test_pixels_come_in_the_order_asked_for_and_are_ours_to_change(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "p")
    rows = packed.rows()[[5, 0, 5, 11]]
    chosen = packed.pixels(rows)
    np.testing.assert_array_equal(chosen, packed.pixels(packed.rows())[[5, 0, 5, 11]])
    chosen[:] = 0
    assert packed.pixels(rows).any()
    assert packed.pixels(rows[:0]).shape == (0, 16, 32, 3)


def test_rows_spread_over_many_shards_are_gathered_right(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack(photos, tmp_path / "whole")
    monkeypatch.setattr(manifest, "_SHARD_BYTES", 5 * 16 * 32 * 3)
    packed = pack(photos, tmp_path / "p", processes=2)
    assert list(shard_files(tmp_path / "p")) == ["00000.u8", "00001.u8", "00002.u8"]
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(packed.pixels(packed.rows()[order]), whole.pixels(whole.rows()[order]))
    assert packed.fingerprint == whole.fingerprint


def test_one_and_two_workers_write_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    for processes in (1, 2):
        pack(photos, tmp_path / str(processes), processes)
    for name in ("manifest.jsonl", "shards/00000.u8"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_label_is_the_first_sub_folder(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "p")
    assert packed.labels == ["cats", "dogs"]
    for entry in packed.entries:
        assert entry.label == (entry.path.split("/")[0] if "/" in entry.path else None)


def test_the_manifest_is_one_object_a_file(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    packed = pack(photos, tmp_path / "p")
    lines = [json.loads(line) for line in (tmp_path / "p" / "manifest.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines)
    assert {line["path"]: (line["size"], line["mtime"]) for line in lines} == {
        path.relative_to(photos).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in photos.rglob("*.png")
    }
    assert {line["row"] for line in lines if line["status"] == "packed"} == set(packed.rows().tolist())
    (skipped,) = (line for line in lines if line["status"] == "skipped")
    assert (skipped["path"], skipped["row"], skipped["split"]) == ("broken.png", None, None)
    assert "known format" in skipped["reason"]


def test_splits_take_their_share_of_all_digests() -> None:
    splits = [split_of(hashlib.sha256(str(i).encode()).hexdigest()) for i in range(20_000)]
    for split, share in (("train", 0.75), ("validation", 0.15), ("test", 0.10)):
        # four standard deviations of a binomial share
        assert abs(splits.count(split) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert split_of("0" * 64) == "train"
    assert split_of("c" + "0" * 63) == "validation"
    assert split_of("f" * 64) == "test"


def test_the_splits_share_out_all_rows(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "p")
    parts = [packed.rows("train"), packed.rows("validation"), packed.rows("test")]
    assert sorted(np.concatenate(parts)) == sorted(packed.rows())
    assert len(parts[0]) > len(parts[1])


def test_what_an_empty_split_is_replaced_by_is_named(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "p")
    counts = {split: len(packed.rows(split)) for split in ("train", "validation", "test")}
    assert all(counts.values())
    assert packed.held_out().split == "test"
    assert packed.held_out("validation").split == "validation"
    np.testing.assert_array_equal(packed.held_out().rows, packed.rows("test"))
    np.testing.assert_array_equal(packed.training_rows(), packed.rows("train"))

    def without(*splits: str) -> Pack:
        """Add up images that, by the rule of content, leave these splits empty."""
        folder = tmp_path / "-".join(splits)
        for entry in packed.entries:
            if entry.split not in splits:
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(photos / entry.path, folder / entry.path)
        return pack(folder, tmp_path / f"{folder.name}.pack")

    assert without("test").held_out().split == "validation"
    assert without("validation").held_out("validation").split == "test"
    for wanted in ("validation", "test"):
        only_training = without("validation", "test")
        stand_in = only_training.held_out(wanted)
        assert stand_in.split == "train"
        np.testing.assert_array_equal(stand_in.rows, only_training.rows())
    assert len(without("train").training_rows()) == counts["validation"] + counts["test"]


def test_adding_images_moves_none_to_another_split(photos: Path, tmp_path: Path) -> None:
    before = {entry.path: entry.split for entry in pack(photos, tmp_path / "p").entries}
    for number in range(12, 40):
        write_image(photos / "more" / f"{number}.png", number)
    after = {entry.path: entry.split for entry in pack(photos, tmp_path / "p").entries}
    assert len(after) == 40
    assert before == {path: after[path] for path in before}


def test_an_exact_duplicate_never_straddles_splits(photos: Path, tmp_path: Path) -> None:
    for number in range(12):
        source = next(photos.rglob(f"{number}.png"))
        shutil.copy(source, photos / f"copy of {number}.png")
    packed = pack(photos, tmp_path / "p")
    assert len(packed) == 24
    by_content: dict[str | None, set[object]] = {}
    for entry in packed.entries:
        by_content.setdefault(entry.sha256, set()).add((entry.split, entry.row))
    assert len(by_content) == 12
    assert all(len(places) == 1 for places in by_content.values())
    assert_holds_what_is_in(packed, photos)


def test_an_update_reads_only_what_is_new_or_changed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert files_read(photos, out) == 12
    first, line_count = shard_files(out), (out / "manifest.jsonl").read_bytes()
    assert files_read(photos, out) == 0
    assert (shard_files(out), (out / "manifest.jsonl").read_bytes()) == (first, line_count)
    write_image(photos / "new.png", 99)
    write_image(photos / "0.png", 100)
    assert files_read(photos, out) == 2
    assert shard_files(out).items() > first.items()
    assert_holds_what_is_in(open_pack(out), photos)


def test_content_already_packed_is_not_decoded_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    before = {entry.sha256: entry.row for entry in pack(photos, out).entries}
    shards = shard_files(out)
    (photos / "cats").rename(photos / "felines")
    os.utime(photos / "2.png")
    shutil.copy(photos / "5.png", photos / "again.png")
    assert files_read(photos, out) == 6
    packed = open_pack(out)
    assert {entry.sha256: entry.row for entry in packed.entries} == before
    assert shard_files(out) == shards
    assert packed.labels == ["dogs", "felines"]
    assert_holds_what_is_in(packed, photos)


def test_a_changed_image_of_the_same_size_and_name_is_noticed(photos: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "p", photos / "2.bmp"
    write_image(path, 1)
    before = pack(photos, out)
    write_image(path, 2)
    after = pack(photos, out)
    assert before.fingerprint != after.fingerprint
    assert_holds_what_is_in(after, photos)


def test_the_history_of_a_pack_does_not_show_in_order_or_fingerprint(photos: Path, tmp_path: Path) -> None:
    for number in (4, 1, 8):
        path = next(photos.rglob(f"{number}.png"))
        away = path.rename(tmp_path / path.name)
        pack(photos, tmp_path / "grown")
        away.rename(path)
    grown, fresh = pack(photos, tmp_path / "grown"), pack(photos, tmp_path / "fresh")
    assert grown.rows().tolist() != fresh.rows().tolist()
    assert grown.fingerprint == fresh.fingerprint
    for split in ("train", "validation", "test", None):
        np.testing.assert_array_equal(grown.pixels(grown.rows(split)), fresh.pixels(fresh.rows(split)))


def test_the_fingerprint_tells_content_name_and_preprocessing_apart(photos: Path, tmp_path: Path) -> None:
    seen = {pack(photos, tmp_path / "a").fingerprint}
    seen.add(pack_folder(photos, tmp_path / "b", Preprocessing(16, 32, "pad"), workers=1).fingerprint)
    (photos / "2.png").rename(photos / "renamed.png")
    seen.add(pack(photos, tmp_path / "a").fingerprint)
    write_image(photos / "renamed.png", 77)
    seen.add(pack(photos, tmp_path / "a").fingerprint)
    assert len(seen) == 4


def test_deleted_images_leave_and_their_space_is_won_back(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    pack(photos, out)
    for path in list(photos.rglob("*.png"))[:4]:
        path.unlink()
    assert len(pack(photos, out)) == 8
    assert list(shard_files(out)) == ["00000.u8"]
    for path in list(photos.rglob("*.png"))[:4]:
        path.unlink()
    packed = pack(photos, out)
    assert list(shard_files(out)) == ["00001.u8"]
    assert (out / "shards" / "00001.u8").stat().st_size == 4 * 16 * 32 * 3
    assert_holds_what_is_in(packed, photos)


def test_many_small_shards_are_merged(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoencode.data.packing._SPARE_SHARDS", 2)
    out = tmp_path / "p"
    for number in range(20, 24):
        write_image(photos / f"{number}.png", number)
        packed = pack(photos, out)
    assert len(shard_files(out)) == 1
    assert_holds_what_is_in(packed, photos)


def test_an_open_pack_says_so_when_another_process_has_replaced_its_rows(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    unread, in_use = pack(photos, out), open_pack(out)
    before = in_use.pixels(in_use.rows())
    for path in list(photos.rglob("*.png"))[:8]:
        path.unlink()
    pack(photos, out)
    with pytest.raises(PackError, match="Open it again"):
        unread.pixels(unread.rows())
    np.testing.assert_array_equal(in_use.pixels(in_use.rows()), before)


def zeros_png(path: Path, side: int) -> None:
    """Write a black square."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = side.to_bytes(4, "big") * 2
    pixels = zlib.compress(bytes((3 * side + 1) * side), 1)
    parts = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_each_kind_of_unusable_file_is_listed_with_its_reason(photos: Path, tmp_path: Path) -> None:
    whole = (photos / "2.png").read_bytes()
    (photos / "empty.png").touch()
    (photos / "text.jpg").write_text("not an image")
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "large.png").write_bytes(bytes(200_001))
    os.mkfifo(photos / "pipe.jpg")
    (photos / "link.png").symlink_to(photos / "nowhere.png")
    zeros_png(photos / "many pixels.png", 500)
    Image.open(photos / "2.png").save(photos / "really a gif.jpg", "GIF")
    limits = Limits(max_pixels=249_999, max_bytes=200_000)
    packed = pack(photos, tmp_path / "p", processes=2, limits=limits)
    reasons = {entry.path: entry.reason or "" for entry in packed.skipped}
    expected = {
        "empty.png": "empty",
        "text.jpg": "known format",
        "cut.png": "truncated",
        "pipe.jpg": "is a pipe, not a file",
        "link.png": "No such file",
        "large.png": "has 200,001 bytes, more than the limit",
        "many pixels.png": "500x500 pixels are more than the limit",
    }
    assert reasons.keys() == expected.keys()
    for path, reason in expected.items():
        assert reason in reasons[path]
    assert len(packed) == 13


def test_a_file_that_ends_its_worker_is_skipped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workers.run

    def lose_the_first(*arguments: Any, **options: Any) -> Generator[tuple[int, Any]]:  # noqa: ANN401
        for index, result in run(*arguments, **options):
            yield index, Lost("took longer than 5 s") if index == 0 else result

    monkeypatch.setattr(workers, "run", lose_the_first)
    packed = pack(photos, tmp_path / "p", processes=1)
    assert [(entry.path, entry.reason) for entry in packed.skipped] == [("11.png", "took longer than 5 s")]
    assert_holds_what_is_in(packed, photos)


@pytest.mark.parametrize("step", ["read_bytes", "read_image"])
def test_a_file_too_large_for_the_memory_is_skipped_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    function = getattr(decoders, step)
    calls: list[object] = []

    def fail_first(*arguments: Any) -> Any:  # noqa: ANN401
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return function(*arguments)

    monkeypatch.setattr(decoders, step, fail_first)
    packed = pack(photos, tmp_path / "p")
    (skipped,) = packed.skipped
    assert (skipped.path, skipped.reason) == ("11.png", "too large for the memory of this machine")
    assert len(packed) == 11
    assert_holds_what_is_in(packed, photos)


def test_a_copy_of_a_skipped_file_does_not_take_its_row(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(photos / "2.png", photos / "1 copy.png")
    read_image, calls = decoders.read_image, list[object]()

    def fail_first(*arguments: Any) -> Any:  # noqa: ANN401
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return read_image(*arguments)

    monkeypatch.setattr(decoders, "read_image", fail_first)
    packed = pack(photos, tmp_path / "p")
    assert [entry.path for entry in packed.skipped] == ["1 copy.png"]
    assert_holds_what_is_in(packed, photos)


def test_an_update_without_anything_new_writes_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    pack(photos, out)

    def times() -> dict[Path, int]:  # some versions of filelock touch their file
        return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}

    before = times()
    pack(photos, out)
    assert times() == before


def test_times_beyond_the_reach_of_a_clock_are_packed_once(photos: Path, tmp_path: Path) -> None:
    for name, seconds in (("2.png", 2**34), ("5.png", -(2**31))):
        os.utime(photos / name, (seconds, seconds))
    assert len(pack(photos, tmp_path / "p")) == 12
    assert files_read(photos, tmp_path / "p") == 0


def test_odd_files_and_folders_do_no_harm(photos: Path, tmp_path: Path) -> None:
    (photos / "folder.jpg").mkdir()
    write_image(photos / "folder.jpg" / "inside.png", 40)
    (photos / "cats" / "loop").symlink_to(photos)
    (photos / "self.png").symlink_to(photos / "self.png")
    (photos / "new\nline.png").write_bytes((photos / "2.png").read_bytes())
    (photos / "device.png").symlink_to("/dev/zero")
    packed = pack(photos, tmp_path / "p", processes=1)
    assert {entry.path: entry.reason for entry in packed.skipped} == {
        "self.png": "cannot be read: Too many levels of symbolic links",
        "device.png": "is a device, not a file",
    }
    assert {"folder.jpg/inside.png", "new\nline.png"} <= {entry.path for entry in packed.entries}
    assert len(packed) == 14
    assert_holds_what_is_in(packed, photos)


def test_a_skipped_file_is_tried_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert len(pack(photos, out, limits=Limits(max_pixels=1000)).skipped) == 0
    zeros_png(photos / "big.png", 40)
    assert [entry.path for entry in pack(photos, out, limits=Limits(max_pixels=1000)).skipped] == ["big.png"]
    packed = pack(photos, out)
    assert packed.skipped == []
    assert_holds_what_is_in(packed, photos)


def test_a_file_that_vanishes_between_listing_and_reading_is_skipped(photos: Path, tmp_path: Path) -> None:
    def delete_one(done: int, total: int) -> None:
        (photos / "2.png").unlink(missing_ok=True)

    packed = pack(photos, tmp_path / "p", progress=delete_one)
    assert [(entry.path, entry.reason) for entry in packed.skipped] == [
        ("2.png", "cannot be read: No such file or directory")
    ]
    assert len(packed) == 11


def test_names_that_are_not_utf_8_are_packed(photos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\xba.png")
    try:
        write_image(photos / os.fsdecode(b"d\xe9j\xe0") / odd, 50)
    except OSError:
        pytest.skip("this file system has no such names")
    packed = pack(photos, tmp_path / "p")
    assert len(packed) == 13
    assert os.fsdecode(b"d\xe9j\xe0") in packed.labels
    assert_holds_what_is_in(open_pack(tmp_path / "p"), photos)
    assert len(packed.fingerprint) == 64
    assert files_read(photos, tmp_path / "p") == 0


def test_progress_goes_from_nothing_to_everything(photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack_folder(photos, tmp_path / "p", SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_folder_without_a_usable_image_is_an_error_and_leaves_the_pack(
    photos: Path, tmp_path: Path
) -> None:
    before = pack(photos, tmp_path / "p").fingerprint
    for path in photos.rglob("*.png"):
        path.write_bytes(b"broken")
    for out in (tmp_path / "p", tmp_path / "new"):
        with pytest.raises(
            ImageFolderError, match=r"No image in .*, of 12 found.*11\.png: not an image.*and 9 more"
        ):
            pack(photos, out)
    assert open_pack(tmp_path / "p").fingerprint == before
    assert not is_pack(tmp_path / "new")
    shutil.rmtree(photos)
    with pytest.raises(ImageFolderError, match="does not exist"):
        pack(photos, tmp_path / "p")
    assert open_pack(tmp_path / "p").fingerprint == before


def test_an_output_that_is_not_ours_is_rejected_and_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(PackError, match="Choose another output"):
            pack(photos, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert len(pack(photos, tmp_path / "empty")) == 12


def test_a_pack_of_another_folder_or_with_other_settings_is_rejected(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    before = pack(photos, out).fingerprint
    with pytest.raises(PackError, match=r"resize_mode crop, not pad.*delete the pack"):
        pack_folder(photos, out, Preprocessing(16, 32, "pad"))
    with pytest.raises(PackError, match="height 16, not 32"):
        pack_folder(photos, out, Preprocessing(32, 32))
    with pytest.raises(PackError, match="is a pack of"):
        pack(photos / "cats", out)
    assert open_pack(out).fingerprint == before
    with pytest.raises(ConfigError, match="workers must be 1 or more"):
        pack_folder(photos, out, SMALL, workers=0)


def test_two_at_once_are_rejected_by_name(photos: Path, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "p", "busy", PackError),
        pytest.raises(PackError, match=f"Another process is packing into {tmp_path / 'p'}"),
    ):
        pack(photos, tmp_path / "p")
    assert len(pack(photos, tmp_path / "p")) == 12


KILLED = """
import os, signal, sys
from pathlib import Path
from autoencode.data import manifest, packing, workers
from autoencode.data.preprocessing import Preprocessing
from autoencode.data.pack import pack_folder

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function):
    def both(*arguments):
        function(*arguments)
        die()
    return both

moment = sys.argv[3]
if moment == "before the manifest":
    packing.manifest.write_manifest = die
if moment == "after the manifest":
    packing.manifest.write_manifest = after(manifest.write_manifest)
if moment == "between shards and names":
    packing.Shards.finish = die
progress = lambda done, total: die() if moment == "while decoding" and done else None
pack_folder(Path(sys.argv[1]), Path(sys.argv[2]), Preprocessing(16, 32), workers=1, progress=progress)
"""


@pytest.mark.parametrize(
    ("existing", "moment"),
    [
        (True, "while decoding"),
        (False, "while decoding"),
        (True, "between shards and names"),
        (True, "before the manifest"),
        (False, "before the manifest"),
        (True, "after the manifest"),
    ],
)
def test_a_kill_leaves_the_old_pack_or_the_new_one(
    photos: Path, tmp_path: Path, existing: bool, moment: str
) -> None:
    out = tmp_path / "p"
    old = pack(photos, out).fingerprint if existing else None
    for number in range(20, 30):
        write_image(photos / "new" / f"{number}.png", number)
    new = pack(photos, tmp_path / "whole").fingerprint
    killed = subprocess.run([sys.executable, "-c", KILLED, photos, out, moment], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if moment == "after the manifest":
        assert open_pack(out).fingerprint == new
    elif existing:
        assert open_pack(out).fingerprint == old
    else:
        with pytest.raises(PackError, match=f"not finished. Run again: autoencode pack {photos} --out {out}"):
            open_pack(out)
    again = pack(photos, out)
    assert again.fingerprint == new
    assert_holds_what_is_in(again, photos)
    assert not list(out.rglob("*.partial"))


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no process write a file longer than `size` bytes, much like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("where", ["room", "pixels", "manifest"])
def test_a_full_disk_leaves_the_old_pack_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out = tmp_path / "p"
    old = pack(photos, out).fingerprint
    for number in range(20, 30):
        write_image(photos / f"{number}.png", number)
    with monkeypatch.context() as patch:
        if where == "pixels":
            patch.setattr(Shards, "reserve", lambda shards, row, count: shards._temporary(1).touch())
        if where == "manifest":
            full = OSError(errno.ENOSPC, "No space left on device")
            patch.setattr(json, "dumps", lambda value: (_ for _ in ()).throw(full))
        with (
            files_limited_to(10**9 if where == "manifest" else 5000),
            pytest.raises(OutputError, match="Could not"),
        ):
            pack(photos, out, processes=2)
    assert open_pack(out).fingerprint == old
    assert list(shard_files(out)) == ["00000.u8"]
    assert len(pack(photos, out)) == 22


def test_packing_works_from_a_script_without_a_main_guard(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from autoencode.data.pack import pack_folder\n"
        f"print(len(pack_folder({str(photos)!r}, {str(tmp_path / 'p')!r}, workers=2)))\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("12\n", "")


def test_packing_imports_no_torch() -> None:
    check = "import sys, autoencode.data.pack; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n"


def damage(out: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pack.json", None, "is not a pack.*autoencode pack FOLDER"),
        ("pack.json", b"{", "Could not read"),
        ("pack.json", b"[]", "is not a pack"),
        ("pack.json", b'{"format": "something else"}', "is not a pack"),
        ("pack.json", b'{"format": "autoencode pack", "version": 2}', "damaged"),
        (
            "pack.json",
            b'{"format": "autoencode pack", "version": 1}',
            "earlier version.*format 1.*Delete the pack",
        ),
        ("pack.json", b'{"format": "autoencode pack", "version": 3}', "newer version.*format 3.*Upgrade"),
        ("manifest.jsonl", None, "not finished"),
        ("manifest.jsonl", b'{"path": 1}\n', "damaged in line 1"),
        ("manifest.jsonl", b"\n", "damaged in line 1"),
        ("shards/00000.u8", None, "missing"),
        ("shards/00000.u8", bytes(1000), "too short"),
    ],
)
def test_a_damaged_pack_gives_one_clear_line(
    photos: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    out = tmp_path / "p"
    pack(photos, out)
    damage(out, name, content)
    with pytest.raises(PackError, match=message) as caught:
        open_pack(out)
    assert "\n" not in str(caught.value)
    if name != "manifest.jsonl" or content is not None:
        with pytest.raises(PackError):
            pack(photos, out)


@pytest.mark.parametrize("rows_per_shard", [0, 2**63, 10**30])
def test_a_forged_size_of_shards_is_rejected(photos: Path, tmp_path: Path, rows_per_shard: int) -> None:
    out = tmp_path / "p"
    pack(photos, out)
    content = json.loads((out / "pack.json").read_bytes())
    (out / "pack.json").write_text(json.dumps(content | {"rows_per_shard": rows_per_shard}))
    with pytest.raises(PackError, match="damaged"):
        open_pack(out)


def test_a_pack_of_skipped_files_alone_has_nothing_held_out(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    pack(photos, out)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    gone = [line | {"status": "skipped", "reason": "cut short", "row": None, "split": None} for line in lines]
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gone))
    with pytest.raises(PackError, match="has no usable image"):
        open_pack(out).held_out()


def test_a_pack_of_an_older_format_is_named_by_an_update_too(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    pack(photos, tmp_path / "p")
    for name, new, old in (
        ("pack.json", '"version": 2', '"version": 1'),
        ("manifest.jsonl", '"skipped"', '"refused"'),
    ):
        path = tmp_path / "p" / name
        assert new in path.read_text()
        path.write_text(path.read_text().replace(new, old))
    with pytest.raises(PackError, match=r"earlier version of autoencode \(format 1.*Delete the pack"):
        pack(photos, tmp_path / "p")


def test_a_truncated_manifest_line_is_noticed(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "p" / "manifest.jsonl"
    pack(photos, tmp_path / "p")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PackError, match="damaged in line 12"):
        open_pack(tmp_path / "p")


def test_what_is_a_pack_is_told_without_raising(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "p")
    assert is_pack(tmp_path / "p")
    assert not is_pack(photos)
    assert not is_pack(tmp_path / "nothing")
    assert not is_pack(photos / "2.png")


def test_a_pack_that_is_let_go_closes_its_files_at_once(photos: Path, tmp_path: Path) -> None:
    made = pack(photos, tmp_path / "p")
    gc.disable()
    try:
        before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - a generator of paths would itself be counted
        for _ in range(5):
            opened = open_pack(made.path)
            opened.pixels(opened.rows())
        del opened
        assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    finally:
        gc.enable()
