"""What each setting of `best` and `best-vae` is worth: the same training with one of them changed.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py PACK [--epochs 4] [--seeds 2]

Prints a Markdown table: error on validation images, the mean of the seeds and how far they lie apart, and of
VAEs bits per dimension. Processor time is that of training and validation; the least of the seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from autoencode.training.process import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402 - after the allocator, as in the verbs

from autoencode import train  # noqa: E402
from machine import machine  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "`best`": {"preset": "best"},
    "without mirrored images": {"preset": "best", "horizontal_flip": False},
    "without shifted images": {"preset": "best", "shift": 0},
    "constant rate": {"preset": "best", "schedule": "constant"},
    "no limit on the gradient": {"preset": "best", "grad_clip": 0.0},
    "batch of 128": {"preset": "best", "batch_size": 128},
    "Adamax": {"preset": "best", "optimizer": "adamax"},
    "average of weights, decay .999": {"preset": "best", "ema": 0.999},
    "batch normalisation": {"preset": "best", "batch_norm": True},
    "the paper's network": {"preset": "best", "network": "paper", "widths": (32, 64, 128, 256)},
    "`best-vae`": {"preset": "best-vae"},
    "sigma2 of 0.01": {"preset": "best-vae", "sigma2": 0.01},
    "warm-up over the first half": {"preset": "best-vae"},
    "batch normalisation, VAE": {"preset": "best-vae", "batch_norm": True},
}
WARM = "warm-up over the first half"


def run(pack: Path, epochs: int, seed: int, settings: dict[str, Any]) -> tuple[dict[str, float], float]:
    """The last record of a run, and its processor time."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = train(pack, Path(folder) / "run", seed=seed, epochs=epochs, **settings)
        return done.metrics[-1], time.process_time() - started


def row(name: str, runs: list[tuple[dict[str, float], float]]) -> str:
    errors = [record["val_mse"] for record, _ in runs]
    bits = [record["val_bits_per_dimension"] for record, _ in runs if "val_bits_per_dimension" in record]
    apart = max(errors) - min(errors)
    dimensions = f"{fmean(bits):.3f}" if bits else "-"
    seconds = min(seconds for _, seconds in runs)
    return f"| {name} | {fmean(errors):.5f} | {apart:.5f} | {dimensions} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--code-size", type=int, default=128)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    chosen = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{machine()}; threads {threads}, epochs {chosen.epochs}, code {chosen.code_size}\n")
    print("| | validation MSE | seeds apart | bits per dimension | processor seconds |\n|" + " --- |" * 5)
    for name in chosen.only:
        settings = {"code_size": chosen.code_size, **VARIANTS[name]}
        epochs = chosen.epochs
        if name == WARM:  # as many epochs in all
            epochs, settings["kl_warmup"] = epochs - epochs // 2, epochs // 2
        runs = [run(chosen.pack, epochs, seed, settings) for seed in range(chosen.seeds)]
        print(row(name, runs), flush=True)


if __name__ == "__main__":
    main()
