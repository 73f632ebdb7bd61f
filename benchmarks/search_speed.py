"""How fast a million codes are searched here and elsewhere: build, memory, time of a query, recall.

    python benchmarks/search_speed.py [--codes 1000000] [--size 128] [--queries 300] [--only ours numpy]

The codes are drawn from a mixture of 1,000 Gaussians that share a few strong directions, as codes of images
do: the variance of a direction is the inverse of its rank. Queries are further draws. Recall is the share of
the true ten nearest (cosine; exact, in numpy) that is found. Each contender builds and answers in a process
of its own, one query at a time, once; memory is what the process holds more at its end than before. They use
as many threads as OMP_NUM_THREADS says (LanceDB all cores); processor time counts those of all threads.
A graph (HNSW) is searched as widely as 0.99 needs, in powers of two. Contenders that are not installed are
left out and named: `pip install usearch hnswlib lancedb`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from machine import machine

K, CLUSTERS = 10, 1000
RECALL, WIDTHS = 0.99, (64, 128, 256, 512, 1024, 2048)
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
ROOT = Path(__file__).resolve().parents[1]
Floats = NDArray[np.float32]
Query = Callable[[Floats], NDArray[np.int64]]
Widen = Callable[[int], None]


def drawn(count: int, size: int, seed: int) -> Floats:
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, size)).astype(np.float32)
    generator = np.random.default_rng(seed)
    scale = (1 / np.sqrt(1 + np.arange(size))).astype(np.float32)
    codes = np.empty((count, size), np.float32)
    for start in range(0, count, 50_000):
        part = slice(start, min(start + 50_000, count))
        noise = generator.standard_normal((part.stop - start, size), np.float32)
        codes[part] = (0.5 * centres[generator.integers(CLUSTERS, size=len(noise))] + noise) * scale
    return codes


def unit(codes: Floats) -> Floats:
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)


def ours(codes: Floats, folder: Path) -> tuple[Query, Widen | None]:
    from autoencode.index.inverted_lists import fit_inverted_lists
    from autoencode.index.neighbours import NearestNeighbours, fit_vector_space

    space = fit_vector_space(codes, "cosine")
    nearest = NearestNeighbours(space, codes, fit_inverted_lists(space, codes))
    return lambda code: nearest.search(code[None], K)[0].rows, None


def brute_force(codes: Floats) -> Query:
    vectors = unit(codes)

    def query(code: Floats) -> NDArray[np.int64]:
        scores = vectors @ code
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best])]

    return query


def numpy(codes: Floats, folder: Path) -> tuple[Query, Widen | None]:
    return brute_force(codes), None


def usearch(codes: Floats, folder: Path) -> tuple[Query, Widen | None]:
    from usearch.index import Index

    index = Index(ndim=codes.shape[1], metric="cos", dtype="f32", connectivity=16)
    index.add(np.arange(len(codes)), codes, threads=THREADS)
    return lambda code: index.search(code, K).keys, lambda width: setattr(index, "expansion_search", width)


def hnswlib(codes: Floats, folder: Path) -> tuple[Query, Widen | None]:
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=codes.shape[1])
    index.init_index(max_elements=len(codes), M=16, ef_construction=200)
    index.add_items(codes, num_threads=THREADS)
    return lambda code: index.knn_query(code, K, num_threads=1)[0][0], index.set_ef


def lancedb(codes: Floats, folder: Path) -> tuple[Query, Widen | None]:
    import lancedb
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])
    table = lancedb.connect(folder / "lance").create_table(
        "codes", pa.table({"id": np.arange(len(codes)), "vector": values})
    )
    table.create_index(metric="cosine", index_type="IVF_HNSW_SQ", vector_column_name="vector")

    def query(code: Floats) -> NDArray[np.int64]:
        search = table.search(code).distance_type("cosine").nprobes(40).refine_factor(5).limit(K)
        return search.select(["id"]).to_arrow()["id"].to_numpy()

    return query, None


CONTENDERS: dict[str, tuple[str, Callable[[Floats, Path], tuple[Query, Widen | None]]]] = {
    "ours": ("**autoencode** (FAISS, inverted file)", ours),
    "numpy": ("numpy, brute force", numpy),
    "usearch": ("usearch, HNSW", usearch),
    "hnswlib": ("hnswlib, HNSW", hnswlib),
    "lancedb": ("LanceDB, IVF and HNSW", lancedb),
}


def resident() -> float:
    """GiB of this process, files of its libraries left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 2**20


def serve(name: str, folder: Path) -> None:
    codes, queries = np.load(folder / "codes.npy"), np.load(folder / "queries.npy")
    wanted = np.load(folder / "wanted.npy")
    importlib.import_module({"ours": "autoencode.index.neighbours"}.get(name, name))
    before, clocks = resident(), read_clocks()
    query, widen = CONTENDERS[name][1](codes, folder)
    built = read_clocks() - clocks
    for width in WIDTHS if widen else WIDTHS[:1]:
        if widen:
            widen(width)
        found, times = [], []
        for code in queries:
            clocks = read_clocks()
            found.append(query(code))
            times.append(read_clocks() - clocks)
        recall = np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)])
        if recall >= RECALL:
            break
    result = {
        "build": built.tolist(),
        "ms": (1000 * np.median(times, axis=0)).tolist(),
        "recall": float(recall),
        "gib": resident() - before,
    }
    print(json.dumps(result), flush=True)


def read_clocks() -> NDArray[np.float64]:
    """Seconds of waiting, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def prepare(folder: Path, count: int, size: int, queries: int) -> None:
    codes, asked = drawn(count, size, 1), drawn(queries, size, 2)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "queries.npy", asked)
    query = brute_force(codes)
    np.save(folder / "wanted.npy", np.stack([query(code) for code in asked]))


def row(name: str, folder: Path) -> str | None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, __file__, "--serve", name, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return None
    found = json.loads(lines[-1])
    (waited, cpu), (query, query_cpu) = found["build"], found["ms"]
    return (
        f"| {CONTENDERS[name][0]} | {waited:.1f} | {cpu:.1f} | {query:.2f} | {query_cpu:.2f} "
        f"| {found['recall']:.3f} | {found['gib']:.2f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    chosen = parser.parse_args()
    print(f"{machine()}; {chosen.codes:,} codes of {chosen.size}, {chosen.queries} queries one by one\n")
    print("| | build, s | CPU s | a query, ms | CPU ms | recall@10 | memory beside the codes, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    missing = []
    folder = Path(tempfile.mkdtemp())
    try:
        prepare(folder, chosen.codes, chosen.size, chosen.queries)
        for name in chosen.only:
            line = row(name, folder)
            if line is None:
                missing.append(name)
            else:
                print(line, flush=True)
    finally:
        shutil.rmtree(folder)
    if missing:
        print(f"\nNot installed, or failed: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
