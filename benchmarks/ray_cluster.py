"""Training and encoding by one process, by two, and on a Ray cluster of one and of two nodes of this machine.

    python benchmarks/ray_cluster.py PHOTOS [--images 2000] [--epochs 2]

The paper's network at 64x64, batch 32, one thread per process. Each command runs as a user runs it. The rate
is the one it prints: images per second of the last epoch, or of encoding, which on a cluster includes the
start of its processes. Wall and processor seconds are of the whole command, start-up and report included;
processor seconds are of all processes, the driver's and those on the nodes. Wall seconds and rates say
something only on a machine that does nothing else. Start and end alone: `--resume` of a run that is finished.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.clusters import LocalCluster, local_cluster

from autoencode import Preprocessing, pack_folder

TRAIN = ["--preset", "paper-ae", "--set", "batch_size=32", "--set", "precision=fp32"]
TICK = os.sysconf("SC_CLK_TCK")


def spent(cluster: LocalCluster | None) -> float:
    """Processor seconds of every process of a cluster that is there, and of those that it has seen end."""
    seconds = 0
    for process in cluster.processes() if cluster else []:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds += sum(map(int, fields[11:15]))
    return seconds / TICK


def run(cluster: LocalCluster | None, *arguments: object) -> tuple[float, float, str]:
    """Run a command; return its wall and processor seconds, and what it said."""
    before, own, started = spent(cluster), sum(os.times()[2:4]), time.perf_counter()
    command = [sys.executable, "-m", "autoencode", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most = before
    while process.poll() is None:
        time.sleep(0.3)
        most = max(most, spent(cluster))  # processes that have ended are no longer there to be asked
    wall = time.perf_counter() - started
    said = process.communicate()[0]
    if process.returncode:
        sys.exit(said)
    return wall, sum(os.times()[2:4]) - own + most - before, said


def measure(
    name: str, cluster: LocalCluster | None, folder: Path, pack: Path, epochs: int, *how: str
) -> None:
    out, index = folder / "run", folder / "index"
    for path in (out, index):
        shutil.rmtree(path, ignore_errors=True)
    wall, processor, said = run(cluster, "train", pack, "--out", out, "--epochs", epochs, *TRAIN, *how)
    *_, rate = re.findall(r"([\d,]+) images/s", said)
    print(f"| train, {name} | {rate} | {wall:.0f} | {processor:.0f} |", flush=True)
    wall, processor, _ = run(cluster, "train", pack, "--out", out, "--resume", *how)
    print(f"| start and end alone, {name} | | {wall:.0f} | {processor:.0f} |", flush=True)
    if "--workers" in how:
        return
    wall, processor, said = run(cluster, "index", pack, "--model", out, "--out", index, *how[:2])
    [rate] = re.findall(r"at ([\d,]+) images/s", said)
    print(f"| index, {name} | {rate} | {wall:.0f} | {processor:.0f} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("photos", type=Path)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=2)
    asked = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "photos").mkdir()
        found = [path for path in sorted(asked.photos.rglob("*")) if path.is_file()][: asked.images]
        for number, path in enumerate(found):
            (folder / "photos" / f"{number:06}{path.suffix}").symlink_to(path.absolute())
        pack = pack_folder(folder / "photos", folder / "pack", Preprocessing(64, 64)).path
        print("| | images/s | wall s | processor s |\n| --- | --- | --- | --- |")
        shared = (folder, pack, asked.epochs)
        measure("one process", None, *shared)
        measure("two processes", None, *shared, "--workers", "2")
        with local_cluster(nodes=1) as cluster:
            measure("Ray, one node", cluster, *shared, "--ray", cluster.address)
            cluster.start_node()
            measure("Ray, two nodes", cluster, *shared, "--ray", cluster.address)


if __name__ == "__main__":
    main()
