"""What an index promises, of each store that may keep it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests.conftest import change_some

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageIndexError,
    Index,
    ModelConfig,
    OutputError,
    Preprocessing,
    Run,
    build_index,
    load_model,
    open_index,
    remove_source,
    save_model,
)
from autoencode.configuration import Store
from autoencode.data.entries import split_of
from autoencode.data.pack import open_pack
from autoencode.index import STORES, store_at
from autoencode.index.interface import IndexStore


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'autoencode[lance]'")
    return str(request.param)


def found(index: Index, queries: object, k: int = 100, **chosen: object) -> list[list[tuple[str, float]]]:
    """Names and scores of what is found for each query."""
    results = index.search(queries, k, **chosen).results  # type: ignore[arg-type]
    return [[(near.path.name, near.score) for near in result.found] for result in results]


def assert_same(one: list[list[tuple[str, float]]], other: list[list[tuple[str, float]]]) -> None:
    assert [[name for name, _ in near] for near in one] == [[name for name, _ in near] for near in other]
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose([score for _, score in left], [score for _, score in right], atol=1e-5)


def test_links_to_the_query_take_no_place_among_the_neighbours(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    query = sorted(folder.rglob("*.png"))[0]
    for number in range(5):
        query.with_name(f"link{number}.png").symlink_to(query)
    copy = Path(shutil.copy(query, query.with_name("copy.png")))
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    everything = [near.path for near in index.search(query, 100).results[0].found]
    assert len(everything) == 48
    assert (everything[0], query in everything) == (copy, False)
    assert [near.path for near in index.search(query, 3).results[0].found] == everything[:3]


@pytest.mark.parametrize("distance", ["cosine", "l2", "whitened"])
def test_what_is_found_is_what_comparing_every_code_finds(
    trained: Run, folder: Path, tmp_path: Path, store: str, distance: str
) -> None:
    index = build_index(
        folder, tmp_path / "i", trained.folder, embedding="code", store=store, distance=distance
    )  # type: ignore[arg-type]
    paths = sorted(folder.rglob("*.png"))
    model = load_model(trained.model_path)
    codes = model.encode(model.read(paths)).numpy().astype(np.float64)
    queries = codes[:4] + 0.05
    vectors, asked = codes, queries
    if distance == "whitened":
        _, first = np.unique(codes.round(4), axis=0, return_index=True)
        space = index.vector_space
        assert space.mean is not None
        np.testing.assert_allclose(space.mean, codes[first].mean(0), atol=1e-4)
        vectors, asked = ((part - space.mean) @ space.whitening for part in (codes, queries))  # type: ignore[misc]
    if distance == "l2":
        scores = np.linalg.norm(asked[:, None] - vectors, axis=-1)
    else:
        unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (asked, vectors)]
        scores = unit[0] @ unit[1].T
    best = np.sort(scores if distance == "l2" else -scores, axis=1)[:, :10]
    for opened in (index, open_index(tmp_path / "i")):
        assert (len(opened), opened.distance, opened.is_exact, opened.recall) == (48, distance, True, 1)
        got = found(opened, queries.astype(np.float32), 10)
        by_name = {path.name: place for place, path in enumerate(paths)}
        for query, near in enumerate(got):
            np.testing.assert_allclose([abs(score) for _, score in near], abs(best[query]), atol=2e-4)
            for name, score in near:
                assert score == pytest.approx(scores[query, by_name[name]], abs=2e-4)


def test_an_update_encodes_only_what_is_new_and_finds_what_one_made_anew_finds(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store, distance="cosine")  # type: ignore[arg-type]
    change_some(folder)
    updated = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    assert updated.update is not None
    assert (updated.update.encoded, updated.update.kept, updated.update.removed) == (2, 46, 2)
    anew = build_index(folder, tmp_path / "anew", trained.folder, embedding="code", distance="cosine")
    assert len(updated) == len(anew) == 49
    queries = sorted(folder.rglob("*.png"))[:5]
    for index in (updated, open_index(tmp_path / "i")):
        assert_same(found(index, queries), found(anew, queries))
    assert not any(near.is_gone for near in updated.search(queries[0], 100).results[0].found)


def test_a_label_and_a_split_choose_among_the_images(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    shutil.copy(next((folder / "coast").glob("*.png")), folder / "night" / "copy.png")
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    entries = open_pack(next(path.parent for path in (tmp_path / "i").rglob("pack.json"))).entries
    query = index_of_codes(trained, folder)
    everything = dict(found(index, query)[0])
    for label, split in (("night", None), (None, "train"), ("coast", "train"), ("forest", "validation")):
        wanted = {
            Path(entry.path).name
            for entry in entries
            if label in (None, entry.label) and split in (None, split_of(str(entry.sha256)))
        }
        (near,) = found(index, query, label=label, split=split)
        assert {name for name, _ in near} == wanted
        assert index.count(label, split) == len(wanted) > 0  # type: ignore[arg-type]
        assert dict(near) == pytest.approx({name: everything[name] for name in wanted})
        assert [score for _, score in near] == sorted((score for _, score in near), reverse=True)
    assert {near.label for near in index.search(query, label="night").results[0].found} == {"night"}
    for label in ("nigh", "night' OR 'a' = 'a", "NIGHT", ""):
        assert index.count(label) == 0
        with pytest.raises(ConfigError, match="has the label"):
            index.search(query, label=label)
    with pytest.raises(ConfigError, match="Unknown split 'tset'"):
        index.search(query, split="tset")  # type: ignore[arg-type]


def index_of_codes(trained: Run, folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    model = load_model(trained.model_path)
    return np.asarray(model.encode(model.read([next(folder.rglob("*.png"))])))


def test_names_of_any_bytes_are_found_again(trained: Run, folder: Path, tmp_path: Path, store: str) -> None:
    names = ["100% o'clock.png", "%41.png", "naïve \N{SNOWMAN}.png", os.fsdecode(b"\xff\xfe.png")]
    odd = folder / "it's 5%"
    odd.mkdir()
    for number, (name, path) in enumerate(zip(names, sorted(folder.rglob("*.png")), strict=False)):
        path.rename(odd / name if number else folder / name)
    build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    index = open_index(tmp_path / "i")
    (near,) = index.search(index_of_codes(trained, folder), 100).results
    assert {one.path for one in near.found} == set(folder.rglob("*.png"))
    assert index.count("it's 5%") == 3
    assert set(index.files(Path(names[3]))) >= {odd / names[3]}
    (odd / names[3]).unlink()
    assert build_index(folder, tmp_path / "i", trained.folder, embedding="code").count("it's 5%") == 2


def test_nothing_is_written_where_nothing_changed(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    out = tmp_path / "i"
    build_index(folder, out, trained.folder, embedding="code", store=store)  # type: ignore[arg-type]

    def written() -> dict[Path, int]:
        # filelock opens its file anew, which the oldest version allowed writes.
        files = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    again = build_index(folder, out, trained.folder, embedding="code")
    assert again.update is not None
    assert (again.update.encoded, again.update.kept) == (0, 48)
    assert written() == before


def test_another_model_is_rejected_by_name(trained: Run, folder: Path, tmp_path: Path, store: str) -> None:
    out = build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store).path  # type: ignore[arg-type]
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_model(other, Autoencoder(ModelConfig(code_size=8, widths=(4, 8)), Preprocessing(32, 32)), {})
    for use in (lambda: open_index(out, other), lambda: build_index(folder, out, other, embedding="code")):
        with pytest.raises(ImageIndexError, match="made with another model") as caught:
            use()
        assert load_model(other).digest[:12] in str(caught.value)
    assert found(open_index(out, trained.folder), next(folder.rglob("*.png")), 1)


def test_the_other_store_leaves_an_index_alone(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    other = next(one for one in STORES if one != store)
    with pytest.raises(OutputError, match=f"Choose another output, or --store {store}"):
        build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=other)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(OutputError, match="and not empty"):
        build_index(folder, tmp_path / "full", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="is a file"):
        build_index(folder, tmp_path / "full" / "mine.txt", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown store 'cloud'"):
        build_index(folder, tmp_path / "j", trained.folder, embedding="code", store="cloud")  # type: ignore[arg-type]
    with pytest.raises(ImageIndexError, match="No index at"):
        open_index(tmp_path / "full")


def test_two_processes_do_not_update_one_folder(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from autoencode.atomic import exclusive\n"
        "with exclusive(Path(sys.argv[1]), '', RuntimeError): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path / "i"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ImageIndexError, match="Another process is writing"):
            build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
        os.kill(process.pid, signal.SIGKILL)


def test_a_store_is_one_entry_and_the_others_work_without_it(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(STORES, "lance")
    query = next(folder.rglob("*.png"))
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    assert found(index, query, 3) == found(open_index(tmp_path / "i"), query, 3)
    for store in ("lance", "cloud"):
        with pytest.raises(ConfigError, match=f"Unknown store '{store}'. Choose file.$"):
            build_index(folder, tmp_path / "j", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^No index can be at s3://b/i\. Give a folder\.$"):
        open_index("s3://b/i")
    with pytest.raises(ConfigError, match=r"^Cannot keep an index at s3://b/i\. Give a folder\.$"):
        build_index(folder, "s3://b/i", trained.folder, embedding="code")
    with pytest.raises(ImageIndexError, match="is an index of one folder"):
        remove_source(tmp_path / "i", folder)


def test_the_store_of_an_index_is_found_by_what_lies_at_its_path(
    trained: Run, folder: Path, tmp_path: Path, store: str
) -> None:
    assert store_at(tmp_path) is None
    build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    assert store_at(tmp_path / "i") is STORES[store]  # type: ignore[index]
    (tmp_path / "i" / "notes.txt").touch()
    assert len(build_index(folder, tmp_path / "i", trained.folder, embedding="code")) == 48


def test_each_store_is_asked_once_for_an_index_that_is_opened(
    trained: Run, folder: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is a request to storage, for an index that lies there."""
    build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    asked: list[str] = []
    for kind in map(type, STORES.values()):

        def holds(self: IndexStore, location: Path | str, ask: Any = kind.holds) -> bool:  # noqa: ANN401
            asked.append(self.name)
            return bool(ask(self, location))

        monkeypatch.setattr(kind, "holds", holds)
    open_index(tmp_path / "i")
    assert asked == list(STORES)[: list(STORES).index(store) + 1]  # type: ignore[arg-type]
    asked.clear()
    with pytest.raises(ImageIndexError, match="No index at"):
        open_index(tmp_path / "none")
    assert asked == list(STORES)


def test_the_stores_are_the_choices_of_settings_and_of_the_command_line() -> None:
    assert tuple(STORES) == get_args(Store)
    assert [store.name for store in STORES.values()] == list(STORES)


def test_an_index_of_an_earlier_format_is_rejected_by_its_number(
    trained: Run, folder: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "autoencode.index.memory" if store == "file" else "autoencode.index.lance.tables"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.FORMAT_VERSION", 1)
        with pytest.raises(ImageIndexError) if store == "lance" else contextlib.nullcontext():
            build_index(folder, tmp_path / "i", trained.folder, embedding="code", store=store)  # type: ignore[arg-type]
    for use in (
        lambda: open_index(tmp_path / "i"),
        lambda: build_index(folder, tmp_path / "i", trained.folder, embedding="code"),
    ):
        with pytest.raises(
            ImageIndexError,
            match=r"format 1; this one reads format 4\)\. .*delete the index",
        ):
            use()
