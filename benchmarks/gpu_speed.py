"""How fast a GPU trains and encodes here, and the same networks as people write them."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from autoencode.training.loop import Loop
from autoencode.training.runtime import Runtime
from gpu_setup import MemoryPack, NoGraph, Report, make_loop, seconds_of, wait

# Training images, and epochs of all nine experiments of the paper together.
PAPER_IMAGES, PAPER_EPOCHS = 47_724, 1_070


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write, were none of them joined with another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            flat = torch.utils._pytree.tree_leaves([args, kwargs, found])
            self.count += sum(one.nbytes for one in flat if isinstance(one, torch.Tensor))
        return found


def peaks(report: Report, device: torch.device, tiny: bool) -> tuple[float, float]:
    """Multiplications and additions a second in bf16, and bytes a second of a copy, reading and writing."""
    size, megabytes = (256, 4) if tiny else (8_192, 4_096)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * size**3 / seconds_of(lambda: left @ right, 10, device)
    source = torch.randint(0, 255, (megabytes * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), 10, device)
    report.add("machine", bf16_tflops=rate / 1e12, copy_gb_s=bandwidth / 1e9)
    return rate, bandwidth


def work_of(loop: Loop, batch: int) -> tuple[float, float]:
    """Operations of a forward and backward pass, and its bytes if no two kernels were joined."""
    side = loop.settings.train.patch or loop.pack.preprocessing.height
    model = type(loop.state.model)(loop.settings.model, loop.pack.preprocessing).to(
        memory_format=torch.channels_last
    )  # type: ignore[call-overload, call-arg]
    found = []
    for few in (2, 4):  # both grow with the batch, but for the weights
        images = torch.rand(few, 3, side, side).contiguous(memory_format=torch.channels_last)
        with (
            Bytes() as moved,
            FlopCounterMode(display=False) as counted,
            torch.autocast("cpu", torch.bfloat16),
        ):
            output = model(images)
            (output.images.float() - images).square().mean().backward()
        found.append((counted.get_total_flops(), moved.count))
    (few_operations, few_bytes), (operations, size) = found
    an_image = (operations - few_operations) / 2, (size - few_bytes) / 2
    return an_image[0] * batch, size + an_image[1] * (batch - 4)


def plain_step(loop: Loop, images: torch.Tensor, *, tutorial: bool) -> Callable[[], None]:
    """A step of the same network as people write it."""
    model, config = loop.state.model, loop.config
    images = images.contiguous() if tutorial else images.contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.contiguous_format if tutorial else torch.channels_last)  # type: ignore[call-overload]
    if config.optimizer == "adamax":
        optimizer: torch.optim.Optimizer = torch.optim.Adamax(model.parameters(), lr=1e-4)
    else:  # Muon is our own
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=not tutorial):
            output = model(images).images
        loss = torch.nn.functional.mse_loss(output.float(), images)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if tutorial:
            loss.item()

    return step


def our_steps(loop: Loop, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds a step of the loop, and the share of it in which Python was starting work."""
    taken, started, enqueued = 0, 0.0, 0.0
    warm = max(6, steps // 10)  # the recording is the fourth
    loop.state.step = 0
    while taken < warm + steps:
        for images, local in loop._local_batches(loop._order(taken)):
            if local.counted < loop.config.batch_size:
                continue
            if taken == warm:
                wait(device)
                started = time.perf_counter()
            loop._step(images, local)
            if taken % loop.runtime.steps_between_looks == 0:
                loop._look()
            taken += 1
            if taken == warm + steps:
                break
    enqueued = time.perf_counter() - started
    wait(device)
    total = time.perf_counter() - started
    return total / steps, enqueued / total


def replay_seconds(loop: Loop, device: torch.device) -> float:
    """Seconds that the GPU is at work in a recorded step."""
    if loop.captured is None or loop.captured._result is None:
        return math.nan
    graph = loop.captured._graph

    def ten() -> None:
        for _ in range(10):
            graph.replay()

    return seconds_of(ten, 5, device) / 10


def measure_training(
    report: Report,
    device: torch.device,
    preset: str,
    side: int,
    batch: int,
    card: tuple[float, float],
    *,
    compiled: bool = False,
) -> None:
    """One row for each way to train the network of a preset."""
    runtime, tiny = Runtime(device, True, True), device.type != "cuda"
    steps = 2 if tiny else max(30, min(300, 60_000 // batch))
    images = min(20_000, (8 if tiny else 40) * batch)
    own: dict[str, Any] = {"preset": preset, "batch_size": batch, "epochs": 10_000}
    own |= {"widths": (4, 8)} if tiny else {}
    # Camera noise is a JPEG file of every third image, made by Pillow on the CPU: a row of its own.
    variants = [("ours", runtime, {})]
    if preset == "restore":
        variants = [("ours, white noise", runtime, {"corrupt": ("gaussian:0-0.5",)}), ("ours", runtime, {})]
    elif not compiled:
        variants.append(("ours, no graph", NoGraph(device, True, True), {}))
    pack = MemoryPack(images + 64, side, 64)
    operations = size = math.nan
    with tempfile.TemporaryDirectory() as out:
        loop = make_loop(Path(out), pack, runtime, **own)
        if not compiled:
            operations, size = work_of(loop, batch)
            seen = loop.config.patch or side
            clean = torch.rand(batch, 3, seen, seen, device=device)
            for name, tutorial in (("tutorial", True), ("eager bf16", False)):
                loop.state.model.train()
                taken = seconds_of(plain_step(loop, clean, tutorial=tutorial), max(1, steps // 4), device)
                report.add("training", **row_of(preset, side, batch, name, taken, operations, size, card))
            del clean
        for name, how, changed in variants:
            again = make_loop(Path(out) / "none", pack, how, **own, **changed)
            if compiled:
                again.state.model.compile()
            with how.repeatable():
                taken, busy = our_steps(again, steps, device)
                replay = replay_seconds(again, device)
            label = f"{name}, torch.compile" if compiled else name
            row = row_of(preset, side, batch, label, taken, operations, size, card)
            report.add("training", **row, python_busy=busy, gpu_idle=1 - replay / taken)
            del again


def row_of(
    preset: str,
    side: int,
    batch: int,
    name: str,
    seconds: float,
    operations: float,
    size: float,
    card: tuple[float, float],
) -> dict[str, Any]:
    return {
        "network": preset,
        "side": side,
        "batch": batch,
        "how": name,
        "images_s": batch / seconds,
        "ms": 1e3 * seconds,
        "of_bf16_peak": operations / seconds / card[0],
        "of_bandwidth_unfused": size / seconds / card[1],
    }


def measure_encoding(report: Report, device: torch.device, tiny: bool) -> None:
    """Images a second from bytes on the GPU to codes on the CPU."""
    side, count = (32, 80) if tiny else (128, 20_000)
    for preset in ("paper-ae", "best"):
        for bf16 in (False, True):
            for batch in (128, 1_024):
                runtime = Runtime(device, bf16, True)
                with tempfile.TemporaryDirectory() as out:
                    loop = make_loop(
                        Path(out), MemoryPack(count, side, 64), runtime, preset=preset, batch_size=batch
                    )
                model = loop.state.model.eval()

                def encode(loop: Loop = loop, model: Any = model, runtime: Runtime = runtime) -> None:  # noqa: ANN401
                    with torch.inference_mode(), runtime.autocast():
                        parts = [
                            model.posterior(runtime.to_device(images)).mean
                            for images, _ in loop._local_batches(loop.train_rows)
                        ]
                        torch.cat(parts).float().cpu()

                taken = seconds_of(encode, 2, device)
                report.add(
                    "other",
                    what=f"encode, {preset}, {side}x{side}, batch {batch}, {'bf16' if bf16 else 'fp32'}",
                    images_s=len(loop.train_rows) / taken,
                )


def measure_runs(report: Report, device: torch.device, tiny: bool) -> None:
    """Whole runs by `Loop.run`, with validation and all that is saved."""
    runtime = Runtime(device, True, True)
    for preset, side, images, epochs in (
        ("best", 64, 9_000, 10),
        ("paper-ae", 128, 23_862, 2),
        ("paper-ae", 64, 47_724, 2),
    ):
        if tiny:
            side, images, epochs = 32, 40, 1
        with tempfile.TemporaryDirectory() as out:
            pack = MemoryPack(images + images // 8, side, images // 8)
            started = time.perf_counter()
            loop = make_loop(Path(out), pack, runtime, preset=preset, epochs=epochs)
            ready = time.perf_counter() - started
            loop.run(None, threading.Event())
            whole = time.perf_counter() - started
        an_epoch = (whole - ready) / epochs
        row = {"seconds": whole, "start": ready, "training": sum(one["seconds"] for one in loop.records)}
        if preset == "paper-ae":
            # Per image, as validation and what is saved are: with fewer images that is an overestimate.
            row["paper_minutes"] = an_epoch / images * PAPER_IMAGES * PAPER_EPOCHS / 60
        report.add(
            "other",
            what=f"{epochs} epochs of {images} images, {preset}, {side}x{side}",
            images_s=images / an_epoch,
            **row,
        )


def measure_paper(report: Report, device: torch.device, tiny: bool) -> None:
    """One experiment of the paper at 64x64, as long as it is."""
    images, side, epochs = (40, 32, 1) if tiny else (PAPER_IMAGES, 64, 100)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        pack = MemoryPack(images + images // 8, side, images // 8)
        loop = make_loop(Path(out), pack, Runtime(device, True, True), preset="paper-ae", epochs=epochs)
        loop.run(None, threading.Event())
        report.add(
            "other",
            what=f"the paper's autoencoder, {epochs} epochs of {images} images, {side}x{side}",
            seconds=time.perf_counter() - started,
        )
