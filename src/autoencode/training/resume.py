"""Continue a run: with its own settings, images, device and precision, and what may differ.

More epochs may be asked for, and another number of processes or micro-batches. With the same number the
result is the same bit for bit, with another it is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoencode.atomic import names_in
from autoencode.data.listing import Listing
from autoencode.data.pack import Pack, open_known_pack
from autoencode.errors import ConfigError, RunError
from autoencode.models.backbones import multiplies_bf16
from autoencode.models.bundled import RANDOM, name_of_model
from autoencode.training.checkpoint import steps_taken
from autoencode.training.config import changed, check_fit
from autoencode.training.presets import settings
from autoencode.training.run import RunSettings, holds_state, is_run, read_run
from autoencode.training.runtime import Runtime, choose_runtime

if TYPE_CHECKING:
    from autoencode.configuration import Precision
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits


@dataclass(frozen=True)
class Request:
    """Arguments of `train` that choose the settings and the images.

    Attributes:
        asked: fields of `Preprocessing` that were asked for.
        init: the model to start from, or a word in its place; see `train`.
    """

    source: Path | Listing
    out: Path
    preset: str | None
    asked: Mapping[str, Any]
    limits: Limits | None
    overrides: dict[str, Any]
    packing_progress: Progress | None
    init: str | None = None


class Machine(NamedTuple):
    """Arguments of `train` that say how to compute."""

    device: str
    precision: Precision
    channels_last: bool | None


def check_out(out: Path, resume: bool) -> None:
    """Reject a run folder that holds something else, or a run that is not to be continued.

    Raises:
        RunError: it does.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose a folder for the run.")
    if resume:
        return
    if is_run(out):
        if not holds_state(out):  # it diverged or was stopped early: there is nothing to lose
            return
        raise RunError(
            f"{out} holds a run already. Add --resume (in Python resume=True) to continue it, or choose "
            "another --out."
        )
    if names_in(out):
        raise RunError(f"{out} is not empty and not a run of ours. Choose another --out.")


def continued(request: Request, machine: Machine) -> tuple[RunSettings, Pack, Runtime]:
    """Return settings, images and runtime of the run in `request.out`, checked against those asked for.

    Raises:
        RunError: there is no run, or it was started with other settings or images.
        ConfigError: a setting cannot be used, or this machine does not have the device of the run.
    """
    out, source = request.out, request.source
    # A device that no run could use is an error whatever the run is.
    choose_runtime(machine.device, machine.precision, machine.channels_last is not False)
    check_out(out, resume=True)
    if not is_run(out):
        raise RunError(f"No run in {out} to continue. Leave --resume out to start one there.")
    run = read_run(out)
    pack = open_known_pack(run.pack, run.fingerprint, out)
    made_of = pack.origin or str(pack.folder.resolve())
    given = source.origin if isinstance(source, Listing) else str(source.resolve())
    if given not in (made_of, str(pack.path.resolve())):
        raise RunError(f"The run in {out} was started on {made_of}, not on {given}.")
    if pack.fingerprint != run.fingerprint:
        raise RunError(
            f"The images of {pack.location} are not those the run in {out} was started on. Start a new run."
        )
    if (wanted := replace(run.preprocessing, **request.asked)) != run.preprocessing:
        raise RunError(f"The run in {out} was started with {run.preprocessing}, not {wanted}.")
    if request.init is not None and (init := name_of_model(request.init)) != run.init:
        raise RunError(f"The run in {out} was started from {run.init}, not from {init}. Leave --init out.")
    run = _with_overrides(out, run, request)
    return run, pack, _same_runtime(out, run, machine)


def _same_runtime(out: Path, run: RunSettings, machine: Machine) -> Runtime:
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


def _with_overrides(out: Path, run: RunSettings, request: Request) -> RunSettings:
    """Check settings given with --resume: only more epochs and another number of micro-batches may differ."""
    preset, overrides = request.preset, request.overrides
    # The way to continue a run that ran out of memory: micro-batches change nothing but rounding. Nor does a
    # patience with epochs to come change those that were.
    free = {name: overrides.get(name, getattr(run.train, name)) for name in ("accumulate", "early_stopping")}
    run = replace(run, train=replace(run.train, **free))
    if preset is not None:
        # Settings that the images decided are not part of the preset, nor those that the first weights did.
        decided: dict[str, Any] = {"code_size": run.model.code_size, "epochs": run.train.epochs}
        if run.model.kind == "restorer" and run.init != RANDOM:
            decided["learning_rate"] = run.train.learning_rate
        if request.init not in (None, RANDOM):
            decided |= run.model.to_json()
        model, config = settings(preset, **(decided | overrides))
        config = replace(config, **free)
    else:
        model, config = changed(run.model, run.train, overrides)
    stored, asked = asdict(run.model) | asdict(run.train), asdict(model) | asdict(config)
    differing = {name: (stored[name], asked[name]) for name in stored if stored[name] != asked[name]}
    if run.train.fixes_epochs is None and config.epochs > run.train.epochs:
        extended = replace(run.train, epochs=config.epochs)
        run = replace(run, train=extended, extended_at=steps_taken(out))
        del differing["epochs"]
    elif run.train.fixes_epochs is None and config.epochs < run.train.epochs:
        raise RunError(
            f"The run in {out} is of {run.train.epochs} epochs: only more can be asked for, not "
            f"{config.epochs}. Leave that out; Ctrl-C stops a run and keeps it."
        )
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
