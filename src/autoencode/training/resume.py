"""What a run may be continued with: its own settings, images and way of computing, and more epochs.

The number of processes may be another: each step is then the same but for rounding, and bit for bit the same
with the same number.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autoencode.data.images import Preprocessing
from autoencode.data.pack import Pack, open_pack
from autoencode.errors import ConfigError, RunError
from autoencode.training.config import changed, check_fit, settings
from autoencode.training.runlog import RunSettings, read_run
from autoencode.training.runtime import Precision, Runtime, choose_runtime, multiplies_bf16


def continued(
    out: Path,
    source: Path,
    preset: str | None,
    preprocessing: Preprocessing | None,
    overrides: dict[str, Any],
) -> tuple[RunSettings, Pack]:
    """Return the settings and the images of the run in `out`. Arguments and errors: see `train.train`."""
    run = read_run(out)
    pack = open_pack(run.pack)
    if source.resolve() not in (pack.path.resolve(), pack.folder.resolve()):
        raise RunError(f"The run in {out} was started on {pack.folder}, not on {source}.")
    if pack.fingerprint != run.fingerprint:
        raise RunError(
            f"The images of {pack.place} are not those the run in {out} was started on. Start a new run."
        )
    if preprocessing not in (None, run.preprocessing):
        raise RunError(f"The run in {out} was started with {run.preprocessing}, not {preprocessing}.")
    return _with_overrides(out, run, preset, overrides), pack


def same_runtime(
    out: Path, run: RunSettings, device: str, precision: Precision, channels_last: bool | None
) -> Runtime:
    """Choose the way of computing that the run was started with; "auto" and None ask for nothing else.

    Raises:
        RunError: another one was asked for.
        ConfigError: this machine does not have it.
    """
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
    _refuse(out, {name: pair for name, pair in asked.items() if pair[0] != pair[1]})
    if precision == "auto" and runtime.bf16 and not multiplies_bf16(runtime.device):
        raise ConfigError(
            f"The run in {out} was started in bf16, which this machine only emulates, slowly. "
            "Continue it where it was started, or add --precision bf16 to do so here."
        )
    return runtime


def _in_words(names: tuple[str, str], *choices: bool) -> tuple[str, str]:
    stored, asked = (names[choice] for choice in choices)
    return stored, asked


def _with_overrides(
    out: Path, run: RunSettings, preset: str | None, overrides: dict[str, Any]
) -> RunSettings:
    """Check that settings given with --resume are those of the run, but for more epochs and other pieces."""
    accumulate = overrides.get("accumulate", run.train.accumulate)
    run = replace(run, train=replace(run.train, accumulate=accumulate))
    if preset is not None:
        model, config = settings(preset, **overrides)
        config = replace(config, epochs=overrides.get("epochs", run.train.epochs), accumulate=accumulate)
    else:
        model, config = changed(run.model, run.train, overrides)
    stored, asked = asdict(run.model) | asdict(run.train), asdict(model) | asdict(config)
    differing = {name: (stored[name], asked[name]) for name in stored if stored[name] != asked[name]}
    spread = run.train.warmup_cycles or run.train.adversarial  # over all the steps
    open_ended = run.train.schedule == "constant" and not spread
    if open_ended and config.epochs > run.train.epochs:
        run = replace(run, train=replace(run.train, epochs=config.epochs))
        del differing["epochs"]
    _refuse(out, differing)
    check_fit(run.model, run.train)
    return run


def _refuse(out: Path, differing: dict[str, tuple[Any, Any]]) -> None:
    if differing:
        listed = ", ".join(f"{name} {stored}, not {asked}" for name, (stored, asked) in differing.items())
        raise RunError(
            f"The run in {out} was started with {listed}. "
            "Leave that out to continue it, or choose another --out."
        )
