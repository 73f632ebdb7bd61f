"""What an image costs: processor time against the number of images, their size and the batch, as a figure.

    python benchmarks/cost.py [--out docs/figures/cost.png] [--rounds 3]

What is packed are JPEGs of 250x250 pixels, the network is the paper's, a training step is forward, backward
and Adamax. Times are processor time of one thread, which other programs change less than the time one waits;
each is the least of the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from autoencode.training.process import keep_freed_memory

keep_freed_memory()

import matplotlib.pyplot as plt  # noqa: E402 - after the allocator, as in the verbs
import numpy as np  # noqa: E402
import torch  # noqa: E402

from autoencode import Autoencoder, ModelConfig, Preprocessing  # noqa: E402
from machine import machine  # noqa: E402
from packing import pack, timed, write_jpegs  # noqa: E402

COUNTS, SIDES, BATCHES = (250, 500, 1000, 2000), (32, 64, 96, 128, 192), (4, 8, 16, 32, 64, 128)
SIDE, BATCH = 64, 32
COLOURS = {"pack": "#6b7280", "encode": "#2563eb", "train": "#d97706"}


def least(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def training_step(side: int, batch: int) -> Callable[[], object]:
    model = Autoencoder(ModelConfig(), Preprocessing(side, side)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adamax(model.parameters())
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(images).images, images).backward()
        optimizer.step()

    step()
    return step


def encoding(side: int, images: int) -> Callable[[], object]:
    model = Autoencoder(ModelConfig(), Preprocessing(side, side)).eval()
    model.to(memory_format=torch.channels_last)
    made = torch.rand(128, 3, side, side)
    return lambda: [model.encode(made[: images - start]) for start in range(0, images, 128)]


def measured(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds an image, by panel and line; of the first panel, seconds for all images."""
    with tempfile.TemporaryDirectory() as temporary:
        packing = []
        for count in COUNTS:
            folder = Path(temporary) / str(count) / "images"
            write_jpegs(folder, count, None)
            packing.append(min(timed(lambda folder=folder: pack(folder, 1))[0] for _ in range(rounds)))
    return {
        "images": {
            "pack": packing,
            "encode": [least(encoding(SIDE, count), rounds) for count in COUNTS],
        },
        "side": {
            "encode": [1000 * least(encoding(side, 128), rounds) / 128 for side in SIDES],
            "train": [1000 * least(training_step(side, BATCH), rounds) / BATCH for side in SIDES],
        },
        "batch": {
            "train": [1000 * least(training_step(SIDE, batch), rounds) / batch for batch in BATCHES],
        },
    }


def drawn(found: dict[str, dict[str, list[float]]], out: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    labels = {
        "images": (COUNTS, "number of images", "seconds"),
        "side": (SIDES, f"side of an image, pixels (batch {BATCH})", "ms per image"),
        "batch": (BATCHES, f"batch ({SIDE}x{SIDE} pixels)", "ms per image"),
    }
    for axes, (name, lines) in zip(panels, found.items(), strict=True):
        places, label, unit = labels[name]
        for line, values in lines.items():
            axes.plot(places, values, "o-", color=COLOURS[line], label=line, markersize=4)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/cost.png"))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = measured(chosen.rounds)
    print(f"{machine()}; processor time, one thread, least of {chosen.rounds}\n")
    for panel, places in (("images", COUNTS), ("side", SIDES), ("batch", BATCHES)):
        print(f"| {panel} | {' | '.join(map(str, places))} |\n|{' --- |' * (len(places) + 1)}")
        for line, values in found[panel].items():
            print(f"| {line} | {' | '.join(f'{value:.3g}' for value in np.round(values, 4))} |")
        print()
    drawn(found, chosen.out)


if __name__ == "__main__":
    main()
