"""Indexes kept by LanceDB: several folders, inverted lists, kills, and damaged or forged tables."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencode import (
    AutoencodeError,
    ConfigError,
    ImageIndexError,
    MissingExtraError,
    Run,
    build_index,
    evaluate_search,
    find_duplicates,
    open_index,
    remove_source,
)
from autoencode.configuration import Distance
from autoencode.data.entries import packed_entry
from autoencode.index.lance import LanceIndex, LanceStore, find_tables, update
from autoencode.index.lance.tables import Tables
from autoencode.index.lance.update import maintain_vector_index

lancedb = pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'autoencode[lance]'")


@pytest.fixture(scope="module")
def made(trained: Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index. Do not change it."""
    out = tmp_path_factory.mktemp("lance") / "i"
    build_index(photos, out, trained.folder, embedding="code", store="lance")
    return out


def test_an_index_is_of_several_folders_and_each_is_updated_alone(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i"
    counts = [
        len(build_index(folder / name, out, trained.folder, embedding="code", store="lance"))
        for name in ("coast", "forest", "night")
    ]
    assert counts == [16, 32, 48]
    next((folder / "forest").glob("*.png")).unlink()
    updated = build_index(folder / "forest", out, trained.folder, embedding="code")
    assert updated.update is not None
    assert (len(updated), updated.update.kept, updated.update.removed) == (47, 15, 1)
    (near,) = open_index(out).search(next(folder.rglob("*.png")), 100).results
    assert {one.path for one in near.found} | {near.query} == set(folder.rglob("*.png"))


def test_what_needs_every_code_is_rejected(made: Path) -> None:
    index = open_index(made)
    for use in (evaluate_search, lambda index: find_duplicates(index.path)):
        with pytest.raises(ConfigError, match=r"needs an index that is held in memory.*--store file"):
            use(index)


def test_another_distance_is_rejected(trained: Run, photos: Path, made: Path) -> None:
    with pytest.raises(ConfigError, match="compares codes by whitened"):
        build_index(photos, made, trained.folder, embedding="code", distance="l2")


def test_without_lancedb_the_command_that_installs_it_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[lance\]'"):
        open_index(made)


def filled(tables: Tables, count: int, seed: int, source: str = "/many") -> np.ndarray:  # type: ignore[type-arg]
    """Add `count` images with random vectors of unit length, which are returned."""
    vectors = np.random.default_rng(seed).normal(size=(count, tables.size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries = [
        packed_entry(f"{seed}/{number}.png", 0, 0, f"{number:064x}", number) for number in range(count)
    ]
    tables.add([f"{seed:016x}{number:016x}" for number in range(count)], source, entries, vectors)
    return vectors


def test_many_images_are_searched_by_inverted_lists_and_new_ones_are_found_at_once(
    made: Path, tmp_path: Path
) -> None:
    tables = find_tables(Path(shutil.copytree(made, tmp_path / "i")))
    assert tables is not None
    name = tables.sources()[0].name
    vectors = filled(tables, 3000, 1, name)
    maintain_vector_index(tables, exact_limit=4000)
    assert not tables.vector_index.nlist
    maintain_vector_index(tables, exact_limit=1000)
    assert tables.vector_index.nlist == 55
    index = LanceIndex(tables)
    assert not index.is_exact
    assert index.recall >= 0.99

    def share_found(vectors: np.ndarray) -> float:  # type: ignore[type-arg]
        hits = []
        for vector in vectors[:50]:
            wanted = set(np.argsort(-vectors @ vector)[:10].tolist())
            rows, _ = tables.nearest(vector, 10, "label = '1'", index._vector_index.nprobe)
            hits.append(len(wanted & {int(Path(row.path).stem) for row in rows}) / 10)
        return float(np.mean(hits))

    assert share_found(vectors) >= 0.97
    new = filled(tables, 100, 2, name)
    rows, found = tables.nearest(new[7], 1, None, 1)
    assert rows[0].path == "2/7.png"
    np.testing.assert_array_equal(found[0], new[7])
    assert tables.indexed() == 3048
    maintain_vector_index(tables, exact_limit=1000)  # too few to extend the vector index
    assert tables.indexed() == 3048
    filled(tables, 500, 3, name)
    maintain_vector_index(tables, exact_limit=1000)
    assert tables.indexed() == tables.count() == 3648
    # More than any list holds, with a label that is rare.
    assert len(tables.nearest(new[7], 100, "label = '2'", 1)[0]) == 100


def test_what_is_there_is_not_added_twice(made: Path, tmp_path: Path) -> None:
    tables = find_tables(Path(shutil.copytree(made, tmp_path / "i")))
    assert tables is not None
    filled(tables, 20, 1)
    filled(tables, 30, 1)
    assert tables.count() == 48 + 30


def test_writers_that_do_not_see_each_other_leave_one_of_each_image(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "i"))
    opened = [find_tables(out) for _ in range(4)]
    threads = [threading.Thread(target=filled, args=(tables, 5000, 1)) for tables in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tables = find_tables(out)
    assert tables is not None
    assert tables.count() == 48 + 5000


# Builds an index that is killed before its third commit.
KILLED = """
import os, signal, sys
from autoencode.index import build_index, request
from autoencode.index.lance import tables, update
model, folder, out = sys.argv[1:]
update._VALUES_WRITTEN, update.SAMPLE, request.INFERENCE_BATCH = 64, 8, 8
calls, commit = 0, tables.Tables._commit
def counted(self, table, write):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, table, write)
tables.Tables._commit = counted
build_index(folder, out, model, embedding="code", store="lance")
"""


class Ended(BaseException):
    """What ends an update between two commits, as a kill does."""


def ended(trained: Run, folder: Path, out: Path, moment: int) -> None:
    """Update an index, and end before the commit of this number."""
    calls, commit = 0, Tables._commit

    def counted(self: Tables, table: Any, write: Callable[[], Any]) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == moment:
            raise Ended
        return commit(self, table, write)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Ended):
        patch.setattr(Tables, "_commit", counted)
        patch.setattr(update, "_VALUES_WRITTEN", 64)
        patch.setattr(update, "SAMPLE", 8)
        patch.setattr("autoencode.index.request.INFERENCE_BATCH", 8)
        build_index(folder, out, trained.folder, embedding="code", store="lance")


def test_a_killed_build_is_no_index_until_it_was_run_again(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i"
    ended(trained, folder, out, 1)
    with pytest.raises(ImageIndexError, match="is not finished"):
        open_index(out)
    command = [sys.executable, "-c", KILLED, trained.folder, folder, out]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    with pytest.raises(ImageIndexError, match=f"Run again: autoencode index {folder} --out {out}"):
        open_index(out)
    again = build_index(folder, out, trained.folder, embedding="code")
    assert again.update is not None
    assert (again.update.encoded, again.update.kept) == (40, 8)  # what was written was kept
    next(folder.rglob("*.png")).unlink()
    ended(trained, folder, out, 2)  # an update, of what was whole
    ended(trained, folder, out, 2)
    assert open_index(out).unfinished == (str(folder),)
    assert len(build_index(folder, out, trained.folder, embedding="code")) == 47
    assert open_index(out).unfinished == ()


def test_an_update_under_way_is_named(trained: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "i"
    build_index(folder / "coast", out, trained.folder, embedding="code", store="lance")
    ended(trained, folder / "night", out, 2)
    index = open_index(out)
    assert index.unfinished == (str(folder / "night"),)
    assert index.search(next(folder.rglob("*.png")), 3).results


def test_images_of_a_lost_version_are_added_again(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "i"
    monkeypatch.setattr(Tables, "tidy", lambda _: None)  # a version of its own
    for name in ("coast", "night"):
        build_index(folder / name, out, trained.folder, embedding="code", store="lance")
    newest = min((out / "images.lance" / "_versions").iterdir())  # they count down
    newest.unlink()
    assert len(open_index(out)) == 16
    again = build_index(folder / "night", out, trained.folder, embedding="code")
    assert again.update is not None
    assert (len(again), again.update.encoded, again.update.kept) == (32, 16, 0)


def table(out: Path, name: str) -> Any:  # noqa: ANN401
    return lancedb.connect(str(out)).open_table(name)


def flip(out: Path) -> None:
    content = bytearray(table(out, "settings").to_arrow()["settings"][0].as_py())
    content[-3] ^= 1
    table(out, "settings").update(values={"settings": bytes(content)})


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (flip, "does not match its sha256"),
        (lambda out: table(out, "settings").update(values={"settings": b"no file"}), "not a lance-index"),
        (lambda out: table(out, "images").update(values={"path": "../../secret.png"}), "not a path inside"),
        (lambda out: table(out, "images").update(values={"path": "a%00/../b"}), "not a path inside"),
        (lambda out: table(out, "images").update(values={"source": "/else"}), "not among its folders"),
        (lambda out: table(out, "images").drop_columns(["label"]), "other tables"),
        (lambda out: table(out, "sources").drop_columns(["folder"]), "could not be read"),
        (lambda out: shutil.rmtree(out / "images.lance"), "could not be read"),
        (lambda out: shutil.rmtree(out / "sources.lance" / "_versions"), "could not be read"),
        (lambda out: shutil.rmtree(out / "images.lance" / "data"), "could not be read"),
        (lambda out: truncate(out / "images.lance" / "data"), "could not be read"),
        (lambda out: truncate(out / "images.lance" / "_versions"), "could not be read"),
        (lambda out: spoil(out / "settings.lance" / "_versions"), "could not be read"),
        (lambda out: table(out, "images").update(values={"sha256": None}), "a name is not text"),
        (lambda out: shutil.rmtree(out / "settings.lance"), "No index at"),
    ],
)
def test_tables_that_are_damaged_or_forged_are_rejected_in_one_line(
    forge: Callable[[Path], object], message: str, made: Path, photos: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "i"))
    forge(out)
    with pytest.raises(AutoencodeError, match=message) as caught:
        open_index(out).search(next(photos.rglob("*.png")), 3)
    assert "\n" not in str(caught.value)


def truncate(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:20])


def spoil(folder: Path) -> None:
    """Put what Protobuf cannot read into the middle."""
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:20] + b"\x0c" * (len(content) - 40) + content[-20:])


def test_images_without_settings_are_not_taken_for_others(
    trained: Run, folder: Path, made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "i"))
    shutil.rmtree(out / "settings.lance")
    for _ in range(2):
        with pytest.raises(ImageIndexError, match="lost what their codes are"):
            build_index(folder, out, trained.folder, embedding="code", store="lance")


def test_codes_are_written_as_they_are_made(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "_VALUES_WRITTEN", 8 * 5)
    monkeypatch.setattr(update, "SAMPLE", 7)
    monkeypatch.setattr("autoencode.index.request.INFERENCE_BATCH", 4)
    sizes = []
    add = Tables.add

    def counted(self: Tables, ids: Any, source: str, entries: Any, vectors: Any) -> None:  # noqa: ANN401
        sizes.append(len(vectors))
        add(self, ids, source, entries, vectors)

    monkeypatch.setattr(Tables, "add", counted)
    index = build_index(
        folder, tmp_path / "i", trained.folder, embedding="code", store="lance", distance="cosine"
    )
    assert sizes == [8] * 6
    whole = build_index(folder, tmp_path / "j", trained.folder, embedding="code", distance="cosine")
    query = next(folder.rglob("*.png"))
    one, other = (opened.search(query, 100).results[0].found for opened in (index, whole))
    assert [near.path for near in one] == [near.path for near in other]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_percentiles_are_those_of_an_index_in_a_file(
    folder: Path, tmp_path: Path, distance: Distance
) -> None:
    query = tmp_path / "query.png"
    Image.effect_noise((64, 64), 80).save(query)
    places = {store: tmp_path / store for store in ("file", "lance")}
    for store, place in places.items():
        build_index(folder / "coast", place, embedding="pretrained", distance=distance, store=store)  # type: ignore[arg-type]
    queries = [query, next(folder.glob("coast/*"))]
    found = [open_index(place).search(queries, 100).results for place in places.values()]
    for one, other in zip(*found, strict=True):
        wanted, percentiles = ([near.percentile for near in result.found] for result in (one, other))
        assert percentiles == pytest.approx(wanted)
        assert one.found[0].percentile is not None
    # Further images are measured, too.
    build_index(folder / "night", places["lance"])
    tables = find_tables(places["lance"])
    assert tables is not None and tables.settings.own is not None
    assert len(tables.settings.own.scores) == 32


def test_the_images_of_a_folder_can_be_removed(trained: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "i"
    for name in ("coast", "night"):
        build_index(folder / name, out, trained.folder, embedding="code", store="lance")
    packs = set((out / "packs").iterdir())
    shutil.rmtree(folder / "coast")
    assert remove_source(out, folder / "coast") == 16
    index = open_index(out)
    assert (len(index), index.unfinished) == (16, ())
    (near,) = index.search(next(folder.rglob("*.png")), 100).results
    assert {one.path for one in near.found} <= set((folder / "night").iterdir())
    assert len(set((out / "packs").iterdir())) == len(packs) - 1
    versions = lancedb.connect(str(out)).open_table("images").list_versions()
    assert len(versions) == 1, "what was removed can still be read"
    with pytest.raises(ConfigError, match=f"no images of {folder / 'coast'}. It is of: {folder / 'night'}"):
        remove_source(out, folder / "coast")


def test_a_removal_that_was_killed_goes_on(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "i"
    for name in ("coast", "night"):
        build_index(folder / name, out, trained.folder, embedding="code", store="lance")
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "remove_source", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove_source(out, folder / "coast")
    assert open_index(out).unfinished == (str(folder / "coast"),)
    assert remove_source(out, folder / "coast") == 0
    assert open_index(out).unfinished == ()
    assert len(build_index(folder / "coast", out, trained.folder, embedding="code")) == 32


def test_an_index_in_a_file_has_no_folder_to_remove(trained: Run, folder: Path, tmp_path: Path) -> None:
    build_index(folder, tmp_path / "file", trained.folder, embedding="code")
    with pytest.raises(ImageIndexError, match="is an index of one folder: delete it"):
        remove_source(tmp_path / "file", folder)
    with pytest.raises(ImageIndexError, match="No index at"):
        remove_source(tmp_path / "none", folder)


def test_a_percent_sign_that_escapes_no_byte_stays(made: Path, photos: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "i"))
    table(out, "images").update(values={"path": "%41x%2E%C3%25.png"})
    found = open_index(out).search(next(photos.rglob("*.png")), 3).results[0].found
    assert {near.path.name for near in found} == {"%41x%2E\udcc3%.png"}


def test_images_that_another_folder_of_that_name_had_are_not_replaced(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i"
    build_index(folder / "coast", out, trained.folder, embedding="code", store="lance")
    shutil.rmtree(folder / "coast")
    shutil.copytree(folder / "night", folder / "coast")
    with pytest.raises(ConfigError, match=r"has 16 images of .*, and none of them is there now"):
        build_index(folder / "coast", out, trained.folder, embedding="code")
    assert len(open_index(out)) == 16
    remove_source(out, folder / "coast")
    assert len(build_index(folder / "coast", out, trained.folder, embedding="code")) == 16


def test_an_update_whose_images_another_removed_is_not_called_whole(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "i"
    monkeypatch.setattr(LanceStore, "_writing", lambda *_: contextlib.nullcontext())  # as in storage
    added = Tables.add

    def removed_meanwhile(self: Tables, *arguments: Any) -> None:  # noqa: ANN401
        added(self, *arguments)
        find_tables(out).remove_images(str(folder))  # type: ignore[union-attr]

    monkeypatch.setattr(Tables, "add", removed_meanwhile)
    with pytest.raises(ImageIndexError, match="Another process changed the images"):
        build_index(folder, out, trained.folder, embedding="code", store="lance")


def test_an_index_finds_a_model_that_was_moved_once_it_was_updated(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "i", Path(shutil.copy(trained.model_path, tmp_path / "a.safetensors"))
    build_index(photos, out, model, embedding="code", store="lance")
    model = model.rename(tmp_path / "b.safetensors")
    query = next(photos.rglob("*.png"))
    with pytest.raises(AutoencodeError):
        open_index(out).search(query, 3)
    build_index(photos, out, model, embedding="code")
    assert open_index(out).search(query, 3).results
