"""Indexes that are built, updated, and killed meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import change_some

from autoencode import (
    AutoencodeError,
    Autoencoder,
    ConfigError,
    ImageFolderError,
    ImageIndexError,
    Index,
    ModelConfig,
    OutputError,
    Pack,
    Preprocessing,
    Run,
    build_index,
    load_model,
    open_index,
    save_model,
)
from autoencode.embedding import image_encoder
from autoencode.index.memory import INDEX_NAME, StoredIndex, read_index, write_index
from autoencode.index.neighbours import InvertedLists, VectorSpace
from autoencode.index.store import StoredPath


def listed(index: Index) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {entry.path: index.codes[entry.row] for entry in index.entries}


def assert_same(one: Index, other: Index) -> None:
    assert [entry.path for entry in one.entries] == [entry.path for entry in other.entries]
    np.testing.assert_allclose(one.codes, other.codes, atol=1e-5)
    assert one.near_duplicate_threshold == pytest.approx(other.near_duplicate_threshold, abs=1e-4)


def test_an_index_holds_the_code_of_every_image(trained: Run, folder: Path, tmp_path: Path) -> None:
    index = build_index(trained.folder, folder, tmp_path / "i")
    model = load_model(trained.model_path)
    codes = listed(index)
    assert len(index) == len(codes) == 48
    for name in list(codes)[::9]:
        wanted = model.encode(model.read(folder / name))[0]
        np.testing.assert_allclose(codes[name], wanted, atol=1e-5)
    assert_same(index, open_index(tmp_path / "i"))


def test_an_update_encodes_only_what_is_new_and_equals_an_index_made_anew(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(trained.folder, folder, tmp_path / "i")
    change_some(folder)

    updated = build_index(trained.folder, folder, tmp_path / "i")
    assert updated.update is not None
    assert (updated.update.encoded, updated.update.kept, updated.update.removed) == (2, 46, 2)
    assert {"new.png", "moved.png", "copy.png"} <= listed(updated).keys()
    assert_same(updated, build_index(trained.folder, folder, tmp_path / "anew"))


def test_nothing_is_written_where_nothing_changed(trained: Run, folder: Path, tmp_path: Path) -> None:
    build_index(trained.folder, folder, tmp_path / "i")
    before = (tmp_path / "i" / INDEX_NAME).stat()
    again = build_index(trained.folder, folder, tmp_path / "i")
    assert again.update is not None
    assert again.update.encoded == 0
    after = (tmp_path / "i" / INDEX_NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_distance_encodes_nothing_anew_and_stays(trained: Run, folder: Path, tmp_path: Path) -> None:
    first = build_index(trained.folder, folder, tmp_path / "i")
    other = build_index(trained.folder, folder, tmp_path / "i", distance="l2")
    assert other.update is not None
    assert (first.distance, other.distance, other.update.encoded) == ("whitened", "l2", 0)
    assert build_index(trained.folder, folder, tmp_path / "i").distance == "l2"


def test_a_pack_is_taken_as_it_is(trained: Run, tiny_pack: Pack, photos: Path, tmp_path: Path) -> None:
    packed = build_index(trained.folder, tiny_pack.path, tmp_path / "i")
    assert packed.folder == photos
    assert not (tmp_path / "i" / "pack").exists()
    assert_same(packed, build_index(trained.folder, photos, tmp_path / "j"))


def test_an_index_of_an_index_folder_finds_only_the_users_images(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    build_index(trained.folder, folder, folder / "index")
    assert len(build_index(trained.folder, folder, folder / "index")) == 48


def test_pretrained_features_need_no_model_when_searching(folder: Path, trained: Run, tmp_path: Path) -> None:
    model = Path(shutil.copy(trained.model_path, tmp_path / "model.safetensors"))
    for path in sorted(folder.rglob("*.png"))[6:]:
        path.unlink()
    index = build_index(model, folder, tmp_path / "i", embedding="pretrained")
    assert index.codes.shape == (6, 1280)
    assert index.distance == "cosine"
    assert index.encoder.digest == image_encoder(load_model(model), "pretrained").digest
    model.unlink()
    query = next(folder.rglob("*.png"))
    (found,) = open_index(tmp_path / "i").search(query, k=9).results
    assert len(found.found) == 5
    with pytest.raises(ImageIndexError, match="holds the embedding pretrained, not code"):
        build_index(trained.model_path, folder, tmp_path / "i", embedding="code")


def another_model(path: Path, side: int = 32) -> Path:
    torch.manual_seed(1)
    save_model(path, Autoencoder(ModelConfig(code_size=8, widths=(4, 8)), Preprocessing(side, side)), {})
    return path


def test_what_does_not_fit_is_rejected_in_one_line(
    trained: Run, tiny_pack: Pack, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i"
    build_index(trained.folder, folder, out)
    other, larger = another_model(tmp_path / "other"), another_model(tmp_path / "larger", 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    before = (out / INDEX_NAME).read_bytes()
    cases: list[tuple[Callable[[], object], type[AutoencodeError], str]] = [
        (lambda: build_index(other, folder, out), ImageIndexError, "made with another model"),
        (lambda: open_index(out, larger), ImageIndexError, "made with another model"),
        (lambda: build_index(trained.folder, tmp_path / "full", out), ImageIndexError, "is an index of"),
        (
            lambda: build_index(larger, tiny_pack.path, tmp_path / "j"),
            ConfigError,
            "made with height 32, not 64; width 32, not 64",
        ),
        (lambda: build_index(other, tmp_path / "empty", tmp_path / "j"), ImageFolderError, "No images in"),
        (lambda: build_index(other, tmp_path / "none", tmp_path / "j"), ImageFolderError, "No folder of"),
        (lambda: build_index(other, folder, tmp_path / "full"), OutputError, "is not an index, and not"),
        (lambda: build_index(other, folder, tmp_path / "full" / "mine.txt"), OutputError, "is a file"),
        (
            lambda: build_index(Autoencoder(ModelConfig(), Preprocessing(32, 32)), folder, tmp_path / "j"),
            ConfigError,
            "has no file yet",
        ),
        (lambda: build_index(other, folder, out, distance="l1"), AutoencodeError, "model"),  # type: ignore[arg-type]
        (lambda: open_index(tmp_path / "none"), ImageIndexError, "No index at .* autoencode index"),
    ]
    for case, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            case()
        assert "\n" not in str(caught.value)
    assert (out / INDEX_NAME).read_bytes() == before


def test_a_damaged_or_half_written_index_is_noticed(trained: Run, folder: Path, tmp_path: Path) -> None:
    build_index(trained.folder, folder, tmp_path / "i")
    path = tmp_path / "i" / INDEX_NAME
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ImageIndexError, match="damaged"):
            open_index(tmp_path / "i")
        with pytest.raises(ImageIndexError, match="damaged"):
            build_index(trained.folder, folder, tmp_path / "i")


@pytest.mark.parametrize(
    "forge",
    [
        lambda index: replace(index, codes=index.codes[:-1]),
        lambda index: replace(index, codes=index.codes.ravel()),
        lambda index: replace(index, codes=index.codes.astype(np.float64)),
        lambda index: replace(index, codes=np.full_like(index.codes, np.nan)),
        lambda index: with_space(index, whitening=index.settings.vector_space.whitening[:, :3]),
        lambda index: with_space(index, mean=index.settings.vector_space.mean[:3]),
        lambda index: with_settings(index, vector_space=VectorSpace("furthest")),
        lambda index: with_settings(index, embedding="smell"),
        lambda index: with_settings(index, encoder_digest=7),
        lambda index: replace(index, folder=StoredPath("/a\0b", "")),
        lambda index: replace(index, entries=[]),
        lambda index: replace(index, entries=index.entries[::-1]),
        lambda index: replace(index, entries=index.entries[1:]),
        lambda index: replace(index, codes=np.concatenate([index.codes, index.codes])),
        lambda index: with_lists(index, nprobe=0),
        lambda index: with_lists(index, nprobe=2**63),
        lambda index: with_lists(index, assignment=np.full(len(index.codes), 2)),
        lambda index: with_lists(index, assignment=np.full(len(index.codes), -1)),
        lambda index: with_lists(index, assignment=np.zeros(len(index.codes), np.uint8)),
        lambda index: with_lists(index, assignment=np.zeros(len(index.codes) - 1, np.int64)),
        lambda index: with_lists(index, centroids=index.codes[:2, :3].copy()),
        lambda index: with_lists(index, centroids=index.codes[:0].copy()),
    ],
)
def test_an_index_whose_parts_do_not_fit_together_is_rejected(
    forge: Callable[[StoredIndex], StoredIndex], index_of_photos: Path, tmp_path: Path
) -> None:
    sound = read_index(index_of_photos)
    write_index(tmp_path, with_lists(sound))
    assert read_index(tmp_path).lists is not None
    write_index(tmp_path, forge(sound))
    with pytest.raises(ImageIndexError, match=r"does not hold a usable index \("):
        open_index(tmp_path)


@pytest.fixture(scope="module")
def index_of_photos(trained: Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(trained.folder, photos, tmp_path_factory.mktemp("index") / "i").path


def with_lists(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    lists = InvertedLists(index.codes[:2].copy(), np.zeros(len(index.codes), np.int64), 1, 0.9)
    return replace(index, lists=replace(lists, **changes))


def with_settings(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    return replace(index, settings=replace(index.settings, **changes))


def with_space(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    return with_settings(index, vector_space=replace(index.settings.vector_space, **changes))


def test_codes_that_are_not_finite_are_rejected(trained: Run, folder: Path, tmp_path: Path) -> None:
    model = load_model(trained.model_path)
    model.to_mean.bias.fill_(float("nan"))
    with pytest.raises(ImageIndexError, match="not finite"):
        build_index(model, folder, tmp_path / "i")
    assert not (tmp_path / "i" / INDEX_NAME).exists()


# Updates copies of an index in children, each killed at another moment; prints how each ended.
SCRIPT = """
import os, shutil, signal, sys
from pathlib import Path
from autoencode.index import build_index

model, folder, old, out = sys.argv[1:]
calls, last = 0, None

def passing():
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)

def killing(call):
    def killed(*arguments, **options):
        passing()
        result = call(*arguments, **options)
        passing()
        return result
    return killed

# Before and after each moment at which something becomes lasting.
Path.replace, os.fsync = killing(Path.replace), killing(os.fsync)

def update(moment):
    global last
    last = moment
    copy = shutil.copytree(old, f"{out}{moment}")
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            build_index(model, folder, copy)
        finally:
            os.write(writing, b"%d" % calls)
            os._exit(0)
    os.close(writing)
    status = os.wait()[1]
    return os.waitstatus_to_exitcode(status), os.read(reading, 99)

code, total = update(0)
total = int(total)
print(0, code)
for moment in sorted({1, total // 2, total - 5, total - 3, total - 2, total}):
    print(moment, update(moment)[0])
"""


def test_a_kill_at_any_moment_leaves_the_old_index_or_the_new_one(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    old = build_index(trained.folder, folder, tmp_path / "old")
    for path in sorted(folder.rglob("*.png"))[:5]:
        path.unlink()
    Image.new("RGB", (40, 40), "blue").save(folder / "new.png")
    new = build_index(trained.folder, folder, tmp_path / "anew")
    places = [str(trained.folder), str(folder), str(tmp_path / "old"), str(tmp_path / "i")]
    script = subprocess.run(
        [sys.executable, "-c", SCRIPT, *places], capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr
    ended = dict(tuple(map(int, line.split())) for line in script.stdout.splitlines())
    assert ended.pop(0) == 0
    assert set(ended.values()) == {-signal.SIGKILL}
    left = {moment: set(listed(open_index(tmp_path / f"i{moment}"))) for moment in ended}
    # The last moments are before and after the rename, and after all else.
    *before, after, end = sorted(left)
    assert [left[moment] == set(listed(old)) for moment in before] == [True] * 4
    assert left[after] == left[end] == set(listed(new))
    for moment in (before[-1], after):
        assert_same(build_index(trained.folder, folder, tmp_path / f"i{moment}"), new)
        assert not list((tmp_path / f"i{moment}").rglob("*.partial"))


def test_two_processes_do_not_write_one_index(trained: Run, folder: Path, tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from autoencode.atomic import exclusive\n"
        "with exclusive(Path(sys.argv[1]), '', RuntimeError): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path / "i"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ImageIndexError, match="Another process is writing"):
            build_index(trained.folder, folder, tmp_path / "i")
        os.kill(process.pid, signal.SIGKILL)
    started = time.monotonic()
    build_index(trained.folder, folder, tmp_path / "i")
    assert time.monotonic() - started < 50
