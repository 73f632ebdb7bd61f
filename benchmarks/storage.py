"""Packing to a folder and to storage, and reading it again: by the clock, and as processor time.

python benchmarks/storage.py FOLDER [URL]

Without a URL, a server that speaks S3 is started here (moto). The cache is empty before each reading, and
holds a quarter of the pack in the last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from autoencode import Pack, open_pack, pack_folder
from autoencode.data import manifest
from autoencode.data.loader import batches, epoch_order
from machine import machine

BATCH, SHARDS = 128, 16


def timed(work: Callable[[], object]) -> str:
    started, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    return f"{time.perf_counter() - started:.1f} s, {used:.1f} s of processor"


def read(pack: Pack) -> None:
    order = epoch_order(pack.rows(), 0, 0, pack.rows_per_shard, pack.window)
    for _ in batches(pack, order, BATCH):
        pass


def serve() -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    import s3fs

    s3fs.S3FileSystem().mkdir("benchmark")
    return server, "s3://benchmark/pack"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    server = None
    if asked.url is None:
        server, asked.url = serve()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["AUTOENCODE_CACHE"] = cache = f"{temporary}/cache"
        count = sum(path.is_file() for path in asked.folder.rglob("*"))
        manifest._SHARD_BYTES = shard_bytes = count // SHARDS * asked.size**2 * 3
        print(f"{count:,} files at {asked.size}x{asked.size}; {machine()}\n")
        print("| | pack | read all | a quarter cached |\n| --- | --- | --- | --- |")
        places = {"folder": f"{temporary}/pack", "file://": f"file://{temporary}/store", "s3://": asked.url}
        for name, place in places.items():
            os.environ["AUTOENCODE_CACHE_GB"] = "20"
            cells = [timed(lambda place=place: pack_folder(asked.folder, place, size=asked.size, workers=1))]
            for size_gb in ("20", str((SHARDS / 4 + 0.5) * shard_bytes / 1e9)):
                shutil.rmtree(cache, ignore_errors=True)
                os.environ["AUTOENCODE_CACHE_GB"] = size_gb
                pack = open_pack(place)
                cells.append(timed(lambda pack=pack: read(pack)))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if server is not None:
        server.kill()


if __name__ == "__main__":
    main()
