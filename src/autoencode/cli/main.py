"""The program: its commands, its version, and how an error ends it.

Exit codes: 0 success; 2 a wrong call, which is wrong usage or a setting that cannot be used (ConfigError); 1
any other error; 130 Ctrl-C. An error is one line on stderr, and with --json an object on stdout, too. By 2,
which the parser of arguments uses as well, a script can distinguish its own mistake from a failure that may
pass.

A command imports torch and NumPy when it runs: --help takes a quarter of a second and not two.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from autoencode.cli.options import OF_EVERY_COMMAND
from autoencode.cli.progress import STOPPED, begin, one_line, say, show_error
from autoencode.data.folders import LinksWarning
from autoencode.errors import VERSION, AutoencodeError, ConfigError
from autoencode.training.process import is_first

# A command group is one file, named after its commands, and one line here: the order is that of --help, in
# which a newcomer needs them. The name is imported by importlib so that nothing imports the whole program.
GROUPS = (
    "demo_pack",
    "train_config",
    "restore",
    "reconstruct_morph_generate",
    "index_search",
    "duplicates",
    "outliers",
    "features_transfer_classify",
    "info_evaluate_embed_export",
    "report_paper_app",
)

# Typer checks values with Pydantic from 0.29 on, and by itself before; both speak of their own types.
_PLAIN = (
    (r"^Value error, ", ""),
    (r"^Input should be greater than or equal to (\S+)$", r"it must be at least \1."),
    (r"^\S+ is not in the range x>=(\S+)\.$", r"it must be at least \1."),
    (r"^Input should be a valid integer\b.*|^'.*' is not a valid integer\b.*", "it must be a whole number."),
    (r"^Input should be a valid number\b.*|^'.*' is not a valid float\b.*", "it must be a number."),
)


# Words for the tasks that people type if they do not know the name of our command.
OTHER_WORDS = {
    "train": "fit learn",
    "config": "settings preset presets options",
    "restore": "denoise enhance deblur inpaint clean repair",
    "reconstruct": "decode compress",
    "morph": "interpolate blend",
    "generate": "sample create",
    "index": "build",
    "search": "find query similar lookup",
    "duplicates": "dedupe dedup copies",
    "outliers": "anomaly anomalies defects detect inspect outlier",
    "transfer": "probe finetune",
    "classify": "predict label",
    "info": "show describe list ls status",
    "evaluate": "test eval score benchmark metrics",
    "embed": "encode codes vectors embeddings",
    "export": "convert onnx",
    "app": "gui web serve ui browse open view server map cluster",
}


class _Program(TyperGroup):
    """The commands; errors of usage are worded for a user."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Take `help`, `help COMMAND` and `version`, as other programs do."""
        if args in (["version"], ["-v"]):
            args = ["--version"]
        elif not args or args[0] == "help":
            args = [*args[1:], "--help"]
        # Options of every command are understood before its name, too.
        before = next((at for at, one in enumerate(args) if one not in OF_EVERY_COMMAND), len(args))
        args = [*args[before:], *args[:before]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's own class of contexts is private
        try:
            return super().invoke(ctx)
        except typer.BadParameter as err:
            for theirs, plain in _PLAIN:
                err.message = re.sub(theirs, plain, err.message)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        # The folder or the file alone is the first call that a newcomer tries.
        if self.get_command(ctx, args[0]) is None and Path(args[0]).exists():
            ctx.fail(f"No such command {args[0]!r}. {_first_commands(Path(args[0]))}")
        for command, words in OTHER_WORDS.items():
            if args[0].lower() in words.split():
                ctx.fail(f"No such command {args[0]!r}. Did you mean {command!r}?")
        return super().resolve_command(ctx, args)


def _first_commands(path: Path) -> str:
    given = shlex.quote(str(path))
    if path.is_file():
        return f"To see what a model, a pack or an index is: autoencode info {given}"
    return (
        f"To train on a folder: autoencode train {given}. To search in it: autoencode index {given}. "
        f"To find copies: autoencode duplicates {given}"
    )


app = typer.Typer(
    cls=_Program,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train an autoencoder on your own folder of images, and put it to use. Nothing leaves the machine.",
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    if version:
        say(f"autoencode {VERSION}")
        raise typer.Exit


def _wrong_usage(err: Any) -> str:  # noqa: ANN401 - Typer's own class of errors is private
    """Return one line about a command line that the parser rejects, and how to write it."""
    # Typer's own sentences differ from version to version; what an error holds does not.
    said, parameter = err.format_message(), getattr(err, "param", None)
    if possible := getattr(err, "possibilities", None):
        said = f"{err.message}. Did you mean {', '.join(sorted(possible))}?"
    elif said.startswith("Missing argument") and parameter is not None:
        said = f"Missing argument '{parameter.name}'."
    said = re.sub(r" \((Did you mean .*\?)\)$", r". \1", said)
    example = (err.ctx.command.epilog or "").split("\n\n")[1:2] if err.ctx else []
    if said.startswith("Missing argument") and example:
        return f"{said} For example: {example[0]}"
    if err.ctx is None or "autoencode" in said or said.endswith("?"):
        return said
    return f"{said.rstrip('.')}. See {err.ctx.command_path} --help"


for _group in GROUPS:
    import_module(f"autoencode.cli.{_group}").add_to(app)


def _fail(message: str, code: int = 1) -> NoReturn:
    if is_first():  # of several processes that train one model, one says what went wrong
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {one_line(message)}"), soft_wrap=True)
        if "--json" in sys.argv:
            show_error(message, code)
    sys.exit(code)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print what is said of the links in a folder once, however often a command lists the folder."""
    said = set[str]()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category is not LinksWarning:
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in said:
                said.add(str(message))
                say(one_line(f"note: {message}"), err=True)

        warnings.simplefilter("always", LinksWarning)
        warnings.showwarning = show
        yield


def main() -> None:
    """Run the command line; an error raised on purpose is one line on stderr and exit code 1 or 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    begin()
    try:
        with _warnings_in_one_line():
            sys.exit(app(standalone_mode=False))
    except ConfigError as err:
        _fail(str(err), 2)
    except AutoencodeError as err:
        _fail(str(err))
    except OSError as err:  # the system refused a path before any of our code could say more
        _fail(f"{err.filename or 'The system'}: {err.strerror or err}.")
    except Exception as err:
        if not hasattr(err, "format_message"):
            raise
        _fail(_wrong_usage(err), 2)
    except KeyboardInterrupt:
        sys.exit(STOPPED)  # before a command began, which ends by itself
