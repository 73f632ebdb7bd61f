"""Train a model on a folder of images, or continue a run.

A run is continued with its own settings, images, device and precision; only more epochs and another number of
processes or micro-batches may be asked for. With the same number the result is the same bit for bit, with
another it is the same but for rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoencode.atomic import exclusive, names_in, remove_temporaries
from autoencode.data.corruptions import check_size, parse_corruptions
from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, local_folder, open_pack, pack_folder, preprocessing_of
from autoencode.data.preprocessing import Limits, Preprocessing, Size, preprocessing_for
from autoencode.errors import ConfigError, DivergedError, PackError, RunError
from autoencode.models.backbones import multiplies_bf16
from autoencode.models.model_file import MODEL_NAME
from autoencode.training.config import DEFAULT_PRESET, TrainConfig, changed, check_fit, settings
from autoencode.training.distributed import Processes, process_group
from autoencode.training.loop import Loop
from autoencode.training.process import interrupts, keep_freed_memory, own_ranks
from autoencode.training.run import (
    CHECKPOINT_NAME,
    Record,
    RunSettings,
    holds_state,
    is_run,
    read_metrics,
    read_run,
    write_run,
)
from autoencode.training.runtime import (
    Runtime,
    choose_runtime,
    within_memory,
    without_memory,
)

if TYPE_CHECKING:
    from autoencode.configuration import Precision
    from autoencode.data.pack import Progress
    from autoencode.models.networks import ModelConfig
    from autoencode.training.progress import TrainProgress


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        model_path: the trained model in it.
        pack_path: the pack of its images.
        metrics: the lines of metrics.jsonl, one per epoch.
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
    size: Size | None = None,
    preprocessing: Preprocessing | None = None,
    limits: Limits | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    channels_last: bool | None = None,
    keep_memory: bool = True,
    progress: Callable[[TrainProgress], None] | None = None,
    packing_progress: Progress | None = None,
    **overrides: Any,  # noqa: ANN401
) -> Run:
    """Train a model and leave it in a run folder.

    In a script that torchrun starts, all its processes train one model together, each on its local batch.
    The result is that of one process but for rounding. Process 0 alone writes; `out`, and images that are
    not packed yet, must be on a disk that all processes see.

    Args:
        source: a folder of images, or a pack of one, by its path or its URL in storage (see `open_pack`). A
            folder is packed first, into a pack beside the run, which later runs on the same folder reuse.
        out: the run folder, made here. A folder whose run diverged or was stopped before the end of its first
            epoch is reused.
        preset: a name in `PRESETS`; the default is the paper's autoencoder.
        size: size of the images, such as 128 (square), "96x160" or (96, 160), height first: multiples of 16.
        preprocessing: size and resize mode of the images, instead of `size`; the default is that of the
            pack, or `Preprocessing()`.
        limits: the largest files and images to accept while packing.
        resume: continue the run in `out` with the settings it was started with. Settings given as well must
            agree with those, except for more epochs under a constant learning rate. On the same kind of
            processor the result is bit for bit that of a run never stopped. A finished run is not changed.
        checkpoint_every: steps between checkpoints; the default is one each epoch.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (bf16 where the hardware multiplies it), "fp32", "bf16".
        channels_last: whether images lie in memory with channels innermost, which is faster and the default.
            With `resume`, the defaults of these three are those of the run.
        keep_memory: whether this process keeps freed memory for the next step (see `keep_freed_memory`).
        progress: called after each step and epoch, in process 0.
        packing_progress: called with (files done, files in all) while packing.
        **overrides: settings that differ from the preset: fields of `ModelConfig` and `TrainConfig`, such as
            `epochs=20`, `code_size=128`, `kind="vae"`.

    Raises:
        ConfigError: a setting is invalid or not possible on this machine, or there is not enough memory.
        ImageFolderError: `source` holds no usable image.
        RunError: `out` is not a run folder, holds a run while `resume` is False, or is being written by
            another process; or `resume` was given with other settings or images.
        StorageError: a pack in storage cannot be reached.
        DivergedError: the loss is no longer finite; the model of the last good epoch is kept.
        OutputError: the disk is full or not writable; files saved before are whole.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    if keep_memory:
        keep_freed_memory()
    out = Path(out)
    with process_group(own_ranks()) as processes:
        wanted = preprocessing_for(size, preprocessing)
        request = _Request(local_folder(source), out, preset, wanted, limits, overrides, packing_progress)
        machine = _Machine(processes.device(device), precision, channels_last)
        if processes.ranks.restarts and is_run(out):
            # A process was lost: all of them continue from the checkpoint, by the settings first given.
            resume, request = True, replace(request, preset=preset or DEFAULT_PRESET)
        prepared = _continued if resume else _started
        run, pack, runtime = prepared(request, machine, processes)
        run = _agreed(run, pack, processes)
        with _opened(out, run, resume, processes), within_memory(out, run), interrupts() as interrupted:
            loop = Loop(out, run, pack, runtime, progress or (lambda _: None), processes)
            with _without_diverged_state(out, processes):
                loop.run(checkpoint_every, interrupted)
        processes.wait()  # until process 0 has written everything
    return Run(out, out / MODEL_NAME, pack.path, read_metrics(out))


@dataclass(frozen=True)
class _Request:
    """Arguments of `train` that choose the settings and the images."""

    source: Path
    out: Path
    preset: str | None
    preprocessing: Preprocessing | None
    limits: Limits | None
    overrides: dict[str, Any]
    packing_progress: Progress | None


class _Machine(NamedTuple):
    """Arguments of `train` that say how to compute."""

    device: str
    precision: Precision
    channels_last: bool | None


def pack_path_for(source: Path, out: Path, preprocessing: Preprocessing) -> Path:
    """Where `train` keeps the pack of a folder: beside the run, one for each folder and preprocessing."""
    # Resolved, so that one folder given by two paths is packed once; names may hold bytes that are not UTF-8.
    key = hashlib.sha256(f"{source.resolve()} {preprocessing.to_json()}".encode(errors="surrogateescape"))
    size = f"{preprocessing.height}x{preprocessing.width}"
    return out.absolute().parent / f"{source.resolve().name}-{size}-{key.hexdigest()[:6]}.pack"


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose a folder for the run.")
    if resume:
        return
    if is_run(out):
        if not holds_state(out):  # it diverged or was stopped early: there is nothing to lose
            return
        raise RunError(f"{out} holds a run already. Add --resume to continue it, or choose another --out.")
    if names_in(out):
        raise RunError(f"{out} is not empty and not a run of ours. Choose another --out.")


def _packed(request: _Request, processes: Processes) -> Pack:
    """Open the pack given, or pack the folder given, in process 0."""
    source, preprocessing = request.source, request.preprocessing
    pack = None
    if not is_pack(source):
        preprocessing = preprocessing or Preprocessing()
        folder, source = source, pack_path_for(source, request.out, preprocessing)
        if processes.is_first:
            limits, progress = request.limits, request.packing_progress
            pack = pack_folder(folder, source, preprocessing, limits=limits, progress=progress)
    processes.wait()  # for the first, which may have packed
    if not processes.is_first and not is_pack(source):
        raise PackError(
            f"Process {processes.rank} does not see {source}, which process 0 reads. Put it on a disk "
            "that all machines share, or give each a copy of the pack."
        )
    # Process 0 keeps the pack it has just made: opening it again would read its whole list of files.
    pack = open_pack(source) if pack is None else pack
    if preprocessing not in (None, pack.preprocessing):
        raise ConfigError(
            f"{pack.location} was packed as {pack.preprocessing}; other sizes need another pack. "
            "Leave --size and --resize-mode out, or train on the folder itself."
        )
    return pack


def _agreed(run: RunSettings, pack: Pack, processes: Processes) -> RunSettings:
    """Check that all processes train the same run on the same images; return it with their number."""
    count = processes.world_size
    if count > 1 and run.train.adversarial:
        raise ConfigError("Adversarial training needs one process. Leave adversarial out, or the others.")
    # With fewer images than processes some would compute nothing at all, at every step.
    smallest = min(run.train.batch_size, len(pack.training_rows()))
    if count > smallest:
        raise ConfigError(
            f"{count} processes cannot share batches of {smallest} images. "
            "Use fewer processes, or larger batches."
        )
    run = replace(run, processes=count)
    own = processes.rank
    for rank, other in enumerate(processes.gather(run)):
        if other.fingerprint != run.fingerprint:
            raise PackError(
                f"Process {rank} has other images than process {own}. Give all machines copies of one pack."
            )
        # Machines may keep the pack at different paths; its fingerprint says whether it is the same.
        for name in (field.name for field in fields(run) if field.name != "pack"):
            if getattr(other, name) != getattr(run, name):
                raise ConfigError(
                    f"Process {rank} and process {own} do not train with the same {name}: "
                    f"{getattr(other, name)}, {getattr(run, name)}. Give both the same options."
                )
    return run


@contextmanager
def _opened(out: Path, run: RunSettings, resume: bool, processes: Processes) -> Iterator[None]:
    """Hold the run folder, made ready by the first process."""
    if not processes.is_first:
        processes.wait()
        yield
        return
    with exclusive(out, f"{out} is being trained by another process.", RunError):
        _check_out(out, resume)  # again: another process may have had the lock while this one was packing
        remove_temporaries(out)  # of a process that was killed while it wrote
        write_run(out, run)
        processes.wait()
        yield


def _started(request: _Request, machine: _Machine, processes: Processes) -> tuple[RunSettings, Pack, Runtime]:
    """Settings, images and runtime of a new run."""
    runtime = choose_runtime(machine.device, machine.precision, machine.channels_last is not False)
    model, config = settings(request.preset or DEFAULT_PRESET, **request.overrides)
    # Checked before packing, which may take hours, and again with the preprocessing of the pack.
    known = request.preprocessing or preprocessing_of(request.source)
    _check_images(model, config, known or Preprocessing())
    if processes.is_first:
        _check_out(request.out, resume=False)  # after the settings, whose errors do not depend on it
    pack = _packed(request, processes)
    _check_images(model, config, pack.preprocessing)
    images = pack.preprocessing, pack.location, pack.fingerprint
    computed = runtime.device.type, runtime.bf16, runtime.channels_last
    return RunSettings(model, config, *images, *computed, window=pack.window), pack, runtime


def _continued(
    request: _Request, machine: _Machine, processes: Processes
) -> tuple[RunSettings, Pack, Runtime]:
    """Settings, images and runtime of the run in `request.out`, checked against those asked for."""
    out, source, preprocessing = request.out, request.source, request.preprocessing
    # A device that no run could use is an error whatever the run is.
    choose_runtime(machine.device, machine.precision, machine.channels_last is not False)
    _check_out(out, resume=True)
    if not is_run(out):
        raise RunError(f"No run in {out} to continue. Leave --resume out to start one there.")
    run = read_run(out)
    pack = open_pack(run.pack)
    if source.resolve() not in (pack.path.resolve(), pack.folder.resolve()):
        raise RunError(f"The run in {out} was started on {pack.folder}, not on {source}.")
    if pack.fingerprint != run.fingerprint:
        raise RunError(
            f"The images of {pack.location} are not those the run in {out} was started on. Start a new run."
        )
    if preprocessing not in (None, run.preprocessing):
        raise RunError(f"The run in {out} was started with {run.preprocessing}, not {preprocessing}.")
    run = _with_overrides(out, run, request.preset, request.overrides)
    return run, pack, _same_runtime(out, run, machine)


def _same_runtime(out: Path, run: RunSettings, machine: _Machine) -> Runtime:
    """Choose the device, precision and memory format that the run was started with.

    Raises:
        RunError: another one was asked for.
        ConfigError: this machine does not have it.
    """
    device, precision, channels_last = machine
    try:
        runtime = choose_runtime(
            run.device if device == "auto" else device,
            ("bf16" if run.bf16 else "fp32") if precision == "auto" else precision,
            run.channels_last if channels_last is None else channels_last,
        )
    except ConfigError as err:
        raise ConfigError(f"{err} The run in {out} was started on {run.device}: continue it there.") from err
    asked = {
        "device": (run.device, runtime.device.type),
        "precision": _in_words(("fp32", "bf16"), run.bf16, runtime.bf16),
        "memory format": _in_words(
            ("channels first", "channels last"), run.channels_last, runtime.channels_last
        ),
    }
    _reject(out, {name: pair for name, pair in asked.items() if pair[0] != pair[1]})
    # Emulated bf16 gives the same result many times slower, which must be asked for.
    if precision == "auto" and runtime.bf16 and not multiplies_bf16(runtime.device):
        raise ConfigError(
            f"The run in {out} was started in bf16, which this machine only emulates, slowly. "
            "Continue it where it was started, or add --set precision=bf16 to do so here."
        )
    return runtime


def _in_words(names: tuple[str, str], *choices: bool) -> tuple[str, str]:
    stored, asked = (names[choice] for choice in choices)
    return stored, asked


def _with_overrides(
    out: Path, run: RunSettings, preset: str | None, overrides: dict[str, Any]
) -> RunSettings:
    """Check settings given with --resume: only more epochs and another number of micro-batches may differ."""
    # The way to continue a run that ran out of memory: micro-batches change nothing but rounding.
    accumulate = overrides.get("accumulate", run.train.accumulate)
    run = replace(run, train=replace(run.train, accumulate=accumulate))
    if preset is not None:
        model, config = settings(preset, **overrides)
        config = replace(config, epochs=overrides.get("epochs", run.train.epochs), accumulate=accumulate)
    else:
        model, config = changed(run.model, run.train, overrides)
    stored, asked = asdict(run.model) | asdict(run.train), asdict(model) | asdict(config)
    differing = {name: (stored[name], asked[name]) for name in stored if stored[name] != asked[name]}
    if run.train.fixes_epochs is None and config.epochs > run.train.epochs:
        run = replace(run, train=replace(run.train, epochs=config.epochs))
        del differing["epochs"]
    _reject(out, differing)
    check_fit(run.model, run.train)
    return run


def _reject(out: Path, differing: dict[str, tuple[Any, Any]]) -> None:
    if differing:
        listed = ", ".join(f"{name} {stored}, not {asked}" for name, (stored, asked) in differing.items())
        raise RunError(
            f"The run in {out} was started with {listed}. "
            "Leave that out to continue it, or choose another --out."
        )


def _check_images(model: ModelConfig, config: TrainConfig, preprocessing: Preprocessing) -> None:
    """Reject images or a network of a size that cannot be."""
    check_size(parse_corruptions(config.corrupt), preprocessing.height, preprocessing.width)
    if config.batch_size < without_memory(model, preprocessing).least_batch:
        raise ConfigError(
            "Batch normalisation has nothing to average over with a batch_size of 1 and one value per "
            "channel in the deepest level. Use larger batches, larger images or fewer widths."
        )


@contextmanager
def _without_diverged_state(out: Path, processes: Processes) -> Iterator[None]:
    """Remove the checkpoint of a run that diverged before its first model: it could only diverge again."""
    try:
        yield
    except DivergedError:
        if processes.is_first and not (out / MODEL_NAME).exists():
            (out / CHECKPOINT_NAME).unlink(missing_ok=True)
        raise
