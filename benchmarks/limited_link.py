"""The sum of gradients over a link of a limited rate, against what its bytes take at that rate.

python benchmarks/limited_link.py

Two processes, each in a network namespace of its own, joined by a pair of virtual interfaces that tc limits.
It needs root, ip and tc, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RATES = {"no limit": 0.0, "1 Gbit/s": 1e9, "300 Mbit/s": 3e8, "100 Mbit/s": 1e8}
NAMES, ADDRESSES = ("autoencode-0", "autoencode-1"), ("10.213.7.1", "10.213.7.2")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def connect() -> None:
    for name in NAMES:
        run(f"ip netns add {name}")
        run(f"ip -n {name} link set lo up")
    run(f"ip link add link0 netns {NAMES[0]} type veth peer name link1 netns {NAMES[1]}")
    for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
        run(f"ip -n {name} addr add {address}/24 dev link{number}")
        run(f"ip -n {name} link set link{number} up")


def limit(bits_per_second: float) -> None:
    for number, name in enumerate(NAMES):
        command = f"tc -n {name} qdisc replace dev link{number} root tbf"
        run(f"{command} rate {bits_per_second:.0f}bit burst 256kb latency 100ms")


def measure(size: int) -> None:
    """Of a process: print the bytes of the gradients and the median time of their sum."""
    import torch

    from autoencode import ModelConfig, Preprocessing
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.distributed import process_group
    from autoencode.training.process import own_ranks

    model = Autoencoder(ModelConfig(), Preprocessing(size, size))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    times = []
    with process_group(own_ranks()) as processes:
        for _ in range(6):
            processes.wait()
            started = time.perf_counter()
            processes.sum_gradients(model.parameters())
            times.append(time.perf_counter() - started)
    moved = sum(parameter.numel() * 4 for parameter in model.parameters())
    if processes.is_first:
        print(moved, statistics.median(times[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.size)
        return
    print("| link | sum of gradients, ms | computed from their bytes, ms |\n| --- | --- | --- |")
    try:
        connect()
        for number, (label, rate) in enumerate(RATES.items()):
            if rate:
                limit(rate)
            shared = {"WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(29500 + number)}
            started = []
            for rank, name in enumerate(NAMES):
                command = ["ip", "netns", "exec", name, sys.executable, Path(__file__), "--measure"]
                own = {"RANK": str(rank), "GLOO_SOCKET_IFNAME": f"link{rank}", "TORCH_CPP_LOG_LEVEL": "ERROR"}
                started.append(
                    subprocess.Popen(
                        [*command, "--size", str(asked.size)],
                        env=os.environ | shared | own,
                        stdout=subprocess.PIPE,
                    )
                )
            said = [process.communicate(timeout=300)[0] for process in started]
            moved, seconds = said[0].split()
            computed = f"{int(moved) * 8 / rate * 1e3:.0f}" if rate else ""
            print(f"| {label} | {float(seconds) * 1e3:.0f} | {computed} |", flush=True)
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False)


if __name__ == "__main__":
    main()
