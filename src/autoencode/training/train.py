"""Train a model on a folder of images, or continue a run.

`resume` says what may change when a run is continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.atomic import exclusive, remove_temporaries
from autoencode.data.corruptions import check_size, parse_corruptions
from autoencode.data.listing import Listing
from autoencode.data.manifest import is_pack, read_settings
from autoencode.data.pack import Pack, local_folder, open_pack, pack_folder, suited
from autoencode.data.preprocessing import Limits, Preprocessing, Size, fields_asked_for
from autoencode.data.sources import listed, name_of
from autoencode.errors import ConfigError, DivergedError, PackError, RunError
from autoencode.models.bundled import BUNDLED, RANDOM, name_of_model
from autoencode.models.model_file import MODEL_NAME, is_like_bundled, load_any
from autoencode.training.callbacks import Callback, calling, telling_the_end
from autoencode.training.config import check_shift
from autoencode.training.distributed import Processes, process_group
from autoencode.training.loop import Loop
from autoencode.training.presets import DEFAULT_PRESET, RESTORER_RATE, adapted, settings
from autoencode.training.process import interrupts, keep_freed_memory, own_ranks
from autoencode.training.progress import epochs_counted
from autoencode.training.resume import Machine, Request, check_out, continued
from autoencode.training.run import (
    CHECKPOINT_NAME,
    Record,
    RunSettings,
    is_run,
    read_metrics,
    write_run,
)
from autoencode.training.runtime import Runtime, choose_runtime, within_memory, without_memory

if TYPE_CHECKING:
    from autoencode.configuration import Precision
    from autoencode.data.pack import Progress
    from autoencode.models.networks import ModelConfig
    from autoencode.training.config import TrainConfig
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

    def __repr__(self) -> str:
        """Return where it is and how long it is; the metrics would be pages."""
        first, sharp = epochs_counted(self.metrics)
        then = f", then {sharp} of the sharp decoder" if sharp else ""
        return f"Run({str(self.folder)!r}, {first} epoch{'' if first == 1 else 's'}{then})"


def train(
    source: Any,  # noqa: ANN401 - see `listed`
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    size: Size | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    resume: bool = False,
    init: str | Path | None = None,
    checkpoint_every: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    channels_last: bool | None = None,
    keep_memory: bool = True,
    progress: Callable[[TrainProgress], None] | None = None,
    callbacks: Sequence[Callback] = (),
    packing_progress: Progress | None = None,
    chosen: Callable[[str], None] | None = None,
    packed: Callable[[Pack], None] | None = None,
    **overrides: Any,  # noqa: ANN401
) -> Run:
    """Train a model and leave it in a run folder.

    In a script that torchrun starts, its processes train one model together, with the result of one but for
    rounding. Process 0 alone writes; all must see `out`, and images not packed yet.

    Args:
        source: a folder of images, several folders and files, or a table (see `listed`), which are packed
            beside the run, for later runs too; or a pack, by its path or URL (see `open_pack`).
        out: the run folder, made here; by default runs/NAME, with the name of `source`. One of a run without
            a finished epoch is reused.
        preset: a name in `PRESETS`; the default is "best".
        size: such as 128 (square), "96x160" or (96, 160), height first: multiples of 16.
        preprocessing: size and resize mode of the images, or some of its fields by name. Other
            fields are those of the pack, or are chosen by the images.
        include, exclude: patterns of names, see `listed`.
        limits: the largest files and images to accept while packing.
        resume: continue the run in `out` with the settings it was started with. Settings given as well must
            agree with those, except for more epochs, `accumulate` and `early_stopping`. On the same kind of
            processor the result is bit for bit that of a run never stopped; more epochs begin a new cosine.
        init: a model or run to start from, with its network and, if it has codes, preprocessing, or "random";
            by default a restorer of the preset's network starts from the bundled one (see `load_restorer`).
        checkpoint_every: steps between checkpoints; the default is one each epoch.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (bf16 where the hardware multiplies it), "fp32", "bf16".
        channels_last: whether images lie in memory with channels innermost, the default. With `resume`, the
            defaults of these three are those of the run.
        keep_memory: whether this process keeps freed memory for the next step (see `keep_freed_memory`).
        progress, callbacks: called after each step and epoch, in process 0; callbacks also at the end.
        packing_progress: called with (files done, files in all) while packing.
        chosen, packed: called before training starts: with one line on which settings the images decided, and
            why; and with the pack of a new run.
        **overrides: settings that differ from the preset: fields of `ModelConfig` and `TrainConfig`, such as
            `epochs=20`, `code_size=128`, `kind="vae"`.

    Raises:
        ConfigError: a setting is invalid or not possible on this machine, or there is not enough memory.
        ImageFolderError: `source` holds no usable image.
        RunError: `out` is no run folder, is being written by another process, or holds a run and `resume` is
            False; or `resume` was given with other settings or images.
        StorageError: a pack in storage cannot be reached.
        DivergedError: the loss is no longer finite; the model of the last good epoch is kept.
        OutputError: the disk is full or not writable; files saved before are whole.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    if keep_memory:
        keep_freed_memory()
    out = run_folder_for(source) if out is None else Path(out)
    with process_group(own_ranks()) as processes:
        asked = fields_asked_for(size, preprocessing)
        start = None if init is None else str(init)
        images = _source(source, out, include, exclude, processes, resume=resume)
        request = Request(images, out, preset, asked, limits, overrides, packing_progress, start)
        machine = Machine(processes.device(device), precision, channels_last)
        tell = calling(progress, callbacks)
        begun = _telling_the_start(chosen, packed)
        return _trained(request, machine, processes, tell, callbacks, begun, checkpoint_every, resume=resume)


def _telling_the_start(
    chosen: Callable[[str], None] | None, packed: Callable[[Pack], None] | None
) -> Callable[[RunSettings, Pack], None]:
    def tell(run: RunSettings, pack: Pack) -> None:
        if packed:
            packed(pack)
        if chosen and run.chosen:
            chosen(run.chosen)

    return tell


def _trained(
    request: Request,
    machine: Machine,
    processes: Processes,
    progress: Callable[[TrainProgress], None],
    callbacks: Sequence[Callback],
    begun: Callable[[RunSettings, Pack], None],
    checkpoint_every: int | None,
    *,
    resume: bool,
) -> Run:
    """Start or continue the run that was asked for, and train it to its end; see `train`."""
    out = request.out
    if processes.ranks.restarts and is_run(out):
        # A process was lost: all of them continue from the checkpoint, by the settings first given.
        resume, request = True, replace(request, preset=request.preset or DEFAULT_PRESET)
    if resume:
        run, pack, runtime = continued(request, machine)
    else:
        run, pack, runtime = _started(request, machine, processes)
    run = _agreed(run, pack, processes)
    if processes.is_first and not resume:
        begun(run, pack)
    opened = _opened(out, run, resume, processes, pack.path)
    with opened, within_memory(out, run), interrupts() as interrupted:
        loop = Loop(out, run, pack, runtime, progress, processes)
        at_the_end = telling_the_end(callbacks if processes.is_first else (), lambda: _run_in(out, pack))
        with at_the_end, _without_diverged_state(out, processes):
            loop.run(checkpoint_every, interrupted)
    processes.wait()  # until process 0 has written everything
    return _run_in(out, pack)


def _run_in(out: Path, pack: Pack) -> Run:
    return Run(out, out / MODEL_NAME, pack.path, read_metrics(out))


def run_folder_for(source: Any) -> Path:  # noqa: ANN401
    """Return the default run folder of images: runs/NAME."""
    return Path("runs") / name_of(source)


def pack_path_for(source: Path | Listing, out: Path, preprocessing: Preprocessing) -> Path:
    """Return the path of the pack of images: beside the run, one for each source and preprocessing."""
    # Resolved, so that one folder given by two paths is packed once; names may hold bytes that are not UTF-8.
    folder, origin = (
        (source.folder, source.origin) if isinstance(source, Listing) else (source, str(source.resolve()))
    )
    key = hashlib.sha256(f"{origin} {preprocessing.to_json()}".encode(errors="surrogateescape"))
    size = f"{preprocessing.height}x{preprocessing.width}"
    return out.absolute().parent / f"{folder.resolve().name}-{size}-{key.hexdigest()[:6]}.pack"


def _source(
    source: Any,  # noqa: ANN401
    out: Path,
    include: Sequence[str],
    exclude: Sequence[str],
    processes: Processes,
    *,
    resume: bool,
) -> Path | Listing:
    """Return the folder of a pack, or the images to pack; for a continued run, the path given."""
    if isinstance(source, Pack):
        return source.path
    if isinstance(source, str | Path):
        path = local_folder(source)
        if resume or is_pack(path):
            return path
        if not processes.is_first and not path.exists():
            raise _not_seen(path, processes)
        source = path
    return listed(source, include, exclude, out.absolute().parent)


def _packed(request: Request, preprocessing: Preprocessing, processes: Processes) -> Pack:
    """Open the pack given, or pack the folder given, in process 0."""
    source, pack = request.source, None
    if isinstance(source, Listing):
        listing, source = source, pack_path_for(source, request.out, preprocessing)
        if processes.is_first:
            limits, progress = request.limits, request.packing_progress
            pack = pack_folder(listing, source, preprocessing, limits=limits, progress=progress)
    processes.wait()  # for the first, which may have packed
    if not processes.is_first and not is_pack(source):
        raise _not_seen(source, processes)
    # Process 0 keeps the pack it has just made: opening it again would read its whole list of files.
    pack = open_pack(source) if pack is None else pack
    if replace(pack.preprocessing, **request.asked) != pack.preprocessing:
        raise ConfigError(
            f"{pack.location} was packed as {pack.preprocessing}; other sizes need another pack. "
            "Leave --size and --resize-mode out, or train on the folder itself."
        )
    return pack


def _not_seen(source: Path, processes: Processes) -> PackError:
    return PackError(
        f"Process {processes.rank} does not see {source}, which process 0 reads. Put it on a disk "
        "that all machines share, or give each a copy of the pack."
    )


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
def _opened(out: Path, run: RunSettings, resume: bool, processes: Processes, source: Path) -> Iterator[None]:
    """Hold the run folder, made ready by the first process, for readers of the pack `source` alone."""
    if not processes.is_first:
        processes.wait()
        yield
        return
    with exclusive(out, f"{out} is being trained by another process.", RunError, source):
        check_out(out, resume)  # again: another process may have had the lock while this one was packing
        remove_temporaries(out)  # of a process that was killed while it wrote
        write_run(out, run)
        processes.wait()
        yield


def _started(request: Request, machine: Machine, processes: Processes) -> tuple[RunSettings, Pack, Runtime]:
    """Settings, images and runtime of a new run."""
    runtime = choose_runtime(machine.device, machine.precision, machine.channels_last is not False)
    if request.init not in (None, RANDOM):
        request = _like_its_model(request, request.init)
    preset = request.preset or DEFAULT_PRESET
    model, config = settings(preset, **request.overrides)
    # Checked before packing, which may take hours, and again with the preprocessing of the pack.
    reason = ""
    if isinstance(request.source, Listing):
        # A restorer is for images as they are: scaled down they are sharper, and have less noise.
        usual = {"resize_mode": "window"} if model.kind == "restorer" else {}
        preprocessing, reason = suited(request.source, usual | dict(request.asked), request.limits)
    else:
        preprocessing = read_settings(request.source).preprocessing
    _check_images(model, config, preprocessing)
    if processes.is_first:
        check_out(request.out, resume=False)  # after the settings, whose errors do not depend on it
    pack = _packed(request, preprocessing, processes)
    _check_images(model, config, pack.preprocessing)
    model, config, chosen = adapted(preset, model, config, pack, request.overrides)
    otherwise = BUNDLED if is_like_bundled(model) else RANDOM
    init = name_of_model(request.init) if request.init else otherwise
    if model.kind == "restorer" and init != RANDOM and "learning_rate" not in request.overrides:
        config = replace(config, learning_rate=RESTORER_RATE)
    if init == BUNDLED:
        chosen.append("starts from the bundled restorer")
    if reason:
        size = f"{preprocessing.height}x{preprocessing.width}"
        chosen = [f"{size} ({preprocessing.resize_mode}): {reason}", *chosen]
    images = pack.preprocessing, pack.location, pack.fingerprint
    computed = runtime.device.type, runtime.bf16, runtime.channels_last
    run = RunSettings(
        model,
        config,
        *images,
        *computed,
        window=pack.window,
        chosen="; ".join(chosen),
        init=init,
    )
    return run, pack, runtime


def _like_its_model(request: Request, init: str) -> Request:
    """Return a request for the network and the preprocessing of the model that training starts from.

    Raises:
        ConfigError: something else was asked for.
        ModelFileError: the model cannot be loaded.
    """
    model = load_any(init)
    network, images = model.config.to_json(), fields_asked_for(None, model.preprocessing)
    if model.config.kind == "restorer":  # it works on images of any size
        images = {}
    for own, asked in ((network, request.overrides), (images, request.asked)):
        for name in sorted(own.keys() & asked.keys()):
            if asked[name] != own[name]:
                raise ConfigError(
                    f"{init} has {name} {own[name]}, not {asked[name]}. Leave it or --init out."
                )
    return replace(request, overrides=network | request.overrides, asked=images | dict(request.asked))


def _check_images(model: ModelConfig, config: TrainConfig, preprocessing: Preprocessing) -> None:
    """Reject images or a network of a size that cannot be."""
    sides = [min(side, config.patch or side) for side in (preprocessing.height, preprocessing.width)]
    check_size(parse_corruptions(config.corrupt), *sides)
    check_shift(config.shift, min(sides))
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
