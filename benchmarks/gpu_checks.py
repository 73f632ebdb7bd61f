"""Checks that a GPU computes what the CPU does: losses, gradients, codes, resuming, too little memory."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencode.errors import ConfigError
from autoencode.training.loop import Loop
from autoencode.training.objective import Views
from autoencode.training.presets import settings
from autoencode.training.run import RunSettings
from autoencode.training.runtime import Runtime, within_memory
from gpu_setup import CPU, MemoryPack, NoGraph, Report, make_loop

# Settings of each preset that make its checks short.
SMALL: dict[str, dict[str, Any]] = {
    "paper-ae": {"code_size": 32},
    "best": {"code_size": 32},
    "best-vae": {"code_size": 32},
    "restore": {"patch": 32},
}


def same_draws(loop: Loop) -> Loop:
    """Let a loop draw on the CPU: a GPU draws other flips and noise from the same seed."""
    device, original = loop.runtime.device, loop.objective.views

    def views(model: Any, clean: torch.Tensor, *rest: Any) -> Views:  # noqa: ANN401
        return Views(
            *(
                one.to(device) if isinstance(one, torch.Tensor) else one
                for one in original(model, clean.cpu(), *rest)
            )
        )

    loop.objective.views = views  # type: ignore[method-assign]
    return loop


def check_losses(report: Report, device: torch.device, tiny: bool) -> None:
    """Losses of the same steps, from the same weights, on the same images."""
    steps, side, batch = (4, 32, 4) if tiny else (50, 64, 32)
    for preset, small in SMALL.items():
        own: dict[str, Any] = {"preset": preset, "batch_size": batch, "epochs": 2, **small}
        own |= {"widths": (4, 8)} if tiny else {}
        losses = {}
        for name, runtime in (
            ("cpu", Runtime(CPU, False, True)),
            ("fp32", Runtime(device, False, True)),
            ("bf16", Runtime(device, True, True)),
        ):
            with tempfile.TemporaryDirectory() as out, runtime.repeatable():
                pack = MemoryPack(batch * steps + batch, side, batch)
                loop = same_draws(make_loop(Path(out), pack, runtime, **own))
                sums = []
                for images, local in loop._local_batches(loop._order(0), stop=steps):
                    loop._step(images, local)
                    sums.append(loop.state.sums.clone())
                found = np.diff(torch.stack(sums).cpu().numpy()[:, 0], prepend=0) / batch
                losses[name] = found
        for name in ("fp32", "bf16"):
            apart = np.abs(losses[name] - losses["cpu"]) / np.abs(losses["cpu"]).mean()
            row = {"first": float(apart[0]), "largest": float(apart.max()), "last": float(apart[-1])}
            report.add("checks", what=f"losses of {steps} steps, {preset}, {name} against CPU fp32", **row)


def flat_gradient(device: torch.device, bf16: bool, tiny: bool, **own: Any) -> torch.Tensor:  # noqa: ANN401
    """The gradient of a first step on the device, as fp64 on the CPU."""
    runtime, side = Runtime(device, bf16, True), 32 if tiny else 64
    own |= {"widths": (4, 8)} if tiny else {}
    with tempfile.TemporaryDirectory() as out, runtime.repeatable():
        loop = same_draws(make_loop(Path(out), MemoryPack(48, side, 16), runtime, batch_size=32, **own))
        # The convolutions of `best` start at zero, where most gradients are zero as well.
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in loop.state.model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=generator).to(device)
        loop.state.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        loop.largest_gradient = math.inf
        images, local = next(iter(loop._local_batches(loop._order(0))))
        loop._learn(loop._parts("train", runtime.to_device(images), local, 0), 1.0)
        parts = [one.grad.flatten() for one in loop.state.model.parameters() if one.grad is not None]
        return torch.cat(parts).cpu().double()


def check_gradients(report: Report, device: torch.device, tiny: bool) -> None:
    """The gradient of one step from the same weights, on the same images."""
    for preset, small in SMALL.items():
        exact = flat_gradient(CPU, False, tiny, preset=preset, **small)
        for name, bf16 in (("fp32", False), ("bf16", True)):
            found = flat_gradient(device, bf16, tiny, preset=preset, **small)
            error = float((found - exact).norm() / exact.norm())
            cosine = float(found @ exact / (found.norm() * exact.norm()))
            what = f"gradient, {preset}, {name} against CPU fp32"
            report.add("checks", what=what, relative=error, cosine=cosine)


def check_encoding(report: Report, device: torch.device, tiny: bool) -> None:
    side = 32 if tiny else 128
    for preset in ("paper-ae", "best"):
        with tempfile.TemporaryDirectory() as out:
            loop = make_loop(Path(out), MemoryPack(300, side, 44), Runtime(CPU, False, True), preset=preset)
        model = loop.state.model
        images = torch.rand(64, 3, side, side, generator=torch.Generator().manual_seed(0))
        exact = model.encode(images).double()  # type: ignore[operator]
        model.to(device)
        apart = (model.encode(images).double() - exact).norm(dim=1)  # type: ignore[operator]
        spread = (exact - exact.mean(0)).norm(dim=1).mean()
        report.add(
            "checks",
            what=f"codes, {preset}, GPU against CPU, of their spread",
            largest=float(apart.max() / spread),
        )


def weights_after(
    out: Path,
    runtime: Runtime,
    pack: MemoryPack,
    stop: int,
    **own: Any,  # noqa: ANN401
) -> dict[str, torch.Tensor]:
    """Train to the end, or stop after so many steps as Ctrl-C does; return the weights."""
    loop = make_loop(out, pack, runtime, **own)
    interrupted = threading.Event()
    if stop:
        original = loop._step

        def step(*arguments: Any) -> None:  # noqa: ANN401
            original(*arguments)
            if loop.state.step == stop:
                interrupted.set()

        loop._step = step  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        loop.run(None, interrupted)
    return {name: value.cpu() for name, value in loop.state.model.state_dict().items()}


def check_resume(report: Report, device: torch.device, tiny: bool) -> None:
    """A run that was stopped and continued, the same run without a stop, and without a graph: bit for bit?"""
    side, images = (32, 90) if tiny else (64, 410)
    for preset, small in SMALL.items():
        own: dict[str, Any] = {"preset": preset, "epochs": 2, "batch_size": 16, **small}
        own |= {"widths": (4, 8)} if tiny else {}
        pack = MemoryPack(images, side, 16)
        runtime = Runtime(device, True, True)
        plain = NoGraph(device, True, True)
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            whole = weights_after(folder / "whole", runtime, pack, 0, **own)
            again = weights_after(folder / "again", runtime, pack, 0, **own)
            eager = weights_after(folder / "eager", plain, pack, 0, **own)
            weights_after(folder / "stopped", runtime, pack, 3 if tiny else 10, **own)
            resumed = weights_after(folder / "stopped", runtime, pack, 0, **own)
        for name, other in (("the same run again", again), ("resumed", resumed), ("without a graph", eager)):
            same = all(torch.equal(whole[key], other[key]) for key in whole)
            apart = max(float((whole[key].double() - other[key].double()).abs().max()) for key in whole)
            report.add("checks", what=f"weights, {preset}, {name}", same_bits=same, largest=apart)


def check_memory(report: Report, device: torch.device) -> None:
    """Too little memory is one line that says what to do."""
    if device.type != "cuda":
        return
    torch.cuda.set_per_process_memory_fraction(0.02, device)
    try:
        with tempfile.TemporaryDirectory() as out:
            runtime, pack = Runtime(device, False, True), MemoryPack(4_400, 128, 64)
            model, config = settings("paper-ae", batch_size=4_096)
            run = RunSettings(model, config, pack.preprocessing, "memory", "0" * 64, "cuda", False, True)
            try:
                with within_memory(Path(out), run):
                    make_loop(Path(out), pack, runtime, preset="paper-ae", batch_size=4_096).run(
                        None, threading.Event()
                    )
                message = "no error"
            except ConfigError as err:
                message = str(err)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    report.add(
        "checks",
        what="out of memory",
        one_line="\n" not in message and "batch_size" in message,
        message=message,
    )
