"""An index in a file beside one kept by LanceDB: build, open, search, add, bytes, memory.

    python benchmarks/index_stores.py [--codes 20000 200000] [--size 128] [--queries 200] [--s3]

Codes and queries are those of search_speed.py, compared by their angle. Build is from codes on the disk to a
finished index; open is until the first answer; add is 1,000 images more. Recall is the share of the true ten
nearest (exact, in numpy) that is found. Each store works in a process of its own, one query at a time; memory
is the most that the process held beyond what it held before. With --s3 LanceDB also writes to a server that
speaks S3, started here (moto), in whose process its own times are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import machine
from search_speed import ROOT, Floats, brute_force, drawn
from storage import serve as serve_s3

K, ADDED, WRITTEN = 10, 1000, 65_536


def entries_of(start: int, stop: int) -> list[Any]:
    from autoencode.data.entries import packed_entry

    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(start, stop)]
    names = [f"{number % 10}/{number:09}.jpg" for number in range(start, stop)]
    return [
        packed_entry(name, 0, 0, digest, row)
        for name, digest, row in zip(names, digests, range(start, stop), strict=True)
    ]


class FileStore:
    def __init__(self, location: str) -> None:
        self.location = Path(location)

    def write(self, codes: Floats) -> None:
        from autoencode.data.entries import Entries
        from autoencode.data.preprocessing import Preprocessing
        from autoencode.index.interface import IndexSettings, StoredPath
        from autoencode.index.inverted_lists import fit_inverted_lists
        from autoencode.index.memory import StoredIndex, write_index
        from autoencode.index.neighbours import fit_vector_space

        space = fit_vector_space(codes, "cosine")
        stored = StoredIndex(
            IndexSettings("code", "", Preprocessing(), None, space),
            "/images",
            StoredPath("/images", "images"),
            "",
            Entries(entries_of(0, len(codes))),
            codes,
            fit_inverted_lists(space, codes),
            0.0,
        )
        write_index(self.location, stored)

    def add(self, codes: Floats, first: int) -> None:
        self.write(codes)

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.location.rglob("*") if path.is_file())


class LanceStore(FileStore):
    def __init__(self, location: str) -> None:
        self.location: Any = location if "://" in location else Path(location)
        self.tables: Any = None

    def write(self, codes: Floats) -> None:
        from autoencode.data.preprocessing import Preprocessing
        from autoencode.index.interface import IndexSettings
        from autoencode.index.lance import create_tables
        from autoencode.index.neighbours import VectorSpace

        settings = IndexSettings("code", "", Preprocessing(), None, VectorSpace("cosine"))
        self.tables = create_tables(self.location, settings, codes.shape[1])
        self.add(codes, 0)

    def add(self, codes: Floats, first: int) -> None:
        from autoencode.index.interface import StoredPath
        from autoencode.index.lance.tables import Source
        from autoencode.index.lance.update import maintain_vector_index

        for start in range(first, len(codes), WRITTEN):
            stop = min(start + WRITTEN, len(codes))
            ids = [f"{number:032x}" for number in range(start, stop)]
            vectors = self.tables.settings.vector_space.vectors(codes[start:stop])
            self.tables.add(ids, "/images", entries_of(start, stop), vectors)
        self.tables.set_source(Source("/images", StoredPath("/images", "images"), "whole"))
        maintain_vector_index(self.tables)

    def bytes(self) -> int:
        if isinstance(self.location, Path):
            return super().bytes()
        from autoencode.storage import RemoteFolder

        return sum(stamp.size for stamp in RemoteFolder(self.location).listing().values())


def status(name: str) -> float:
    """A size of this process in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def serve(kind: str, location: str, folder: Path) -> None:
    from autoencode import open_index

    for name in ("autoencode.index", *(["lancedb"] if kind == "lance" else [])):
        importlib.import_module(name)
    codes, queries = np.load(folder / "codes.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    wanted, count = np.load(folder / "wanted.npy"), len(codes) - ADDED
    store = FileStore(location) if kind == "file" else LanceStore(location)
    before, times = status("VmRSS"), [time.perf_counter()]
    store.write(codes[:count])
    times.append(time.perf_counter())
    built, size = status("VmHWM") - before, store.bytes()
    index = open_index(location)
    index.search(queries[:1], K)
    times.append(time.perf_counter())
    found, waits = [], []
    for code in queries:
        started = time.perf_counter()
        near = index.search(code[None], K).results[0].found
        waits.append(time.perf_counter() - started)
        found.append([int(one.path.stem) for one in near])
    recall = float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))
    few = time.perf_counter()
    for code in queries[:20]:
        index.search(code[None], K, label="3", split="test")
    filtered = (time.perf_counter() - few) / 20
    started = time.perf_counter()
    store.add(codes, count)
    added = time.perf_counter() - started
    build, opened = np.diff(times[:3]).tolist()
    cells = [f"{build:.1f}", f"{built:.2f}", f"{size / 1e6:.0f}", f"{opened:.2f}"]
    cells += [f"{1000 * np.median(waits):.1f}", f"{1000 * filtered:.1f}", f"{recall:.3f}", f"{added:.1f}"]
    print(json.dumps(cells), flush=True)


def row(kind: str, location: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, __file__, "--serve", kind, location, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return " | ".join(json.loads(lines[-1])) if lines else f"failed: {done.stderr.strip()[-500:]}"


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--s3", action="store_true")
    chosen = parser.parse_args()
    server = serve_s3()[0] if chosen.s3 else None
    print(f"{machine()}; codes of {chosen.size}, {chosen.queries} queries one by one\n")
    print(
        "| images | store | build, s | memory, GiB | MB | open, s | a query, ms | of one label and split, ms "
        f"| recall@10 | add {ADDED:,}, s |"
    )
    print(f"|{' --- |' * 10}", flush=True)
    for count in chosen.codes:
        folder = Path(tempfile.mkdtemp())
        codes, queries = drawn(count + ADDED, chosen.size, 1), drawn(chosen.queries, chosen.size, 2)
        query = brute_force(codes[:count])
        np.save(folder / "codes.npy", codes)
        np.save(folder / "queries.npy", queries)
        np.save(folder / "wanted.npy", np.stack([query(code) for code in queries]))
        del codes, query
        stores = {"file": folder / "file", "LanceDB": folder / "lance"}
        if chosen.s3:
            stores["LanceDB, S3"] = f"s3://benchmark/{count}"  # type: ignore[assignment]
        for name, location in stores.items():
            kind = "file" if name == "file" else "lance"
            print(f"| {count:,} | {name} | {row(kind, str(location), folder)} |", flush=True)
        shutil.rmtree(folder)
    if server is not None:
        server.kill()


if __name__ == "__main__":
    main()
