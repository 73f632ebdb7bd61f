"""Write docs/reference.md from the command line's own help and the docstrings of the public API.

python docs/reference.py
"""

import inspect
import re
from pathlib import Path
from typing import Any

import typer

import autoencode
from autoencode.cli.main import app
from autoencode.data.corruptions import CORRUPTIONS, example

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Made by `python docs/reference.py`; a test holds it in step with the code.

## Command line

Every error is one line on standard error; an option that does not exist, or a value of another kind, shows
the usage too. A wrong call exits with 2, anything else that went wrong with 1, Ctrl-C with 130.
"""


def page() -> str:
    """Return the whole page."""
    commands: Any = typer.main.get_command(app)
    parts = [HEAD, *(command_text(name, command) for name, command in sorted(commands.commands.items()))]
    parts += [corruptions_text(), "## Python\n"]
    parts += [object_text(name) for name in sorted(autoencode.__all__) if not name.startswith("__")]
    return "\n".join(parts)


def corruptions_text() -> str:
    """Return the section on what `--corrupt` takes."""
    lines = ["### Corruptions", "", "What `--corrupt` takes; the first in each row is an example.", ""]
    lines += ["| | amount | |", "| --- | --- | --- |"]
    for name, kind in CORRUPTIONS.items():
        lines.append(f"| `{example(name)}` | {kind.parameter}, {kind.allowed} | {cell(kind.meaning)} |")
    return "\n".join([*lines, ""])


def command_text(name: str, command: Any) -> str:  # noqa: ANN401 - typer brings its own click
    """Return the section of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join(["autoencode", name, *(a.name.upper() + "..." * (a.nargs == -1) for a in arguments)])
    lines = [f"### `{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| `{a.name}` | {cell(getattr(a, 'help', '') or '')} |" for a in arguments]
    for option in options:
        spelled = ", ".join(f"`{text}`" for text in [*option.opts, *option.secondary_opts])
        default = (
            "" if option.default in (None, False) or option.is_flag else f" [default: {default_of(option)}]"
        )
        required = " Required." if option.required else ""
        lines.append(f"| {spelled} | {cell(option.help or '')}{required}{default} |")
    return "\n".join([*lines, ""])


def default_of(option: Any) -> str:  # noqa: ANN401
    """Return the default as one would type it."""
    return str(getattr(option.default, "value", option.default))


def cell(text: str) -> str:
    """Return text that fits into a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def object_text(name: str) -> str:
    """Return the section of one public name."""
    value = getattr(autoencode, name)
    if not callable(value):
        return f"### `{name}`\n\n" + "\n".join(f"- `{key}`: `{item}`" for key, item in value.items()) + "\n"
    signature = re.sub(r"'", "", str(inspect.signature(value))) if inspect.isroutine(value) else ""
    lines = [f"### `{name}{signature}`", "", "```text", inspect.getdoc(value) or "", "```", ""]
    if inspect.isclass(value) and value.__module__.startswith("autoencode"):
        for method, function in inspect.getmembers(value, callable):
            bare = inspect.unwrap(function)
            if method.startswith("_") or method not in vars(value) or not inspect.getdoc(bare):
                continue
            title = f"#### `{name}.{method}{re.sub(chr(39), '', str(inspect.signature(bare)))}`"
            lines += [title, "", "```text", inspect.getdoc(function) or "", "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
