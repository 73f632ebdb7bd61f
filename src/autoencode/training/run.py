"""A run folder: what was asked for (run.json) and how it went (metrics.jsonl, one object a line).

What to tell of a run that learns nothing, while there is time to stop it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import append_line, parse_json, write_bytes, write_json
from autoencode.data.loader import batches
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import ConfigError, RunError
from autoencode.models.model_file import MODEL_NAME
from autoencode.models.networks import ModelConfig
from autoencode.training.checkpoint import CHECKPOINT_NAME
from autoencode.training.config import TrainConfig

if TYPE_CHECKING:
    from autoencode.data.pack import Pack

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
FORMAT_VERSION = 1

Record = dict[str, float]


@dataclass(frozen=True)
class RunSettings:
    """All that determines the weights of a run on one kind of processor, and where its images are.

    Attributes:
        model: the network.
        train: how it is trained.
        preprocessing: how its images were read.
        pack: path or URL of the pack of its images.
        fingerprint: the pack's, so that other images are noticed.
        device: kind of the device it is trained on: "cpu", "cuda" or "mps".
        bf16: whether convolutions multiply in bfloat16.
        channels_last: whether images lie in memory with channels innermost.
        processes: how many trained it last, each its share of every batch. Their sums are rounded in another
            order, and nothing else differs.
        window: rows of the pack that are mixed at once; 0 for all of them.
    """

    model: ModelConfig
    train: TrainConfig
    preprocessing: Preprocessing
    pack: str
    fingerprint: str
    device: str
    bf16: bool
    channels_last: bool
    processes: int = 1
    window: int = 0


def is_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return (folder / RUN_NAME).is_file()


def holds_state(folder: Path) -> bool:
    """Whether the run in `folder` has come to anything that starting anew would lose."""
    return (folder / CHECKPOINT_NAME).exists() or (folder / MODEL_NAME).exists()


def write_run(folder: Path, run: RunSettings) -> None:
    """Write run.json, whole or not at all."""
    content = {
        "format": FORMAT_VERSION,
        "model": run.model.to_json(),
        "train": run.train.to_json(),
        "preprocessing": run.preprocessing.to_json(),
        "pack": run.pack,
        "fingerprint": run.fingerprint,
        "runtime": {
            "device": run.device,
            "bf16": run.bf16,
            "channels_last": run.channels_last,
            "processes": run.processes,
            "window": run.window,
        },
    }
    write_json(folder / RUN_NAME, content)


def read_run(folder: Path) -> RunSettings:
    """Read run.json.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / RUN_NAME
    try:
        content = parse_json(path.read_bytes())
        if content["format"] > FORMAT_VERSION:
            raise RunError(f"{path} was written by a newer autoencode. Upgrade to continue this run.")
        return RunSettings(
            ModelConfig.from_json(content["model"]),
            TrainConfig.from_json(content["train"]),
            Preprocessing.from_json(content["preprocessing"]),
            _text(content["pack"]),
            _text(content["fingerprint"]),
            **_runtime(content["runtime"]),
        )
    except NotADirectoryError as err:
        known = f": {folder.parent}" if is_run(folder.parent) else ""
        raise RunError(f"{folder} is a file. Give the folder of the run{known}.") from err
    except FileNotFoundError as err:
        raise RunError(
            f"No run in {folder}. Give the folder of a run; to start one there, train without --resume."
        ) from err
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as err:
        raise RunError(f"{path} is damaged ({err}). Start again in another folder.") from err


def _runtime(content: dict[str, Any]) -> dict[str, Any]:
    """Return how a run was placed, or raise ValueError where that cannot be."""
    if not all(isinstance(content[name], bool) for name in ("bf16", "channels_last")):
        raise ValueError("bf16 and channels_last must be true or false")
    if not isinstance(content["device"], str) or not re.fullmatch("[a-z]{1,16}", content["device"]):
        raise ValueError("device must be the name of one")
    counts = (content.get("processes", 1), content.get("window", 0))
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        raise ValueError("processes and window must be whole numbers")
    return content


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("pack and fingerprint must be text")
    return value


def read_metrics(folder: Path) -> list[Record]:
    """Return the lines of metrics.jsonl, oldest first; a last line cut short by a crash is left out.

    Raises:
        RunError: another line cannot be read.
    """
    try:
        text = (folder / METRICS_NAME).read_text(errors="replace")
    except FileNotFoundError:
        return []
    records: list[Record] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            if number < len(lines):
                path = folder / METRICS_NAME
                raise RunError(f"Line {number} of {path} is damaged. Remove it to continue.") from err
    return records


def _record(line: str) -> Record:
    """Return what a line holds, or raise ValueError, KeyError or TypeError where it is no record."""
    record: Record = parse_json(line)
    values = {name: value for name, value in record.items() if value is not None}
    if not all(isinstance(value, int | float) for value in values.values()):
        raise ValueError("not a number")
    if not all(math.isfinite(values[name]) for name in ("epoch", "step", "val_loss")):
        raise ValueError("not finite")
    return record


def append_metrics(folder: Path, record: Mapping[str, float]) -> None:
    """Append a line to metrics.jsonl and see it onto the disk; numbers that are not finite become null.

    Raises:
        OutputError: it cannot be written.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
    append_line(folder / METRICS_NAME, json.dumps(finite))


def keep_metrics_up_to(folder: Path, step: int) -> None:
    """Drop the lines a resumed run will write again: those after `step`."""
    kept: list[Any] = [record for record in read_metrics(folder) if record["step"] <= step]
    write_bytes(folder / METRICS_NAME, "".join(json.dumps(record) + "\n" for record in kept).encode())


# Epochs without progress before something is said: this share of all, and no fewer than this.
PATIENT_SHARE, PATIENT_EPOCHS = 1 / 3, 3

# Validation error so many times that of training images means a likelihood that is far too sure.
OVERCONFIDENT = 4

# Images that the mean image is measured on; more would move it by less than a level in 255.
MEAN_IMAGES, MEAN_BATCH = 5_000, 64


def advice(records: Sequence[Record], config: TrainConfig, constant_mse: Callable[[], float]) -> str | None:
    """Say what is wrong and what to try, or None where nothing is, or it is too early to say.

    Args:
        records: the lines of metrics.jsonl so far.
        config: how the run is trained.
        constant_mse: gives what `constant_image_mse` measures; asked only once it matters.
    """
    sigma2 = records[-1].get("sigma2") if records and config.loss == "gaussian" else None
    if config.sigma2 == "auto" and sigma2 and (error := records[-1]["val_mse"]) > OVERCONFIDENT * sigma2:
        return (
            f"Validation mse {error:.5f} is far above sigma2 {sigma2:.5f}, the error of training images: "
            "they are known by heart. Use a smaller --code-size, or more images."
        )
    patience = max(PATIENT_EPOCHS, math.ceil(PATIENT_SHARE * config.total_epochs))
    if len(records) < patience:
        return None
    last = records[-1]
    slower = f"Try a lower learning rate (it is {config.learning_rate:g})"
    if last["val_mse"] >= (constant := constant_mse()):
        weight = "sigma2" if config.loss == "gaussian" else "beta"
        narrower = f", a smaller {weight} or a warm-up" if "val_kl" in last else ""
        return (
            f"After {len(records)} epochs the model is no better than one constant image: validation mse "
            f"{last['val_mse']:.5f}, of the mean image {constant:.5f}. {slower}{narrower}."
        )
    # While the weight of the KL changes, losses of two epochs are not of one objective.
    alike = [record for record in records if record.get("beta") == last.get("beta")]
    best = min(alike, key=lambda record: record["val_loss"])
    if (waited := len(alike) - 1 - alike.index(best)) < patience:
        return None
    learning = last["train_loss"] < best["train_loss"]
    return f"Validation has not got better for {waited} epochs, since epoch {best['epoch']:.0f}. " + (
        "The model still gets better on its training images alone: use fewer epochs, or more images."
        if learning
        else f"{slower}."
    )


def constant_image_mse(
    pack: Pack, train_rows: NDArray[np.int64], validation_rows: NDArray[np.int64]
) -> float:
    """Mean squared error a value, on validation images, of the mean of training images."""
    return float(constant_image_errors(pack, train_rows, validation_rows[:MEAN_IMAGES]).mean())


def constant_image_errors(
    pack: Pack, train_rows: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean squared error a value (N,) of the mean of training images, for each image of `rows` (N,)."""
    total, count = torch.zeros(1), 0
    for images in batches(pack, train_rows[:MEAN_IMAGES], MEAN_BATCH):
        total, count = total + images.double().sum(0), count + len(images)
    mean = total / count
    errors = [(images - mean).square().flatten(1).mean(1) for images in batches(pack, rows, MEAN_BATCH)]
    return torch.cat(errors).double().numpy()
