"""Functions of images give the same, here and on a cluster that loses nodes."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.clusters import LocalCluster
from torch import Tensor

from autoencode import ImageFolderError, Limits, Pack, Run, open_index
from autoencode.data.loader import batch_slices, batches
from autoencode.data.mapping import map_files, map_pack
from autoencode.index.memory import INDEX_NAME
from autoencode.pixels import to_float


def means(images: Tensor) -> NDArray[np.float64]:
    return images.double().mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("images", range(12))
def test_slices_are_the_batches_that_a_pack_is_read_in(images: int, tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()[:images]
    read = [len(batch) for batch in batches(tiny_pack, rows, 4)]
    parts = [rows[part] for part in batch_slices(images, 4)]
    assert [len(part) for part in parts] == read
    assert np.array_equal(np.concatenate([rows[:0], *parts]), rows)


def test_rows_of_a_pack_go_through_in_the_order_given(tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()[::-1].copy()
    made = [part["mean"] for part in map_pack(lambda x: {"mean": means(x)}, tiny_pack, rows, 5)]
    assert len(made) > 1
    assert np.array_equal(np.concatenate(made), means(to_float(tiny_pack.pixels(rows))))


def test_files_that_cannot_be_read_are_passed_over_with_the_reason(
    photos: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    paths = sorted(path for path in photos.rglob("*") if path.is_file())[:5]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = [paths[0], broken, *paths[1:]]
    skipped: list[tuple[Path, str]] = []
    arguments = (2, tiny_pack.preprocessing, Limits(), skipped)
    read, values = zip(*map_files(means, mixed, *arguments), strict=True)
    assert [path for part in read for path in part] == paths
    assert len(np.concatenate(values)) == len(paths)
    assert [path for path, _ in skipped] == [broken]
    with pytest.raises(ImageFolderError, match="No image could be used, of 1 given"):
        list(map_files(means, [broken], *arguments))


def verb(*arguments: object) -> str:
    """Run a command that must succeed and say nothing on stderr; return what it says."""
    command = [sys.executable, "-m", "autoencode", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.scale
def test_an_index_made_on_a_cluster_is_that_made_here(
    ray_cluster: LocalCluster, trained: Run, photos: Path, tmp_path: Path
) -> None:
    said = verb(
        "index",
        photos,
        "--model",
        trained.folder,
        "--embedding",
        "code",
        "--out",
        tmp_path / "there",
        "--ray",
        ray_cluster.address,
    )
    assert "ray" not in said.lower() and "48" in said
    verb("index", photos, "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "here")
    assert len(open_index(tmp_path / "there")) == 48
    assert (tmp_path / "there" / INDEX_NAME).read_bytes() == (tmp_path / "here" / INDEX_NAME).read_bytes()


@pytest.mark.scale
def test_outliers_found_on_a_cluster_are_those_found_here(
    ray_cluster: LocalCluster, trained: Run, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    tables = []
    for name, options in (("there", ["--ray", ray_cluster.address]), ("here", [])):
        shutil.copytree(trained.folder, tmp_path / name)
        table = tmp_path / f"{name}.csv"
        pack = ["--pack", trained.pack_path]
        said = verb("outliers", tmp_path / name, tmp_path / "photos", "--out", table, *pack, *options)
        assert "broken.png" in said
        tables.append(list(csv.reader(table.read_text().splitlines())))
    assert tables[0] == tables[1] and len(tables[0]) == 1 + 48


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from autoencode import AutoencodeError, open_pack
from autoencode.data.mapping import map_pack
from autoencode.data.loader import batches
from autoencode.cluster import joined_cluster

address, place, marks = sys.argv[1], sys.argv[2], Path(sys.argv[3])
pack = open_pack(place)
rows = np.tile(pack.rows()[::-1], 4)

def mean(images):
    time.sleep(0.1)
    if (marks / "begun").exists() and not (marks / "killed").exists():
        (marks / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"mean": images.double().mean((1, 2, 3)).numpy()}

class Other:
    location, fingerprint = pack.location, "another"

with joined_cluster(address, "") as cluster:
    made = []
    for part in map_pack(mean, pack, rows, 5, cluster):
        made.append(part["mean"])
        (marks / "begun").touch()
    assert (marks / "killed").exists()
    (marks / "begun").unlink()
    here = [mean(images)["mean"] for images in batches(pack, rows, 5)]
    assert np.array_equal(np.concatenate(made), np.concatenate(here))
    for function, images in ((mean, Other), (lambda images: {}["none"], pack)):
        try:
            list(map_pack(function, images, rows, 5, cluster))
        except AutoencodeError as err:
            print(type(err).__name__, err)
"""


@pytest.mark.scale
def test_what_a_killed_process_had_is_done_again_and_another_pack_is_rejected(
    ray_cluster: LocalCluster, tiny_pack: Pack, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, ray_cluster.address, str(tiny_pack.path), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    assert ended.stdout == (
        f"PackError A node of the cluster sees other images in {tiny_pack.path}. "
        "Give all nodes the same pack.\n"
        "RunError The cluster could not do the work: KeyError: 'none'\n"
    )
