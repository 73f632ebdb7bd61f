"""What is taken to be packed already, and packing on a cluster; `test_pack` has the packs themselves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.clusters import LocalCluster
from tests.conftest import blobs

from autoencode import ConfigError, ImageFolderError, Limits, Pack, Preprocessing, RunError, pack_folder
from autoencode.data import packing
from autoencode.data.decoders import Decoder, decode_on
from autoencode.data.pack import open_pack
from autoencode.data.remote import files_at
from autoencode.data.shards import Shards
from autoencode.data.sources import listed


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def decoder_knowing(digests: list[bytes], folder: Path) -> Decoder:
    decoder = Decoder(folder, Preprocessing(32, 32), Limits(), Shards(folder, 32, 32, 10))
    return decoder.with_known_digests(np.array(digests, "S32"))


def test_exactly_the_digests_given_are_known(tmp_path: Path) -> None:
    ends = [bytes(31) + b"\1", b"\xff" * 32, b"\1" + bytes(31), digest(5)[:30] + bytes(2)]
    inside = [digest(number) for number in range(0, 2000, 2)] + ends
    decoder = decoder_knowing(inside * 2, tmp_path)
    assert all(decoder.is_packed(value) for value in inside)
    outside = [digest(number) for number in range(1, 2000, 2)] + [
        bytes(32),
        b"\1" * 32,
        digest(5)[:31] + b"\0",
    ]
    assert not any(decoder.is_packed(value) for value in outside)


def test_nothing_is_known_of_an_empty_set_and_no_file_made(tmp_path: Path) -> None:
    assert not decoder_knowing([], tmp_path).is_packed(digest(0))
    assert not list(tmp_path.iterdir())


def test_what_is_sent_to_a_worker_does_not_grow(tmp_path: Path) -> None:
    decoder = decoder_knowing([digest(number) for number in range(5000)], tmp_path)
    assert len(pickle.dumps(decoder)) < 1000
    assert pickle.loads(pickle.dumps(decoder)).is_packed(digest(77))


class OneNode:
    """A cluster of one node that sees `visible` in place of the folder it is asked about."""

    def __init__(self, visible: Path | None = None) -> None:
        self.visible, self.chunks = visible, list[list[str]]()

    def check_sees(self, folder: Path, file: Path) -> None:
        assert folder == file and folder.is_dir()

    def run(self, function: Any, items: Iterable[list[str]]) -> Iterator[Any]:  # noqa: ANN401
        function = pickle.loads(pickle.dumps(function))
        if self.visible:
            object.__setattr__(function.decoder, "folder", self.visible)
        with contextlib.closing(function._worker):  # on a cluster, it ends with the process
            for chunk in items:
                self.chunks.append(chunk)
                yield pickle.loads(pickle.dumps(function(chunk)))


def packed_on(
    node: OneNode,
    folder: Path,
    out: Path | str,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    decode = decode_on(node)  # type: ignore[arg-type]
    files = files_at(out, must_exist=False)
    packing.update(listed(folder), files, Preprocessing(32, 32), limits or Limits(), decode, progress)
    return open_pack(out)


def content(pack: Path) -> dict[str, bytes]:
    """The manifest and shards; pack.json names the folder alone."""
    files = (path for path in pack.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(pack)): path.read_bytes() for path in files}


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """The photographs, a copy of one, a file that is none, and one that cannot be read."""
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    shutil.copy(next(photos.rglob("*.png")), folder / "copy.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "large.png").write_bytes(b"0" * 200_000)
    return folder


def test_a_pack_decoded_on_nodes_has_the_bytes_of_one_decoded_here(mixed: Path, tmp_path: Path) -> None:
    limits = Limits(max_bytes=100_000)
    here = pack_folder(mixed, tmp_path / "here", Preprocessing(32, 32), limits=limits)
    there = packed_on(node := OneNode(), mixed, tmp_path / "there", limits)
    assert len(node.chunks) > 1 and max(map(len, node.chunks)) <= 32
    assert [entry.path for entry in there.skipped] == ["broken.png", "dangling.png", "large.png"]
    assert content(here.path) == content(there.path)


def test_packing_on_nodes_reports_each_file(photos: Path, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    packed_on(OneNode(), photos, tmp_path / "there", progress=lambda *report: reports.append(report))
    assert reports == [(done, 48) for done in range(49)]


def test_a_pack_at_a_url_decoded_on_nodes_has_the_bytes_of_one_decoded_here(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))
    pack_folder(photos, tmp_path / "here", Preprocessing(32, 32))
    packed_on(OneNode(), photos, (tmp_path / "there").as_uri())
    there = content(tmp_path / "there") | {".lock": b""}  # a pack in storage has its lock in the cache
    assert content(tmp_path / "here") == there


def test_an_update_on_nodes_sends_only_new_files_and_writes_no_content_twice(
    mixed: Path, tmp_path: Path
) -> None:
    for name in ("here", "there"):
        pack_folder(mixed, tmp_path / name, Preprocessing(32, 32))
    moved = next(mixed.rglob("*.png")).rename(mixed / "moved.png")
    shutil.copy(moved, mixed / "again.png")
    here = pack_folder(mixed, tmp_path / "here", Preprocessing(32, 32))
    there = packed_on(node := OneNode(), mixed, tmp_path / "there")
    assert {path for chunk in node.chunks for path in chunk} >= {"moved.png", "again.png"}
    assert sum(map(len, node.chunks)) == 2 + len(there.skipped)
    assert content(here.path) == content(there.path)


def test_a_file_that_takes_too_long_costs_a_node_itself_alone(photos: Path, tmp_path: Path) -> None:
    limits = Limits(seconds_per_file=1e-5)  # less than any file takes: each ends the process of its decoder
    with pytest.raises(ImageFolderError, match=r"of 48 found\. coast/000\.png: took longer than"):
        packed_on(OneNode(), photos, tmp_path / "pack", limits)


def test_a_node_without_the_disk_ends_the_packing_instead_of_skipping_its_files(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"could not read .*\.png \(cannot be read: No such file.*share\.$"):
        packed_on(OneNode(tmp_path / "empty"), photos, tmp_path / "pack")
    assert not (tmp_path / "pack" / "manifest.jsonl").exists()


def test_packing_on_a_cluster_takes_no_number_of_workers(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Leave workers out"):
        pack_folder(photos, tmp_path / "pack", workers=2, ray="auto")


def command(folder: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "autoencode",
        "pack",
        str(folder),
        "--out",
        str(out),
        "--size",
        "32",
        *options,
    ]


@pytest.mark.scale
def test_a_pack_made_on_a_cluster_has_the_bytes_of_one_made_here(
    ray_cluster: LocalCluster, mixed: Path, tmp_path: Path
) -> None:
    for name, options in (("here", ()), ("there", ("--ray", ray_cluster.address))):
        ended = subprocess.run(command(mixed, tmp_path / name, *options), capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
        assert "49 images" in ended.stdout and "ray" not in ended.stdout.replace(str(tmp_path), "").lower()
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.mark.scale
def test_packing_on_a_cluster_that_is_killed_is_made_again_by_the_same_command(
    ray_cluster: LocalCluster, mixed: Path, tmp_path: Path
) -> None:
    there = command(mixed, tmp_path / "there", "--ray", ray_cluster.address)
    process = subprocess.Popen(there, stdout=subprocess.DEVNULL)
    while not (tmp_path / "there" / "shards").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(there, check=True, capture_output=True)
    pack_folder(mixed, tmp_path / "here", Preprocessing(32, 32))
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs enough to do something to the cluster that decodes them."""
    folder = tmp_path_factory.mktemp("images") / "many"
    folder.mkdir()
    for number in range(600):
        Image.fromarray(blobs(number, 200, 240)).save(folder / f"{number:03}.png")
    return folder


def decoding_on(cluster: LocalCluster, folder: Path, out: Path, node: str = "") -> subprocess.Popen[str]:
    """Start to pack on a cluster; return once a process of it, or of a node, is at it."""
    there = command(folder, out, "--ray", cluster.address)
    process = subprocess.Popen(there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not cluster.processes(node, title="ray::_called"):
        assert process.poll() is None, process.communicate()
    return process


@pytest.mark.scale
def test_what_a_killed_process_of_a_node_had_is_decoded_again(
    ray_cluster: LocalCluster, many: Path, tmp_path: Path
) -> None:
    process = decoding_on(ray_cluster, many, tmp_path / "there")
    os.kill(ray_cluster.processes(title="ray::_called")[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "") and "warning" not in output.lower(), output
    pack_folder(many, tmp_path / "here", Preprocessing(32, 32))
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.mark.scale
def test_ctrl_c_while_a_cluster_decodes_leaves_no_part_of_a_pack(
    ray_cluster: LocalCluster, many: Path, tmp_path: Path
) -> None:
    process = decoding_on(ray_cluster, many, tmp_path / "there")
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", 130)
    assert set(content(tmp_path / "there")) <= {".lock"}


@pytest.mark.scale
def test_a_node_that_leaves_costs_no_file(cluster_to_lose: LocalCluster, many: Path, tmp_path: Path) -> None:
    leaving = cluster_to_lose.start_node()
    process = decoding_on(cluster_to_lose, many, tmp_path / "there", leaving)
    cluster_to_lose.kill(leaving)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    pack_folder(many, tmp_path / "here", Preprocessing(32, 32))
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.mark.scale
def test_packing_without_its_head_node_ends_in_one_line(
    cluster_to_lose: LocalCluster, many: Path, tmp_path: Path
) -> None:
    process = decoding_on(cluster_to_lose, many, tmp_path / "none")
    cluster_to_lose.kill()
    output, errors = process.communicate(timeout=60)
    gone = f"error: The head node of the cluster at {cluster_to_lose.address} is gone.\n"
    assert (process.returncode, output, errors) == (1, "", gone)
    assert set(content(tmp_path / "none")) <= {".lock"}
