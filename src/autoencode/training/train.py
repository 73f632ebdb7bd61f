"""Train a model on a folder of images: what a run is started with, and what it may be continued with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autoencode.data.images import Limits, Preprocessing
from autoencode.data.pack import Pack, is_pack, open_pack, pack_folder
from autoencode.errors import ConfigError, RunError
from autoencode.files import TEMPORARY_SUFFIX, exclusive, remove_temporaries
from autoencode.models.autoencoder import Autoencoder, ModelConfig
from autoencode.models.modelfile import MODEL_NAME
from autoencode.training.allocator import keep_freed_memory
from autoencode.training.config import DEFAULT_PRESET, check_fit, settings
from autoencode.training.interrupts import interrupts
from autoencode.training.loop import Loop, Progress
from autoencode.training.runlog import Record, RunSettings, is_run, read_metrics, read_run, write_run
from autoencode.training.runtime import Precision, choose_runtime


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        model_path: the trained model in it.
        pack_path: the pack of its images.
        metrics: the lines of metrics.jsonl, one an epoch.
    """

    folder: Path
    model_path: Path
    pack_path: Path
    metrics: list[Record]


def train(
    source: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    preprocessing: Preprocessing | None = None,
    limits: Limits | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    channels_last: bool = True,
    keep_memory: bool = True,
    progress: Callable[[Progress], None] | None = None,
    packing_progress: Callable[[int, int], None] | None = None,
    **overrides: Any,  # noqa: ANN401
) -> Run:
    """Train a model and leave it in a run folder.

    Args:
        source: a folder of images, or a pack of one. A folder is packed first, into a pack beside the run
            that later runs on the same folder use again.
        out: the run folder; made here.
        preset: a name in `PRESETS`; the default is the paper's autoencoder.
        preprocessing: size and fit of the images; the default is `Preprocessing()`, or the pack's own.
        limits: the largest files and pictures to accept while packing.
        resume: continue the run in `out` with the settings it was started with. Settings given as well must
            agree with those, but for more epochs under a constant learning rate.
        checkpoint_every: steps between checkpoints; the default is one each epoch.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (bf16 where the hardware multiplies it), "fp32", "bf16".
        channels_last: whether images lie in memory with channels innermost (faster).
        keep_memory: whether freed memory is kept for the next step (see `allocator`); for this process.
        progress: called after each step and epoch.
        packing_progress: called with (files done, files in all) while packing.
        **overrides: settings that differ from the preset: fields of `ModelConfig` and `TrainConfig`, such as
            `epochs=20`, `code_size=128`, `kind="vae"`.

    Raises:
        ConfigError: settings that cannot be used.
        ImageFolderError: `source` holds no usable image.
        RunError: `out` is something else, holds a run and `resume` is False, or is being written by another
            process; or `resume` with other settings or images.
        DivergedError: the loss is no longer finite; the last good model is kept.
        OutputError: the disk is full or not writable; what was saved before is whole.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    if keep_memory:
        keep_freed_memory()
    source, out = Path(source), Path(out)
    runtime = choose_runtime(device, precision, channels_last)
    _check_out(out, resume)
    if resume:
        run, pack = _continued(out, source, preset, preprocessing, overrides)
    else:
        run, pack = _started(out, source, preset, preprocessing, limits, packing_progress, overrides)
    with exclusive(out, f"{out} is being trained by another process.", RunError):
        _check_out(out, resume)  # again: another process may have had the lock while this one was packing
        remove_temporaries(out)
        write_run(out, run)
        loop = Loop(out, run, pack, runtime, progress or (lambda _: None))
        with interrupts() as interrupted:
            loop.run(checkpoint_every, interrupted)
    return Run(out, out / MODEL_NAME, pack.path, read_metrics(out))


def pack_path_for(source: Path, out: Path, preprocessing: Preprocessing) -> Path:
    """Where `train` keeps the pack of a folder: beside the run, one for each folder and preprocessing."""
    key = hashlib.sha256(f"{source.resolve()} {preprocessing.to_json()}".encode(errors="surrogateescape"))
    size = f"{preprocessing.height}x{preprocessing.width}"
    return out.absolute().parent / f"{source.resolve().name}-{size}-{key.hexdigest()[:6]}.pack"


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose a folder for the run.")
    if resume:
        return
    if is_run(out):
        raise RunError(f"{out} holds a run already. Add --resume to continue it, or choose another --out.")
    # A lock or a temporary file alone is what a run leaves that was killed in its first moment.
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if any(name != ".lock" and not name.endswith(TEMPORARY_SUFFIX) for name in names):
        raise RunError(f"{out} is not empty and not a run of ours. Choose another --out.")


def _started(
    out: Path,
    source: Path,
    preset: str | None,
    preprocessing: Preprocessing | None,
    limits: Limits | None,
    packing_progress: Callable[[int, int], None] | None,
    overrides: dict[str, Any],
) -> tuple[RunSettings, Pack]:
    model, config = settings(preset or DEFAULT_PRESET, **overrides)
    if is_pack(source):
        pack = open_pack(source)
        if preprocessing not in (None, pack.preprocessing):
            raise ConfigError(
                f"{source} was packed as {pack.preprocessing}; other sizes need another pack. "
                "Leave --size and --fit out, or train on the folder itself."
            )
    else:
        preprocessing = preprocessing or Preprocessing()
        _check_size(model, preprocessing)  # before the long work of packing
        path = pack_path_for(source, out, preprocessing)
        pack = pack_folder(source, path, preprocessing, limits=limits or Limits(), progress=packing_progress)
    _check_size(model, pack.preprocessing)
    location = str(pack.path.resolve())
    return RunSettings(model, config, pack.preprocessing, location, pack.fingerprint), pack


def _check_size(model: ModelConfig, preprocessing: Preprocessing) -> None:
    """Refuse images of a size the network cannot have; built without memory or random numbers."""
    with torch.device("meta"):
        Autoencoder(model, preprocessing)


def _continued(
    out: Path,
    source: Path,
    preset: str | None,
    preprocessing: Preprocessing | None,
    overrides: dict[str, Any],
) -> tuple[RunSettings, Pack]:
    run = read_run(out)
    pack = open_pack(Path(run.pack))
    if source.resolve() not in (pack.path.resolve(), pack.folder.resolve()):
        raise RunError(f"The run in {out} was started on {pack.folder}, not on {source}.")
    if pack.fingerprint != run.fingerprint:
        raise RunError(
            f"The images of {pack.path} are not those the run in {out} was started on. Start a new run."
        )
    if preprocessing not in (None, run.preprocessing):
        raise RunError(f"The run in {out} was started with {run.preprocessing}, not {preprocessing}.")
    return _with_overrides(out, run, preset, overrides), pack


def _with_overrides(
    out: Path, run: RunSettings, preset: str | None, overrides: dict[str, Any]
) -> RunSettings:
    """Check that settings given with --resume are those of the run, but for more epochs."""
    stored = {**run.model.to_json(), **run.train.to_json()}
    if preset is not None:
        model, config = settings(preset, **overrides)
        epochs = overrides.get("epochs", run.train.epochs)
        overrides = {**model.to_json(), **config.to_json(), "epochs": epochs}
    differing = {name for name in overrides if overrides[name] != stored.get(name)}
    spread = run.train.warmup_cycles or run.train.adversarial  # over all the steps
    open_ended = run.train.schedule == "constant" and not spread
    if "epochs" in differing and open_ended and overrides["epochs"] > run.train.epochs:
        run = replace(run, train=replace(run.train, epochs=overrides["epochs"]))
        differing.remove("epochs")
    if differing:
        listed = ", ".join(f"{name} {stored.get(name)}, not {overrides[name]}" for name in sorted(differing))
        raise RunError(
            f"The run in {out} was started with {listed}. "
            "Leave that out to continue it, or choose another --out."
        )
    check_fit(run.model, run.train)
    return run
