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
    pack_folder,
    save_model,
)
from autoencode.data.preprocessing import read_image
from autoencode.index.interface import StoredPath
from autoencode.index.inverted_lists import InvertedLists
from autoencode.index.memory import INDEX_NAME, StoredIndex, read_index, write_index
from autoencode.index.neighbours import VectorSpace
from autoencode.index.rounding import Rounding
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float


def listed(index: Index) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {entry.path: index.codes[entry.row] for entry in index.entries}


def assert_same(one: Index, other: Index) -> None:
    assert [entry.path for entry in one.entries] == [entry.path for entry in other.entries]
    np.testing.assert_allclose(one.codes, other.codes, atol=1e-5)


def test_an_index_holds_the_code_of_every_image(trained: Run, folder: Path, tmp_path: Path) -> None:
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
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
    build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    change_some(folder)

    updated = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    assert updated.update is not None
    assert (updated.update.encoded, updated.update.kept, updated.update.removed) == (2, 46, 2)
    assert {"new.png", "moved.png", "copy.png"} <= listed(updated).keys()
    assert_same(updated, build_index(folder, tmp_path / "anew", trained.folder, embedding="code"))


def test_nothing_is_written_where_nothing_changed(trained: Run, folder: Path, tmp_path: Path) -> None:
    build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    before = (tmp_path / "i" / INDEX_NAME).stat()
    again = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    assert again.update is not None
    assert again.update.encoded == 0
    after = (tmp_path / "i" / INDEX_NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_distance_encodes_nothing_anew_and_stays(trained: Run, folder: Path, tmp_path: Path) -> None:
    first = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    other = build_index(folder, tmp_path / "i", trained.folder, embedding="code", distance="l2")
    assert other.update is not None
    assert (first.distance, other.distance, other.update.encoded) == ("whitened", "l2", 0)
    assert build_index(folder, tmp_path / "i", trained.folder, embedding="code").distance == "l2"


def test_a_pack_is_taken_as_it_is(trained: Run, tiny_pack: Pack, photos: Path, tmp_path: Path) -> None:
    packed = build_index(tiny_pack.path, tmp_path / "i", trained.folder, embedding="code")
    assert packed.folder == photos
    assert not (tmp_path / "i" / "pack").exists()
    assert_same(packed, build_index(photos, tmp_path / "j", trained.folder, embedding="code"))


def test_an_index_of_an_index_folder_finds_only_the_users_images(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    build_index(folder, folder / "index", trained.folder, embedding="code")
    assert len(build_index(folder, folder / "index", trained.folder, embedding="code")) == 48


def test_a_folder_is_indexed_by_pretrained_features_without_a_model(folder: Path, tmp_path: Path) -> None:
    for path in sorted(folder.rglob("*.png"))[6:]:
        path.unlink()
    index = build_index(folder, tmp_path / "i")
    assert (index.embedding, index.distance, index.codes.shape) == ("pretrained", "cosine", (6, 256))
    assert index.preprocessing == BACKBONE.preprocessing
    query = next(folder.rglob("*.png"))
    (found,) = open_index(tmp_path / "i").search(query, k=9).results
    assert len(found.found) == 5
    pixels = to_float(read_image(query, BACKBONE.preprocessing)[None])
    (near,) = open_index(tmp_path / "i").search(pixels, k=1).results
    assert near.found[0].path == query
    assert near.found[0].score == pytest.approx(1, abs=1e-3)


def test_a_folder_of_larger_images_is_described_at_224_pixels_and_stays_so(
    folder: Path, tmp_path: Path
) -> None:
    for path in sorted(folder.rglob("*.png")):
        if path.name[0] != "0":
            path.unlink()
            continue
        with Image.open(path) as image:
            image.resize((250, 240)).save(path)
    index = build_index(folder, tmp_path / "i")
    assert (index.embedding, index.preprocessing.height) == ("pretrained-224", 224)
    assert index.encoder_name == "compared by EfficientNet-Lite0 at 224 pixels"
    query = next(folder.rglob("*.png"))
    (near,) = (
        open_index(tmp_path / "i").search(to_float(read_image(query, index.preprocessing)[None]), k=1).results
    )
    assert near.found[0].path == query
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((25, 24)).save(path)
    assert build_index(folder, tmp_path / "i").embedding == "pretrained-224"
    with pytest.raises(ImageIndexError, match="holds the embedding pretrained-224, not pretrained"):
        build_index(folder, tmp_path / "i", embedding="pretrained")


def test_an_index_of_pretrained_features_keeps_its_embedding(
    folder: Path, trained: Run, tmp_path: Path
) -> None:
    build_index(folder, tmp_path / "i")
    assert build_index(folder, tmp_path / "i", embedding="auto").embedding == "pretrained"
    with pytest.raises(ImageIndexError, match="holds the embedding pretrained, not code"):
        build_index(folder, tmp_path / "i", trained.model_path, embedding="code")
    with pytest.raises(ConfigError, match="Codes need the model that makes them: add --model"):
        build_index(folder, tmp_path / "j", embedding="code")


def test_an_update_keeps_the_reduction_until_the_folder_has_outgrown_it(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    for path in files[12:]:
        path.rename(path.with_suffix(".kept"))
    first = build_index(folder, tmp_path / "i")
    for path in files[12:20]:
        path.with_suffix(".kept").rename(path)
    second = build_index(folder, tmp_path / "i")
    assert second.update is not None
    assert (second.update.encoded, second.update.kept) == (8, 12)
    codes = listed(second)
    assert all(np.array_equal(codes[path], code) for path, code in listed(first).items())
    for number in range(48):  # 68 in all: enough for principal directions
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"noise-{number}.png")
    third = build_index(folder, tmp_path / "i")
    assert third.update is not None
    assert (third.update.encoded, third.update.kept) == (68, 0)
    assert_same(third, build_index(folder, tmp_path / "anew"))


def test_a_pack_of_another_size_is_read_from_the_files_it_was_made_of(
    folder: Path, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    pack = pack_folder(folder, tmp_path / "small.pack", tiny_size)
    sharp = build_index(pack.path, tmp_path / "i")
    assert_same(sharp, build_index(folder, tmp_path / "j"))
    shutil.rmtree(folder)
    assert len(build_index(pack.path, tmp_path / "k")) == len(sharp)  # enlarged from the pixels of the pack


def another_model(path: Path, side: int = 32) -> Path:
    torch.manual_seed(1)
    save_model(path, Autoencoder(ModelConfig(code_size=8, widths=(4, 8)), Preprocessing(side, side)), {})
    return path


def test_what_does_not_fit_is_rejected_in_one_line(
    trained: Run, tiny_pack: Pack, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i"
    build_index(folder, out, trained.folder, embedding="code")
    other, larger = another_model(tmp_path / "other"), another_model(tmp_path / "larger", 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    before = (out / INDEX_NAME).read_bytes()
    cases: list[tuple[Callable[[], object], type[AutoencodeError], str]] = [
        (
            lambda: build_index(folder, out, other, embedding="code"),
            ImageIndexError,
            "made with another model",
        ),
        (lambda: open_index(out, larger), ImageIndexError, "made with another model"),
        (
            lambda: build_index(tmp_path / "full", out, trained.folder, embedding="code"),
            ImageIndexError,
            "is an index of",
        ),
        (
            lambda: build_index(tiny_pack.path, tmp_path / "j", larger, embedding="code"),
            ConfigError,
            "made with height 32, not 64; width 32, not 64",
        ),
        (
            lambda: build_index(tmp_path / "empty", tmp_path / "j", other, embedding="code"),
            ImageFolderError,
            "No images in",
        ),
        (
            lambda: build_index(tmp_path / "none", tmp_path / "j", other, embedding="code"),
            ImageFolderError,
            "No folder of",
        ),
        (
            lambda: build_index(folder, tmp_path / "full", other, embedding="code"),
            OutputError,
            "is not an index, and not",
        ),
        (
            lambda: build_index(folder, tmp_path / "full" / "mine.txt", other, embedding="code"),
            OutputError,
            "is a file",
        ),
        (
            lambda: build_index(
                folder, tmp_path / "j", Autoencoder(ModelConfig(), Preprocessing(32, 32)), embedding="code"
            ),
            ConfigError,
            "has no file yet",
        ),
        (lambda: build_index(folder, out, other, embedding="code", distance="l1"), AutoencodeError, "model"),  # type: ignore[arg-type]
        (lambda: open_index(tmp_path / "none"), ImageIndexError, "No index at .* autoencode index"),
    ]
    for case, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            case()
        assert "\n" not in str(caught.value)
    assert (out / INDEX_NAME).read_bytes() == before


def test_a_damaged_or_half_written_index_is_noticed(trained: Run, folder: Path, tmp_path: Path) -> None:
    build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    path = tmp_path / "i" / INDEX_NAME
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ImageIndexError, match="damaged"):
            open_index(tmp_path / "i")
        with pytest.raises(ImageIndexError, match="damaged"):
            build_index(folder, tmp_path / "i", trained.folder, embedding="code")


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
        lambda index: with_lists(index, packed=np.zeros((len(index.codes), 3), np.uint8)),
        lambda index: with_lists(index, packed=np.zeros((len(index.codes), 2), np.int64)),
        lambda index: with_lists(index, lengths=np.full(len(index.codes), np.nan, np.float32)),
        lambda index: with_lists(index, candidates=0),
        lambda index: with_lists(index, candidates=10**9),
        lambda index: with_rounding(index, centre=np.zeros(3, np.float32)),
        lambda index: with_rounding(index, projection=index.codes[:2].T.copy()),
        lambda index: with_rounding(index, levels=np.zeros((4, 15), np.float32)),
        lambda index: with_rounding(index, levels=np.tile(np.arange(16, 0, -1, np.float32), (4, 1))),
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
    return build_index(photos, tmp_path_factory.mktemp("index") / "i", trained.folder, embedding="code").path


def with_lists(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    count, size = index.codes.shape
    levels = np.tile(np.arange(16, dtype=np.float32), (4, 1))
    lists = InvertedLists(
        Rounding(np.zeros(size, np.float32), np.eye(size, 4, dtype=np.float32), levels),
        centroids=index.codes[:2, :4].copy(),
        assignment=np.zeros(count, np.int64),
        packed=np.zeros((count, 2), np.uint8),
        lengths=np.ones(count, np.float32),
        nprobe=1,
        candidates=60,
        recall=0.9,
    )
    return replace(index, lists=replace(lists, **changes))


def with_rounding(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    lists = with_lists(index).lists
    assert lists is not None
    return with_lists(index, rounding=replace(lists.rounding, **changes))


def with_settings(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    return replace(index, settings=replace(index.settings, **changes))


def with_space(index: StoredIndex, **changes: Any) -> StoredIndex:  # noqa: ANN401
    return with_settings(index, vector_space=replace(index.settings.vector_space, **changes))


def test_codes_that_are_not_finite_are_rejected(trained: Run, folder: Path, tmp_path: Path) -> None:
    model = load_model(trained.model_path)
    model.to_mean.bias.fill_(float("nan"))
    with pytest.raises(ImageIndexError, match="not finite"):
        build_index(folder, tmp_path / "i", model, embedding="code")
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
            build_index(folder, copy, model, embedding="code")
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
    old = build_index(folder, tmp_path / "old", trained.folder, embedding="code")
    for path in sorted(folder.rglob("*.png"))[:5]:
        path.unlink()
    Image.new("RGB", (40, 40), "blue").save(folder / "new.png")
    new = build_index(folder, tmp_path / "anew", trained.folder, embedding="code")
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
        assert_same(build_index(folder, tmp_path / f"i{moment}", trained.folder, embedding="code"), new)
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
            build_index(folder, tmp_path / "i", trained.folder, embedding="code")
        os.kill(process.pid, signal.SIGKILL)
    started = time.monotonic()
    build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    assert time.monotonic() - started < 50


def test_a_query_of_another_kind_is_close_to_nothing_and_a_copy_of_an_odd_image_is_close_to_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for seed in range(240):
        grain = np.random.default_rng(seed).normal(120, 9, (48, 48)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grain).save(folder / f"{seed}.png")
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    odd = Image.fromarray(colours).resize((48, 48), Image.Resampling.NEAREST)
    odd.save(folder / "odd.png")
    odd.save(tmp_path / "copy.bmp")
    other = np.indices((48, 48)).sum(0) // 8 % 2 * 255
    Image.fromarray(other.astype(np.uint8)).save(tmp_path / "other.png")
    fresh = np.random.default_rng(999).normal(120, 9, (48, 48)).clip(0, 255).astype(np.uint8)
    Image.fromarray(fresh).save(tmp_path / "fresh.png")
    index = build_index(folder, tmp_path / "i")
    queries = [tmp_path / name for name in ("copy.bmp", "other.png", "fresh.png")]
    copy, foreign, like = index.search(queries, 3).results
    assert copy.found[0].path.name == "odd.png"
    assert [one.nothing_close for one in (copy, foreign, like)] == [False, True, False]
