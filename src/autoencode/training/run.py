"""A run folder: its settings (run.json), its metrics (metrics.jsonl, an object a line) and its checkpoint.

The checkpoint holds all the state of a run in one file, so that the run continues as if it had never
stopped. Whatever is a function of (seed, epoch, step) is not in it: the order of the images, the corruptions,
the noise, the learning rate, beta.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoencode.atomic import append_line, parse_json, write_bytes, write_json
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import ConfigError, DivergedError, RunError
from autoencode.models.model_file import MODEL_NAME, read_tensors, write_tensors
from autoencode.models.networks import ModelConfig
from autoencode.training.config import TrainConfig
from autoencode.training.repeat import CONFIG_NAME, run_file

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.adversarial import Adversary

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
CHECKPOINT_NAME = "checkpoint.safetensors"
_RUN_VERSION = 1
_CHECKPOINT_VERSION = 1

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
    """Write run.json, and run.toml for people; each whole or not at all."""
    content = {
        "format": _RUN_VERSION,
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
    write_bytes(folder / CONFIG_NAME, run_file(run).encode())


def read_run(folder: Path) -> RunSettings:
    """Read run.json.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / RUN_NAME
    try:
        content = parse_json(path.read_bytes())
        if content["format"] > _RUN_VERSION:
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


@dataclass
class TrainState:
    """A run at one moment.

    Attributes:
        model: the weights being trained, and the running sigma2.
        averaged: the running average of the weights; `model` itself where none is kept.
        optimizer: with its moments.
        step: optimiser steps taken.
        sums: (4,) float64: loss, reconstruction, kl and mse summed over the images of this epoch so far.
        seconds: time spent on the training steps of this epoch so far, waiting for images included.
        waited: the part of it spent waiting.
        adversary: the discriminator with its optimiser and sums, where there is one.
    """

    model: Autoencoder
    averaged: Autoencoder
    optimizer: torch.optim.Optimizer
    step: int
    sums: Tensor
    seconds: float = 0.0
    waited: float = 0.0
    adversary: Adversary | None = None


def all_finite(state: TrainState) -> bool:
    """Whether every weight, moment and sum is finite; from others training cannot be continued."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(state).values())


def save_checkpoint(folder: Path, state: TrainState) -> None:
    """Write the state, whole or not at all.

    Raises:
        DivergedError: a number is not finite; the checkpoint before is unchanged.
        OutputError: it cannot be written; the checkpoint before is unchanged.
    """
    if not all_finite(state):
        raise DivergedError(f"The weights are no longer finite after {state.step} steps.")
    content = {"step": state.step, "seconds": state.seconds, "waited": state.waited}
    write_tensors(folder / CHECKPOINT_NAME, "checkpoint", _CHECKPOINT_VERSION, _tensors(state), content)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Put the saved state into `state`, whose model and optimizer are built as they were then.

    Raises:
        RunError: the file is damaged, newer, or of another network.
    """
    path = folder / CHECKPOINT_NAME
    tensors, content, _ = read_tensors(path, "checkpoint", _CHECKPOINT_VERSION, RunError)
    try:
        state.model.load_state_dict(_under("model/", tensors))
        if state.averaged is not state.model:
            state.averaged.load_state_dict(_under("averaged/", tensors))
        _restore(state.optimizer, _under("optimizer/", tensors))
        state.sums = _like(state.sums, tensors["sums"])
        state.step, state.seconds, state.waited = _position(content)
        if adversary := state.adversary:
            adversary.discriminator.load_state_dict(_under("discriminator/", tensors))
            _restore(adversary.optimizer, _under("discriminator_optimizer/", tensors))
            adversary.sums = _like(adversary.sums, tensors["discriminator_sums"])
    except (KeyError, ValueError, RuntimeError) as err:
        raise RunError(f"{path} is not of this run's network: {err}".splitlines()[0]) from err


def _position(content: Mapping[str, Any]) -> tuple[int, float, float]:
    """Return step, seconds and waited, or raise ValueError: training would go on from anywhere."""
    step, seconds, waited = content["step"], content["seconds"], content["waited"]
    if (
        type(step) is not int
        or step < 0
        or any(type(value) not in (int, float) for value in (seconds, waited))
    ):
        raise ValueError(f"no step {step}")
    return step, seconds, waited


def _like(own: Tensor, saved: Tensor) -> Tensor:
    if (saved.shape, saved.dtype) != (own.shape, own.dtype):
        raise ValueError(f"sums of shape {tuple(saved.shape)}")
    return saved.to(own.device)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.averaged is not state.model:
        tensors |= {f"averaged/{name}": tensor for name, tensor in state.averaged.state_dict().items()}
    tensors |= _moments("optimizer", state.optimizer)
    if adversary := state.adversary:
        weights = adversary.discriminator.state_dict()
        tensors |= {f"discriminator/{name}": tensor for name, tensor in weights.items()}
        tensors |= _moments("discriminator_optimizer", adversary.optimizer)
        tensors["discriminator_sums"] = adversary.sums
    return {**tensors, "sums": state.sums}


def _moments(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}/{index}/{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _restore(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Put moments back, in the memory format of their parameters as they had it: files keep one only."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = tensor
    _check_moments(moments, [p for group in optimizer.param_groups for p in group["params"]])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for name, moment in own.items():
            if moment.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _check_moments(moments: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor]) -> None:
    """Reject moments of no parameter, of another shape or other names, and steps that cannot be counted."""
    if not moments.keys() <= set(range(len(parameters))) or len(set(map(frozenset, moments.values()))) > 1:
        raise ValueError("not every parameter has its moments")
    for index, own in moments.items():
        for name, moment in own.items():
            if name == "step":
                if moment.ndim or not 0 <= float(moment) < math.inf:
                    raise ValueError(f"parameter {index} has taken no such number of steps")
            elif moment.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} has the shape {tuple(moment.shape)}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
