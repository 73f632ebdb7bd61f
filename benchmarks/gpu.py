"""Checks that a GPU computes what the CPU does, and measures how fast it trains and encodes.

    python benchmarks/gpu.py --out FOLDER [--minutes 8] [--paper] [--tiny]

Needs torch, numpy, Pillow and safetensors beside this checkout; nothing is installed or fetched, and images
are made up. On a machine that has nothing else, from the root of the checkout:

    bash -c 'python3 benchmarks/gpu.py --out /tmp/gpu --minutes 8; cat /tmp/gpu/gpu.md'

Every result is written to FOLDER/gpu.json and FOLDER/gpu.md at once, so that a run that is cut off keeps what
it has. What no longer fits into the minutes is left out and named. Checks come first, then the numbers in the
order of their weight. `--tiny` takes the same way on small sizes, on the CPU.

Contenders, all on images that are on the GPU before the clock starts:
- tutorial: fp32, channels first, `loss.item()` at each step, on one batch again and again as floats;
- eager: bf16 by autocast, channels last, no value read, on the same floats;
- ours: the loop of `train`, with bytes gathered, turned to floats, mirrored and corrupted at each step.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gpu_setup import Report

from gpu_checks import check_encoding, check_gradients, check_losses, check_memory, check_resume  # isort: skip
from gpu_speed import measure_encoding, measure_paper, measure_runs, measure_training, peaks  # isort: skip

Part = tuple[str, float, Callable[[], None]]


def parts_of(
    report: Report, device: torch.device, card: tuple[float, float], *, tiny: bool, paper: bool
) -> list[Part]:
    """What is done, in this order: name, seconds it may need, and the work."""
    checks: list[Part] = [
        ("losses", 30, partial(check_losses, report, device, tiny)),
        ("gradients", 15, partial(check_gradients, report, device, tiny)),
        ("resume", 30, partial(check_resume, report, device, tiny)),
        ("codes", 10, partial(check_encoding, report, device, tiny)),
    ]
    sizes = [(32, 4)] if tiny else [(128, 128), (64, 128), (128, 512), (64, 512)]
    speeds: list[Part] = [
        (f"{preset} {side} {batch}", 15, partial(measure_training, report, device, preset, side, batch, card))
        for side, batch in sizes
        for preset in ("paper-ae", "best", "restore")
    ]
    whole: list[Part] = [
        ("runs", 40, partial(measure_runs, report, device, tiny)),
        ("encoding", 25, partial(measure_encoding, report, device, tiny)),
    ]
    last: list[Part] = [("out of memory", 10, partial(check_memory, report, device))]
    if not tiny:
        for preset, side, batch in (("paper-ae", 128, 128), ("best", 64, 512)):
            work = partial(measure_training, report, device, preset, side, batch, card, compiled=True)
            last.append((f"{preset} {side} {batch}, torch.compile", 60, work))
    if paper:
        last.append(("paper", 90, partial(measure_paper, report, device, tiny)))
    # Whole runs after the first size, as they are what the targets are of.
    return [*checks, *speeds[:3], *whole, *speeds[3:], *last]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--paper", action="store_true", help="train one experiment of the paper, too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    is_gpu = torch.cuda.is_available() and not tiny
    if not (is_gpu or tiny):
        sys.exit("There is no GPU of CUDA here. Give --tiny to try the script on the CPU.")
    device = torch.device("cuda:0" if is_gpu else "cpu")
    report = Report(arguments.out, arguments.minutes)
    name = torch.cuda.get_device_name() if is_gpu else "CPU"
    cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if is_gpu else {}
    report.add("machine", card=name, date=time.strftime("%Y-%m-%d"), torch=str(torch.__version__), **cuda)
    card = (math.nan, math.nan)
    with report.part("peaks of the card", 10) as is_time:
        if is_time:
            card = peaks(report, device, tiny)
    parts = parts_of(report, device, card, tiny=tiny, paper=arguments.paper)
    for name, seconds, work in parts:
        with report.part(name, seconds) as is_time:
            if is_time:
                work()
    print(report.text())


if __name__ == "__main__":
    main()
