"""Indexes in a store that speaks S3, and several writers at once; asked for by make test-scale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoencode import ImageIndexError, Run, StorageError, build_index, open_index, pack_folder, remove_source
from autoencode.index.lance import find_tables
from autoencode.storage import RemoteFolder

pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'autoencode[lance]'")
pytestmark = pytest.mark.scale


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an index may be."""
    if request.param == "folder":
        return str(tmp_path / "i")
    return str(request.getfixturevalue("bucket")).replace("photos.pack", "i")


def test_an_index_in_storage_is_built_updated_and_searched(
    bucket: str, trained: Run, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    url = bucket.replace("photos.pack", "i")
    built = build_index(folder, url, trained.folder, embedding="code", store="lance", distance="cosine")
    assert (len(built), built.path) == (48, url)
    query, gone = sorted(folder.rglob("*.png"))[:2]
    gone.unlink()
    updated = build_index(folder, url, trained.folder, embedding="code")
    assert updated.update is not None
    assert (updated.update.encoded, updated.update.kept, updated.update.removed) == (0, 47, 1)
    index, whole = (
        open_index(url),
        build_index(folder, tmp_path / "w", trained.folder, embedding="code", distance="cosine"),
    )
    for chosen in ({}, {"label": "night"}, {"split": "train"}):
        one, other = (opened.search(query, 100, **chosen).results[0] for opened in (index, whole))  # type: ignore[arg-type]
        assert [near.path for near in one.found] == [near.path for near in other.found]
    build_index(folder / "coast", url, trained.folder, embedding="code")
    assert RemoteFolder(url + "/packs").listing()
    assert [remove_source(url, one) for one in (folder, folder / "coast")] == [47, 15]
    assert not RemoteFolder(url + "/packs").listing()


def test_an_index_of_a_pack_in_storage_needs_no_disk(bucket: str, trained: Run, photos: Path) -> None:
    pack_folder(photos, bucket, size=32, workers=1)
    index = build_index(
        bucket, bucket.replace("photos.pack", "i"), trained.folder, embedding="code", store="lance"
    )
    assert len(index) == 48


def test_what_is_wrong_with_storage_is_one_line(
    bucket: str, trained: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageIndexError, match="No index at s3://images/i"):
        open_index("s3://images/i")
    with pytest.raises(StorageError, match="Could not find s3://none/i"):
        build_index(photos, "s3://none/i", trained.folder, embedding="code", store="lance")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="No credentials for s3://images/i"):
        open_index("s3://images/i")


# Adds ten commits of five images each, a deletion after each, to an index that others write to.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from autoencode.index.lance import find_tables
from autoencode.data.entries import packed_entry
location, number = sys.argv[1], int(sys.argv[2])
tables = find_tables(location if "://" in location else Path(location))
for commit in range(10):
    rows = [number * 1000 + commit * 10 + row for row in range(5)]
    entries = [packed_entry(f"{row}.png", 0, 0, f"{row:064x}", row) for row in rows]
    vectors = np.full((5, tables.size), number + 1, np.float32)
    tables.add([f"{row:032x}" for row in rows], f"/{number}", entries, vectors)
    tables.delete([f"{rows[0]:032x}"])
"""


def test_three_writers_of_ten_commits_lose_nothing(location: str, trained: Run, photos: Path) -> None:
    build_index(photos, location, trained.folder, embedding="code", store="lance")
    command = [sys.executable, "-c", WRITER, location]
    writers = [
        subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, env=os.environ)
        for number in range(3)
    ]
    for writer in writers:
        _, error = writer.communicate(timeout=300)
        assert writer.returncode == 0, error.decode()
    tables = find_tables(location if "://" in location else Path(location))
    assert tables is not None
    assert tables.count() == 48 + 3 * 10 * 4
    for number in range(3):
        ids, _ = tables.ids_of(f"/{number}")
        wanted = {
            b"%032x" % (number * 1000 + commit * 10 + row) for commit in range(10) for row in range(1, 5)
        }
        assert set(ids.tolist()) == wanted


def test_two_that_index_one_pack_leave_one_of_each(bucket: str, trained: Run, photos: Path) -> None:
    url, packs = bucket.replace("photos.pack", "i"), [f"{bucket}/{name}" for name in ("coast", "night")]
    for pack, name in zip(packs, ("coast", "night"), strict=True):
        pack_folder(photos / name, pack, size=32, workers=1)
    build_index(photos / "forest", url, trained.folder, embedding="code", store="lance")
    program = (
        "import sys; from autoencode import build_index; "
        "build_index(*sys.argv[1:], embedding='code', store='lance')"
    )
    runs = []
    for number, pack in enumerate([*packs, packs[1]]):
        cache = f"{os.environ['AUTOENCODE_CACHE']}{number}"
        command = [sys.executable, "-c", program, str(trained.folder), pack, url]
        environment = {**os.environ, "AUTOENCODE_CACHE": cache}
        runs.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment))
    for run in runs:
        _, error = run.communicate(timeout=300)
        assert run.returncode == 0, error.decode()
    index = open_index(url)
    assert (len(index), index.unfinished) == (48, ())
