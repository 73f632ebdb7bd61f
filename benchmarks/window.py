"""What an order that is random within a window costs: losses of a run with all of a pack mixed, or less.

python benchmarks/window.py FOLDER --size 32 --images 2000

The pack has 50 shards, in the order of the paths: images of one sub-folder lie together, the worst case. It
is read through file://, with a cache that holds a part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from autoencode import open_pack, pack_folder, train
from autoencode.data import manifest
from machine import machine

SHARDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--preset", default="paper-ae")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, nargs="+", default=[50, 16, 4, 1], help="in shards")
    asked = parser.parse_args()
    settings = {"preset": asked.preset, "code_size": 64, "batch_size": 32, "epochs": asked.epochs}
    with tempfile.TemporaryDirectory() as temporary:
        images, url = Path(temporary, "images"), f"file://{temporary}/store.pack"
        paths = sorted(path for path in asked.folder.rglob("*") if path.is_file())
        for path in paths[:: max(1, len(paths) // asked.images)][: asked.images]:
            copied = images / path.relative_to(asked.folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        row_bytes = asked.size**2 * 3
        manifest._SHARD_BYTES = asked.images // SHARDS * row_bytes
        os.environ["AUTOENCODE_CACHE"] = f"{temporary}/cache"
        pack_folder(images, url, size=asked.size)
        print(f"{len(open_pack(url)):,} images of {asked.folder.name}, {settings}; {machine()}\n")
        print("| shards mixed at once | validation MSE, mean | of the seeds |\n| --- | --- | --- |")
        for window in asked.windows:
            os.environ["AUTOENCODE_CACHE_GB"] = str((3 * window + 0.5) * manifest._SHARD_BYTES / 1e9)
            losses = []
            for seed in range(asked.seeds):
                out = Path(temporary, f"run-{window}-{seed}")
                run = train(url, out, **settings, seed=seed)
                losses.append(run.metrics[-1]["val_mse"])
            mixed = "all" if open_pack(url).window == 0 else f"{window} of {SHARDS}"
            print(
                f"| {mixed} | {statistics.mean(losses):.5f} | {min(losses):.5f} to {max(losses):.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
