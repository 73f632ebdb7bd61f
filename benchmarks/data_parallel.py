"""What two processes cost beside one, measured; and where more machines stop paying, computed.

    python benchmarks/data_parallel.py [--side 64] [--batch 32] [--rounds 5]

Two processes on this machine, one thread each, take turns: a step of the paper's network by the first alone,
then the same batch by both. Processor seconds are those of both together, and say what sharing costs whatever
else the machine does; wall seconds say it only on a machine that does nothing else.

The table that follows is arithmetic: a step takes batch / rate / machines for its images, then one ring
all-reduce of the gradients, which sends 2 (n - 1) / n of them through the link of each machine. Nothing
overlaps, as in `autoencode.training.distributed`.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoencode import Autoencoder, Preprocessing
from autoencode.data.loader import local_batch
from autoencode.training.distributed import ALONE, Processes, process_group
from autoencode.training.presets import settings
from autoencode.training.process import own_ranks

LINKS = {"1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
MACHINES = (2, 4, 8, 16, 64)


def network(side: int) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(settings("paper-ae")[0], Preprocessing(side, side))


def step(model: Autoencoder, images: torch.Tensor, processes: Processes) -> None:
    local = local_batch(len(images), processes.rank, processes.world_size)
    part = images[local.positions]
    model.zero_grad(set_to_none=True)
    (local.weight * functional.mse_loss(model(part).images, part)).backward()
    processes.sum_gradients(model.parameters())


def measure(side: int, batch: int, rounds: int) -> None:
    torch.set_num_threads(1)
    model = network(side).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    gradients = [torch.ones_like(parameter) for parameter in model.parameters()]
    names = ("one process", "two processes", "sum of gradients alone")
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    with process_group(own_ranks()) as processes:
        for _ in range(rounds + 1):  # the first warms up
            for name in names:
                processes.wait()
                started, used = time.perf_counter(), time.process_time()
                if name == "two processes":
                    step(model, images, processes)
                elif name == "sum of gradients alone":
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter.grad = gradient
                    processes.sum_gradients(model.parameters())
                elif processes.is_first:
                    step(model, images, ALONE)
                wall[name].append(time.perf_counter() - started)
                spent = torch.tensor(time.process_time() - used, dtype=torch.float64)
                processor[name].append(float(processes.total(spent)))
    if processes.is_first:
        print("| | processor ms | spread | wall ms | spread |\n| --- | --- | --- | --- | --- |")
        for name in names:
            print(f"| {name} | {in_ms(processor[name][1:])} | {in_ms(wall[name][1:])} |")


def in_ms(seconds: list[float]) -> str:
    found = [1000 * value for value in seconds]
    return f"{statistics.median(found):.0f} | {min(found):.0f} to {max(found):.0f}"


def compute(side: int, batch: int, rate: float) -> None:
    model = network(side)
    images = torch.rand(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        functional.mse_loss(model(images).images, images).backward()
    sent = 4 * sum(parameter.numel() for parameter in model.parameters())
    operations = counter.get_total_flops() / 1e9
    print(f"\nPaper's network at {side}x{side}: {operations:.2f} GFLOP an image, forward and backward;")
    print(f"{sent / 1e6:.1f} MB of gradients a step. {rate:g} images/s a machine, batch {batch}.\n")
    print("| machines | " + " | ".join(LINKS) + " |\n| --- |" + " --- |" * len(LINKS))
    for machines in MACHINES:
        alone = batch / rate
        speedups = []
        for bytes_a_second in LINKS.values():
            reduced = 2 * (machines - 1) / machines * sent / bytes_a_second
            speedups.append(alone / (alone / machines + reduced))
        print(f"| {machines} | " + " | ".join(f"{s:.1f} ({s / machines:.0%})" for s in speedups) + " |")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--side", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    if "RANK" in os.environ:
        measure(asked.side, asked.batch, asked.rounds)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, *sys.argv]
    started = [subprocess.Popen(command, env=shared | {"RANK": str(rank)}) for rank in range(2)]
    for process in started:
        process.wait()
    compute(128, 128, 43)  # images/s of two cores: docs/performance.md
    compute(128, 128, 10_000)  # assumed of a GPU


if __name__ == "__main__":
    main()
