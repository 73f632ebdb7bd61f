"""Options that several commands share, and how their text becomes settings."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from autoencode.atomic import cut_name, free_path, reject_url
from autoencode.cli.progress import output, said_when_stopped, say
from autoencode.configuration import DecoderName, ResizeMode, documentation
from autoencode.data.corruptions import CORRUPTIONS, example
from autoencode.errors import AutoencodeError, ConfigError, PackError
from autoencode.training.process import keep_freed_memory

if TYPE_CHECKING:
    from autoencode.data.listing import Listing
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Limits
    from autoencode.models.autoencoder import Autoencoder


RESULTS = Path("results")  # where a command without --out writes
IMAGES, MACHINE, OUTPUT = "Images", "Machine", "Output"  # panels of --help
_DASHED_FILE = re.compile(r"-[^-].*\.\w+")  # such as -dash.jpg


def about(settings: type, name: str, default: str) -> str:
    """Return the help of an option that is a field of settings, from the docstring of its class."""
    # A meaning is written once, in the class: help that was written again would differ some day.
    text = documentation(settings)[name]
    return f"{text[0].upper()}{text[1:]} Default: {default}."


Model = Annotated[Path, typer.Argument(help="A run folder or a model file.")]
Images = Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")]
Source = Annotated[
    list[str],
    typer.Argument(
        help="Images: a folder, a pack by its folder or URL, a table (CSV, Parquet) with a column path, a "
        "text file of paths; or several folders and image files."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Only images whose path matches, such as 'good/*'. Repeatable.", rich_help_panel=IMAGES
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="No images whose path matches, such as '*_mask.png'. Repeatable.", rich_help_panel=IMAGES
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Side, or HEIGHTxWIDTH, in pixels: multiples of 16. Default: as the images are, up to 128x128.",
        rich_help_panel=IMAGES,
    ),
]
Resize = Annotated[
    ResizeMode | None,
    typer.Option(
        "--resize-mode",
        help="crop cuts the image to the shape of --size, pad adds a background around it, stretch distorts "
        "it, window cuts out its middle as large as it is. Default: whichever suits their shapes; window for "
        "--preset restore.",
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
ValueRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW:HIGH",
        help="The values of 16-bit and float images that become black and white, such as 0:4095. Default: "
        "from the bits that the images use.",
        rich_help_panel=IMAGES,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Skip larger images: width times height. Default: 200,000,000.",
        rich_help_panel=IMAGES,
        min=1,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on the Ray cluster at HOST:PORT, or auto; this machine must be a node of it (extra ray).",
        rich_help_panel=MACHINE,
    ),
]
_AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON, and nothing else on stdout.", rich_help_panel=OUTPUT
    ),
]
_Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no progress, notes or warnings.", rich_help_panel=OUTPUT),
]
_OF_EVERY_COMMAND: dict[str, Any] = {"as_json": _AsJson, "quiet": _Quiet}
OF_EVERY_COMMAND = ("--json", "--quiet", "-q")
Decoder = Annotated[
    DecoderName,
    typer.Option(
        help="sharp, which is pleasant to look at, or faithful, of the least squared error. A model may have "
        "only the latter."
    ),
]
Corrupt = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Corruption of the images the encoder sees: {', '.join(map(example, CORRUPTIONS))}. Repeatable."
    ),
]


def add_command(
    program: typer.Typer, command: Callable[..., None], *examples: str, keeps_memory: bool = False
) -> None:
    """Add a command to the program.

    Args:
        program: the program.
        command: the function that does it.
        examples: command lines that end its help.
        keeps_memory: whether freed memory is kept for the next batch: for commands that read many images.
    """

    @functools.wraps(command)
    def checked(*, as_json: bool, quiet: bool, **given: Any) -> None:  # noqa: ANN401
        # As a Path a URL would be the folder s3:/bucket of this directory, and be made there.
        for value in given.values():
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, Path):
                    reject_url(one)
        if keeps_memory:
            keep_freed_memory()  # here, as it has its full effect only before torch is imported
        # Commands that know how far they came say so, and end by themselves.
        with output(as_json=as_json, quiet=quiet), said_when_stopped(lambda: "files are whole or absent."):
            command(**given)

    # Typer reads the options of a command from its signature.
    own = inspect.signature(command, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _OF_EVERY_COMMAND.items()
    ]
    checked.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *shared]
    )
    checked.__annotations__ = command.__annotations__ | _OF_EVERY_COMMAND
    # Rich joins lines into a paragraph, and keeps paragraphs.
    program.command(cls=_Command, epilog="\n\n".join(["Examples:", *examples]))(checked)


class _Command(TyperCommand):
    """A command that takes a file whose name begins with a dash for a file, if no option has its name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's context is private
        known = {name for parameter in self.params for name in parameter.opts}
        files = [arg for arg in args if arg.startswith("-") and arg not in known and Path(arg).exists()]
        args = [f"./{arg}" if arg in files else arg for arg in args]
        missing = next((arg for arg in args if _DASHED_FILE.fullmatch(arg)), None)
        try:
            return super().parse_args(ctx, args)
        except Exception as err:
            # The parser takes its letters for options, and names the first alone.
            if missing and hasattr(err, "message") and str(err.message).startswith("No such option"):
                err.message = f"No such option or file: {missing}"
            if "--set" in known and (setting := _setting_called(getattr(err, "option_name", ""))):
                err.message = f"No such option: {err.option_name}. Write --set {setting}"  # type: ignore[attr-defined]
                err.possibilities = []  # type: ignore[attr-defined]
            raise


def _setting_called(option: str) -> str:
    """Return how a setting of training is written that was taken for an option; "" for any other."""
    from dataclasses import fields

    from autoencode.models.networks import ModelConfig
    from autoencode.training.config import TrainConfig

    name = option.removeprefix("--").replace("-", "_")
    kinds = {one.name: one.type for one in (*fields(ModelConfig), *fields(TrainConfig))}
    return f"{name}={'true' if kinds[name] == 'bool' else 'VALUE'}" if name in kinds else ""


def preprocessing(size: str | None, resize_mode: ResizeMode | None, background: str | None) -> dict[str, Any]:
    """Return the fields of `Preprocessing` that the options ask for.

    Raises:
        ConfigError: the size or the colour cannot be used.
    """
    chosen = sides(size)
    if resize_mode is not None:
        chosen["resize_mode"] = resize_mode
    if background is not None:
        from PIL import ImageColor

        try:
            chosen["background"] = ImageColor.getrgb(background)[:3]
        except ValueError as err:
            raise ConfigError(
                f"Unknown colour {background!r}. Use a name such as white, or #rrggbb."
            ) from err
    return chosen


def sides(size: str | None) -> dict[str, Any]:
    """Return the text of --size as the settings height and width; none for None.

    Raises:
        ConfigError: the size cannot be used.
    """
    from autoencode.data.preprocessing import parse_size

    return {} if size is None else dict(zip(("height", "width"), parse_size(size), strict=True))


def value_range(text: str | None) -> dict[str, Any]:
    """Return the text of --range as the setting value_range; none for None.

    Raises:
        ConfigError: it is not two numbers.
    """
    if text is None:
        return {}
    try:
        low, high = map(float, text.split(":"))
    except ValueError as err:
        raise ConfigError(f"The range {text!r} is not understood. Write LOW:HIGH, such as 0:4095.") from err
    return {"value_range": (low, high)}


def one_or_all(given: list[str]) -> str | list[str]:
    """Return the one source that was given as it is, several as a list."""
    return given[0] if len(given) == 1 else given


def with_patterns(
    given: list[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> str | list[str] | Listing:
    """Return the source that was given, or the images of it that --include and --exclude leave."""
    if not include and not exclude:
        return one_or_all(given)
    from autoencode.data.sources import listed

    return listed(one_or_all(given), include or (), exclude or ())


def out_or_default(
    out: Path | None,
    command: str,
    source: Path | str | Sequence[Path | str],
    ending: str = "",
    *,
    continues: bool = False,
) -> Path:
    """Return --out or, if it was left out, a path in the folder results that is named after the command.

    Args:
        out: what was given.
        command: the name of the command.
        source: the model or the images that the results are of; the first of several names them.
        ending: of the file; "" for a folder.
        continues: whether the command goes on with what an earlier call wrote. Otherwise the place gets a
            number if there are results already: of two calls both are kept.
    """
    if not ending:
        reject_image_name(out)
    if out is not None:
        return out
    from autoencode.data.folders import EXTENSIONS
    from autoencode.data.sources import name_of
    from autoencode.models.model_file import MODEL_NAME

    source = source if isinstance(source, str | Path) else source[0]
    name = name_of(source.parent if isinstance(source, Path) and source.name == MODEL_NAME else source)
    if not ending and Path(name).suffix.lower() in EXTENSIONS:
        name = Path(name).stem
    path = RESULTS / f"{command}-{cut_name(name)}"
    path = path.with_name(f"{path.name}{ending}") if continues else free_path(path, ending)
    if ending:
        path.parent.mkdir(exist_ok=True)
    return path


def reject_image_name(out: Path | None) -> None:
    """Raise ConfigError for a folder of results that would be made with the name of an image."""
    from autoencode.data.folders import EXTENSIONS

    if out is not None and out.suffix.lower() in EXTENSIONS and not out.exists():
        folder = shlex.quote(str(out.with_suffix("")))
        raise ConfigError(f"--out is a folder, and {out} the name of an image. Give --out {folder}")


def limits(max_pixels: int | None) -> Limits:
    """Return the limits on image files: the usual ones, or those for images of so many pixels."""
    from autoencode.data.preprocessing import Limits

    usual = Limits()
    if max_pixels is None:
        return usual
    # One option, not two: the files of larger images are larger, and were skipped for their bytes instead.
    scale = max(1, max_pixels / usual.max_pixels)
    return Limits(max_pixels, round(usual.max_bytes * scale))


def pack_of(model: Path, named: str) -> Pack:
    """Open the pack that a model was trained on: that of its run, or one beside it with the same images.

    Args:
        model: either of them.
        named: how the command takes a pack, for the error.

    Raises:
        ConfigError: the model is not in a run folder, and no pack is beside it.
        RunError: the run folder is damaged.
        PackError: the pack is gone.
    """
    from autoencode.data.pack import open_known_pack
    from autoencode.models.model_file import load_any
    from autoencode.training.run import is_run, read_run

    folder = model if model.is_dir() else model.parent
    if is_run(folder):
        run = read_run(folder)
        return open_known_pack(run.pack, run.fingerprint, folder)
    try:
        return open_known_pack("", load_any(model).provenance.get("data", ""), folder)
    except PackError as err:
        raise ConfigError(
            f"{folder} is not a run folder, and no pack there has its training images. Give it: {named}."
        ) from err


def loaded_model(model: Path) -> Autoencoder:
    """Load a model, and say so if its training was interrupted or is still running.

    Raises:
        ModelFileError: it cannot be loaded.
    """
    from autoencode.models.model_file import load_model

    loaded = load_model(model)
    note_unfinished(model)
    return loaded


def note_unfinished(model: Path) -> None:
    """Say so if a model is of a run whose training was interrupted or is still running."""
    from autoencode.training.progress import epochs_in_words, read_training
    from autoencode.training.run import is_run

    folder = model if model.is_dir() else model.parent
    if not is_run(folder):
        return
    # A damaged run may hold a whole model, and the command needs no more.
    with suppress(AutoencodeError):
        run, records, state = read_training(folder)
        if state == "ended":
            return
        words = "is still running"
        if state == "interrupted":
            words = "was interrupted: run its train command again with --resume to continue"
        say(f"note: training of {folder} {words} (epochs {epochs_in_words(run, records)})", err=True)


def settings_files(model: Path, pack: Pack) -> list[Path]:
    """Return the .json files of a run and its pack, which no result may overwrite."""
    from autoencode.data.manifest import SETTINGS_NAME
    from autoencode.training.run import RUN_NAME

    run = model if model.is_dir() else model.parent
    return [run / RUN_NAME, pack.path / SETTINGS_NAME]
