"""Read the settings of a training from a file, --set and options, and write them as a file in TOML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from autoencode.configuration import read_assignment, read_toml, toml_lines, types_of
from autoencode.errors import ConfigError
from autoencode.models.networks import ModelConfig
from autoencode.training.config import RuntimeConfig, TrainConfig
from autoencode.training.presets import PRESETS, settings

if TYPE_CHECKING:
    from pathlib import Path


def train_arguments(
    file: Path | None, assignments: Iterable[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `train` that a command line asks for.

    Args:
        file: a file of settings; what follows overrides it.
        assignments: NAME=VALUE each, as given to --set.
        given: settings that have options of their own, by name.

    Raises:
        ConfigError: the file or an assignment cannot be read, a setting is unknown or has another type, or
            one is given twice.
    """
    from autoencode.data.preprocessing import Limits, Preprocessing

    known: dict[str, Any] = {"preset": str}
    for section in _sections().values():
        known |= types_of(type(section))
    values = {} if file is None else read_toml(file, known)
    assigned: dict[str, Any] = {}
    for name, value in (read_assignment(text, known) for text in assignments):
        if name in assigned or name in given:
            # --size is two settings: somebody who typed it may not know their names.
            option = "--size" if name in ("height", "width") else f"--{name.replace('_', '-')}"
            other = f", by --set and {option}" if name in given else ""
            raise ConfigError(f"{name} is given twice{other}. Leave one of the two out.")
        assigned[name] = value
    values |= {**assigned, **given}
    # `train` takes these one by one, so that their types are checked here.
    RuntimeConfig(**{name: values[name] for name in types_of(RuntimeConfig) if name in values})
    for argument, kind in (("preprocessing", Preprocessing), ("limits", Limits)):
        own = {name: values.pop(name) for name in types_of(kind) if name in values}
        if own:  # otherwise the images, the pack or the run that is continued decide
            checked = kind(**own)
            values[argument] = checked if kind is Limits else own
    return values


def preset_file(name: str) -> str:
    """Return a preset as a file of settings; those that no preset decides are comments with their defaults.

    Raises:
        ConfigError: no such preset.
    """
    chosen = settings(name)
    return settings_file(f"Preset {name}: {PRESETS[name].summary}.", chosen)


def settings_file(title: str, chosen: Iterable[Any]) -> str:
    """Return a file of settings that --config takes.

    Args:
        title: its first line.
        chosen: the settings to write, instances of their classes. The settings of other classes are comments
            with their defaults.
    """
    by_kind = {type(one): one for one in chosen}
    parts = [f"# {title}\n# autoencode train IMAGES --config THIS-FILE --out RUN\n"]
    for heading, default in _sections().items():
        lines = toml_lines(by_kind.get(type(default), default), active=type(default) in by_kind)
        parts.append(f"\n# ---- {heading} ----\n\n{lines}")
    return "\n".join(parts)


def _sections() -> dict[str, Any]:
    """Return all settings with their defaults, by the heading of each class in a file."""
    # Imported here, as it imports NumPy, which --help has no time for.
    from autoencode.data.preprocessing import Limits, Preprocessing

    return {
        "Model": ModelConfig(),
        "Training": TrainConfig(),
        "Images": Preprocessing(),
        "Limits on image files": Limits(),
        "This machine": RuntimeConfig(),
    }
