"""What the checks and the measurements of a GPU share: images in memory, the loop of `train`, the report.

Imported first, it makes the modules of this checkout importable on a machine that has torch, numpy, Pillow
and safetensors alone.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
if "autoencode" not in sys.modules:
    # The package itself imports a library for lazy names, which a bare machine lacks; its modules do not.
    package = types.ModuleType("autoencode")
    package.__path__ = [str(ROOT / "src" / "autoencode")]
    sys.modules["autoencode"] = package

from autoencode.data.pack import HeldOut  # noqa: E402
from autoencode.data.preprocessing import Preprocessing  # noqa: E402
from autoencode.training.config import TrainConfig  # noqa: E402
from autoencode.training.loop import Loop  # noqa: E402
from autoencode.training.presets import settings  # noqa: E402
from autoencode.training.run import RunSettings  # noqa: E402
from autoencode.training.runtime import Runtime  # noqa: E402

CPU = torch.device("cpu")


class MemoryPack:
    """Images in memory, in the place of a pack: smooth random pictures, as bytes."""

    def __init__(self, images: int, side: int, held_out: int) -> None:
        generator = np.random.default_rng(0)
        few = generator.integers(0, 256, (min(images, 256), side // 8, side // 8, 3), np.uint8)
        few = few.repeat(8, 1).repeat(8, 2)
        few = (few // 2 + np.roll(few, 4, 1) // 4 + np.roll(few, 4, 2) // 4).astype(np.uint8)
        self._pixels = few
        self._count, self._held_out = images, held_out
        self.preprocessing = Preprocessing(height=side, width=side)
        self.rows_per_shard, self.window, self.fingerprint, self.location = images, 0, "0" * 64, "memory"
        self.path = Path("memory")

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        return self._pixels[rows % len(self._pixels)]

    def training_rows(self) -> np.ndarray:
        return np.arange(self._held_out, self._count)

    def held_out(self, _split: str) -> HeldOut:
        return HeldOut(np.arange(self._held_out), "validation")

    def reading_order(self, rows: np.ndarray, _window: int | None = None) -> np.ndarray:
        return rows


def make_loop(out: Path, pack: MemoryPack, runtime: Runtime, **overrides: Any) -> Loop:  # noqa: ANN401
    """The loop of `train` on these images."""
    if any(field.name == "perceptual" for field in fields(TrainConfig)):
        overrides.setdefault("perceptual", 0.0)  # needs pretrained weights, which are not at hand
    model, config = settings(**overrides)
    used = runtime.device.type, runtime.bf16, runtime.channels_last
    run = RunSettings(model, config, pack.preprocessing, "memory", pack.fingerprint, *used)
    return Loop(out, run, pack, runtime, lambda _: None)  # type: ignore[arg-type]


class NoGraph(Runtime):
    """Steps are not recorded."""

    def captured(self, work: Any) -> None:  # noqa: ANN401
        return None


class Report:
    """Results, written to the disk as they come, within a time."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.ends = out, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {
            "machine": {},
            "checks": [],
            "training": [],
            "other": [],
            "left_out": [],
        }
        out.mkdir(parents=True, exist_ok=True)

    def add(self, kind: str, **row: Any) -> None:  # noqa: ANN401
        """Keep a result."""
        rounded = {name: _short(value) for name, value in row.items()}
        if kind == "machine":
            self.found["machine"] |= rounded
        else:
            self.found[kind].append(rounded)
        print(kind, " ".join(f"{name}={value}" for name, value in rounded.items()), flush=True)
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=1))
        (self.out / "gpu.md").write_text(self.text())

    @contextmanager
    def part(self, name: str, seconds: float) -> Iterator[bool]:
        """A part that needs about so many seconds: yields whether there is time for it.

        An error ends the part alone, and is kept.
        """
        is_time = time.monotonic() + seconds < self.ends
        try:
            yield is_time
            if not is_time:
                self.add("left_out", what=name, why="no time")
        except Exception as err:
            traceback.print_exc()
            self.add("left_out", what=name, why=f"{type(err).__name__}: {str(err).splitlines()[:1]}"[:300])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def text(self) -> str:
        """The results as tables."""
        lines = ["; ".join(f"{name} {value}" for name, value in self.found["machine"].items())]
        for kind in ("checks", "training", "other", "left_out"):
            rows = self.found[kind]
            names = list(dict.fromkeys(name for row in rows for name in row))
            if rows:
                lines += ["", f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
                lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
        return "\n".join(lines) + "\n"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], times: int, device: torch.device) -> float:
    """The median seconds of a call, after two that are not counted."""
    found = []
    for _ in range(times + 2):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def _short(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
