"""Options that several commands share, and how their text becomes settings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoencode.data.corruptions import CORRUPTIONS, example
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Limits, Preprocessing


class ResizeMode(StrEnum):
    """How an image of another shape becomes one of the size asked for."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class Kind(StrEnum):
    """The two kinds of model."""

    autoencoder = "autoencoder"
    vae = "vae"


class Network(StrEnum):
    """The two networks."""

    paper = "paper"
    residual = "residual"


class Loss(StrEnum):
    """What training minimises."""

    mse = "mse"
    mae = "mae"
    gaussian = "gaussian"


class Precision(StrEnum):
    """How convolutions are multiplied."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Embedding(StrEnum):
    """What images are compared or classified by."""

    code = "code"
    pretrained = "pretrained"


IMAGES, VAE, MACHINE = "Images", "Variational autoencoder", "Machine"

Model = Annotated[Path, typer.Argument(help="A run folder or a model file.")]
Size = Annotated[
    str | None,
    typer.Option(
        help="Side, or HEIGHTxWIDTH, in pixels: multiples of 16. Default: 128.", rich_help_panel=IMAGES
    ),
]
ResizeModeOption = Annotated[
    ResizeMode | None,
    typer.Option(
        help="crop the middle to the shape, pad with the background, or stretch. Default: crop.",
        rich_help_panel=IMAGES,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help="Colour behind transparent pixels and padding, a name or #rrggbb. Default: white.",
        rich_help_panel=IMAGES,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Skip images of more pixels than this. Default: 200,000,000.", rich_help_panel=IMAGES, min=1
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        help="Skip files of more bytes than this. Default: 268,435,456.", rich_help_panel=IMAGES, min=1
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster, HOST:PORT or auto, that this machine is a node of (extra ray).",
        rich_help_panel=MACHINE,
    ),
]
CORRUPTED = f"Damage what the encoder sees: {', '.join(map(example, CORRUPTIONS))}. Repeatable."
Corrupt = Annotated[
    list[str] | None,
    typer.Option(help=CORRUPTED),
]


def preprocessing(
    size: str | None, resize_mode: ResizeMode | None, background: str | None
) -> Preprocessing | None:
    """Return what the options ask for, or None where none was given.

    Raises:
        ConfigError: a size or colour that cannot be used.
    """
    from PIL import ImageColor

    from autoencode.data.preprocessing import Preprocessing, parse_size

    chosen: dict[str, Any] = {}
    if size is not None:
        chosen["height"], chosen["width"] = parse_size(size)
    if resize_mode is not None:
        chosen["resize_mode"] = resize_mode.value
    if background is not None:
        try:
            chosen["background"] = ImageColor.getrgb(background)[:3]
        except ValueError as err:
            raise ConfigError(
                f"Unknown colour {background!r}. Use a name such as white, or #rrggbb."
            ) from err
    return Preprocessing(**chosen) if chosen else None


def limits(max_pixels: int | None, max_bytes: int | None) -> Limits:
    """Return the limits on image files, the usual ones where an option was not given."""
    from autoencode.data.preprocessing import Limits

    given = {"max_pixels": max_pixels, "max_bytes": max_bytes}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def pack_of(model: Path, named: str) -> str:
    """Return the pack that a model was trained on, given the model file or its run folder.

    Args:
        model: either of them.
        named: how the command takes a pack, for the error.

    Raises:
        ConfigError: the model is in no run folder.
        RunError: the run folder is damaged.
    """
    from autoencode.training.run import is_run, read_run

    run = model if model.is_dir() else model.parent
    if not is_run(run):
        raise ConfigError(f"{run} is no run folder that would name the pack. Give it: {named}.")
    return read_run(run).pack


def settings_files(model: Path, pack: Pack) -> list[Path]:
    """Files named like a result, .json, without which a run or its pack could not be used."""
    from autoencode.data.manifest import SETTINGS_NAME
    from autoencode.training.run import RUN_NAME

    run = model if model.is_dir() else model.parent
    return [run / RUN_NAME, pack.path / SETTINGS_NAME]


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read "32,64,128".

    Raises:
        ConfigError: it is no list of whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError(f"{text!r} is no list of whole numbers such as 32,64,128,256.") from err


def sigma2(text: str) -> float | str:
    """Read a number or "auto".

    Raises:
        ConfigError: it is neither.
    """
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as err:
        raise ConfigError(f"sigma2 is {text!r}; it must be a number or auto.") from err


def kl_warmup(text: str | None) -> dict[str, int]:
    """Read a number of epochs, or "cyclic:N", as settings; None gives none.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return {}
    kind, _, number = text.rpartition(":")
    if kind not in ("", "cyclic") or not number.isdecimal() or (kind and int(number) == 0):
        raise ConfigError(f"The warm-up is {text!r}; it must be a number of epochs, or cyclic:N.")
    return {"kl_warmup_cycles" if kind else "kl_warmup": int(number)}
