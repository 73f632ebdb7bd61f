"""A run folder: its settings (run.json; run.toml for people) and its metrics, one line per epoch."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.atomic import append_line, is_locked, parse_json, write_bytes, write_json
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import VERSION, ConfigError, RunError, other_version
from autoencode.models.bundled import BUNDLED, RANDOM
from autoencode.models.model_file import MODEL_NAME
from autoencode.models.networks import NETWORKS, ModelConfig
from autoencode.training.config import RuntimeConfig, TrainConfig
from autoencode.training.settings import settings_file
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.data.pack import Pack

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "run.toml"
CHECKPOINT_NAME = "checkpoint.safetensors"
_RUN_VERSION = 2  # 1 had other names for settings, such as warmup for kl_warmup
START_AGAIN = "Start again in another folder."

Record = dict[str, float]


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines the weights of a run on one kind of processor, and the pack it reads.

    Attributes:
        model: the network.
        train: how it is trained.
        preprocessing: how its images were read.
        pack: path or URL of the pack of its images.
        fingerprint: that of the pack, by which other images are noticed.
        device: kind of the device: "cpu", "cuda" or "mps".
        bf16: whether convolutions multiply in bfloat16.
        channels_last: whether images lie in memory with channels innermost.
        processes: number of processes that trained it last. Another number rounds sums in another order and
            changes nothing else.
        window: rows of the pack that are shuffled together; 0 for all of them.
        chosen: which settings the images decided, and why; "" for none.
        init: path of the model that the first weights are from, "bundled" or "random".
        extended_at: steps that were taken when more epochs were last asked for; the schedule of the learning
            rate and the patience of early stopping begin anew there.
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
    chosen: str = ""
    init: str = RANDOM
    extended_at: int = 0


def is_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return (folder / RUN_NAME).is_file()


def holds_state(folder: Path) -> bool:
    """Whether the run in `folder` has a checkpoint or a model, which a new run would overwrite."""
    return (folder / CHECKPOINT_NAME).exists() or (folder / MODEL_NAME).exists()


def write_run(folder: Path, run: RunSettings) -> None:
    """Write run.json, and run.toml for people, each atomically."""
    content = {
        "format": _RUN_VERSION,
        "model": run.model.to_json(),
        "train": run.train.to_json(),
        "preprocessing": run.preprocessing.to_json(),
        "pack": run.pack,
        "fingerprint": run.fingerprint,
        "chosen": run.chosen,
        "init": run.init,
        "extended_at": run.extended_at,
        "runtime": {
            "device": run.device,
            "bf16": run.bf16,
            "channels_last": run.channels_last,
            "processes": run.processes,
            "window": run.window,
        },
    }
    write_json(folder / RUN_NAME, content)
    write_bytes(folder / CONFIG_NAME, run_file(run).encode())


def read_run(folder: Path) -> RunSettings:
    """Read run.json.

    Raises:
        RunError: `folder` has no run.json, or it is damaged or of another version.
    """
    path = folder / RUN_NAME
    try:
        content = parse_json(read_file(path))
        if (found := content["format"]) != _RUN_VERSION:
            raise RunError(other_version(path, found, _RUN_VERSION, START_AGAIN))
        return RunSettings(
            ModelConfig.from_json(content["model"]),
            TrainConfig.from_json(content["train"]),
            Preprocessing.from_json(content["preprocessing"]),
            _text(content["pack"]),
            _text(content["fingerprint"]),
            **_runtime(content["runtime"]),
            chosen=_text(content.get("chosen", "")),
            init=_text(content.get("init", "")) or RANDOM,
            extended_at=_count(content.get("extended_at", 0)),
        )
    except NotADirectoryError as err:
        known = f": {folder.parent}" if is_run(folder.parent) else ""
        raise RunError(f"{folder} is a file. Give the folder of the run{known}.") from err
    except FileNotFoundError as err:
        raise RunError(f"No run in {folder}. Give the folder that `autoencode train --out` made.") from err
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as err:
        raise RunError(f"{path} is damaged ({err}). {START_AGAIN}") from err


def _runtime(content: dict[str, Any]) -> dict[str, Any]:
    """Return device, precision, memory format and processes; ValueError if one of them is not possible."""
    if not all(isinstance(content[name], bool) for name in ("bf16", "channels_last")):
        raise ValueError("bf16 and channels_last must be true or false")
    if not isinstance(content["device"], str) or not re.fullmatch("[a-z]{1,16}", content["device"]):
        raise ValueError("device must be the name of one")
    # Bounded to 64 bits, as a forged file could otherwise hold integers that no array index can.
    for name in ("processes", "window"):
        _count(content.get(name, 0))
    return content


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("processes, window and extended_at must be whole numbers")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("pack, fingerprint, chosen and init must be text")
    return value


def read_metrics(folder: Path) -> list[Record]:
    """Return the lines of metrics.jsonl, oldest first, without a last line that a crash cut short.

    Raises:
        RunError: a line before the last is damaged.
    """
    try:
        text = read_file(folder / METRICS_NAME, TEXT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as err:
        raise RunError(f"{folder / METRICS_NAME}: {err.strerror or err}.") from err
    records: list[Record] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            if number < len(lines):  # a crash can only have cut the last line
                path = folder / METRICS_NAME
                raise RunError(f"Line {number} of {path} is damaged. Remove it to continue.") from err
    return records


def _record(line: str) -> Record:
    """Parse a line; ValueError, KeyError or TypeError if it is not a record."""
    record: Record = parse_json(line)
    values = {name: value for name, value in record.items() if value is not None}
    if not all(isinstance(value, int | float) for value in values.values()):
        raise ValueError("not a number")
    # An epoch of the perceptual phase has no validation loss: it changes nothing that the loss is of.
    loss = "val_perceptual" if "val_perceptual" in values else "val_loss"
    if not all(math.isfinite(values[name]) for name in ("epoch", "step", loss)):
        raise ValueError("not finite")
    return record


def provenance(run: RunSettings, images: Mapping[str, int], record: Record) -> dict[str, Any]:
    """Return the origin of weights, without times or paths, so that the same run writes the same file.

    Args:
        run: the settings.
        images: the number of images, by split.
        record: what was measured with these weights.
    """
    metrics = {name: value for name, value in record.items() if name.startswith(("val_", "train_"))}
    return {
        "autoencode": VERSION,
        "torch": version("torch"),
        "data": run.fingerprint,
        "images": dict(images),
        "train": run.train.to_json(),
        "epoch": record["epoch"],
        "metrics": metrics,
    }


def state_of_run(folder: Path, epochs: int) -> dict[str, Any]:
    """Return the metrics of a run of so many epochs, and whether it is training."""
    records = read_metrics(folder)
    # The lock, not the age of the log: an epoch of a large data set can take hours.
    is_training = bool(epochs) and is_locked(folder)
    return {
        "records": records,
        "epochs": epochs,
        "training": is_training,
        "seconds_left": _seconds_left(folder, records, epochs) if is_training else None,
    }


def _seconds_left(folder: Path, records: list[Record], epochs: int) -> float | None:
    """Return the seconds that the remaining epochs will take at the pace of the last; None before it."""
    if not records or (pace := records[-1].get("seconds")) is None:
        return None
    left = pace * (epochs - records[-1]["epoch"])
    try:
        since = time.time() - (folder / METRICS_NAME).stat().st_mtime
    except OSError:
        return None
    # In steps of 5 s, or every poll would be a change, and be sent with all records.
    return max(0.0, math.ceil((left - since) / 5) * 5.0)


def append_metrics(folder: Path, record: Mapping[str, float]) -> None:
    """Append a line to metrics.jsonl and sync it; numbers that are not finite become null.

    Raises:
        OutputError: the line cannot be written.
    """
    # JSON has no NaN; Python would write one that other readers reject.
    finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
    append_line(folder / METRICS_NAME, json.dumps(finite))


def keep_metrics_up_to(folder: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again."""
    kept: list[Any] = [record for record in read_metrics(folder) if record["step"] <= step]
    write_bytes(folder / METRICS_NAME, "".join(json.dumps(record) + "\n" for record in kept).encode())


def run_file(run: RunSettings) -> str:
    """Return the settings of a run as a file that `autoencode train --config` takes."""
    runtime = RuntimeConfig(run.device, "bf16" if run.bf16 else "fp32", run.channels_last)
    title = "Settings of the run in this folder. Changing them here does not change the run."
    return settings_file(title, (run.model, run.train, run.preprocessing, runtime))


def repeating_command(folder: Path, pack: Pack) -> str:
    """Return the command that trains the run in a folder again, on the images of its pack."""
    config = str(folder / CONFIG_NAME)
    origin = getattr(pack, "origin", "")
    source = origin if origin and Path(origin).exists() else str(pack.folder)
    run = read_run(folder)
    # Random weights are what only a restorer has to be asked for.
    start = ["--init", run.init] if run.init != RANDOM or run.model.kind == "restorer" else []
    return shlex.join(["autoencode", "train", source, "--config", config, *start, "--out", "again"])


_KINDS = {"vae": "variational autoencoder"}


def settings_in_words(run: RunSettings) -> list[tuple[str, str]]:
    """Return (setting, value) pairs that a reader of the page understands without the code."""
    model, config = run.model, run.train
    found = [
        ("model", _KINDS.get(model.kind, model.kind)),
        ("network", f"{NETWORKS[model.network].summary}; channels {', '.join(map(str, model.widths))}"),
        ("code", "none" if model.kind == "restorer" else f"{model.code_size} dimensions"),
        ("batch normalisation", "after each convolution" if model.batch_norm else "none"),
        ("images", f"{run.preprocessing.height}x{run.preprocessing.width}, {run.preprocessing.resize_mode}"),
        ("loss", _loss(run)),
        ("epochs", _epochs(run)),
        ("optimiser", f"{config.optimizer}, rate {config.learning_rate:g}, {config.schedule}"),
        ("batch", f"{config.batch_size} images"),
    ]
    if config.corrupt:
        found.append(("corruptions", ", ".join(config.corrupt)))
    if config.horizontal_flip:
        found.append(("horizontal flip", "half of the time"))
    if config.shift:
        found.append(("shift", f"up to {config.shift} pixels in each direction"))
    if run.init != RANDOM:
        source = "the bundled restorer" if run.init == BUNDLED else run.init
        found.append(("first weights", f"those of {source}"))
    found.append(("seed", str(config.seed)))
    return found


def _loss(run: RunSettings) -> str:
    config = run.train
    if run.model.kind != "vae":
        words = {"mse": "mean squared error", "mae": "mean absolute error", "log_mse": "logarithm of the "}
        words["log_mse"] += "mean squared error of an image"
        return words.get(config.loss, config.loss)
    likelihood = {
        "mse": "squared errors summed over an image, a Gaussian likelihood with sigma2 0.5",
        "mae": "absolute errors summed over an image, a Laplace likelihood of scale 1",
    }.get(config.loss, f"Gaussian likelihood, sigma2 {config.sigma2}")
    return f"{likelihood}, and {config.beta:g} times the KL"


def _epochs(run: RunSettings) -> str:
    config = run.train
    if config.kl_warmup:
        return f"{config.kl_warmup} of warm-up and {config.epochs}"
    cycles = f", {config.kl_warmup_cycles} cycles of warm-up" if config.kl_warmup_cycles else ""
    return f"{config.epochs}{cycles}"
