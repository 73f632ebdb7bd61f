"""The pages of the site that are made from the product, so that none can be stale.

`docs/conf.py` calls `write` before each build. Pages go to docs/generated, which git ignores; the picture of
the layers is committed in docs/figures, as design.md shows it where the repository is read, too.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from typer.main import get_command

import autoencode
from autoencode.cli.main import app
from autoencode.data.corruptions import CORRUPTIONS, example
from autoencode.models.networks import ModelConfig
from autoencode.training.config import TrainConfig
from autoencode.training.presets import PRESETS, settings
from autoencode.training.settings import preset_file

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = ROOT / "src" / "autoencode"
LAYERS = DOCS / "figures" / "layers.svg"
# What stands in the root of the repository, where services and readers look for it, and in the site too.
COPIED = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md"}

# Titles of the sections of the Python reference, by the package that a public name comes from.
SECTIONS = {
    "training": "Training",
    "models": "Models",
    "data": "Images and packs",
    "reconstruction": "Reconstruction",
    "morphing": "Morphing",
    "generation": "Generation",
    "index": "Search",
    "outliers": "Outliers",
    "transfer_learning": "Classifiers from few labels",
    "evaluation": "Evaluation",
    "metrics": "Estimates",
    "feature_maps": "Feature maps",
    "export": "Export",
    "vectors": "Vectors",
    "description": "What a file is",
    "errors": "Errors",
}


def write() -> None:
    """Write every page that is made, and remove what an earlier build made."""
    made = DOCS / "generated"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    pages = {
        "commands.md": commands_page(),
        "python.md": python_page(),
        "settings.md": settings_page(),
        "tree.md": tree_page(),
    }
    for name, text in pages.items():
        (made / name).write_text(text, encoding="utf-8")
    for source, name in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        (made / name).write_text(text.replace("](docs/", "](/"), encoding="utf-8")
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        shutil.copy(notebook, made)
    picture = layers_picture()
    if not LAYERS.exists() or LAYERS.read_text(encoding="utf-8") != picture:
        LAYERS.write_text(picture, encoding="utf-8")


def at_home(text: str) -> str:
    """Return a page with links to files outside docs/ as they are in the site."""
    for source, name in COPIED.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}", f"](/generated/{name}", text)
    text = re.sub(r"\]\((?:\.\./)*examples/([\w.]+)\)", r"](/generated/\1)", text)
    # Files that are no pages of the site are named, not linked.
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)*(?:README|CODE_OF_CONDUCT|pyproject)\.\w+\)", r"\1", text)


def commands_page() -> str:
    """Return the reference of the command line."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    head = (
        "# Command line\n\n"
        "Every error is one line on standard error; an option that does not exist, or a value of another "
        "kind, shows the usage too. Exit codes: 0 done; 2 for a wrong call or a setting that cannot be used; "
        "1 for everything else that went wrong; 130 for Ctrl-C.\n"
    )
    parts = [head, *(command_text(name, command) for name, command in commands.items()), corruptions_text()]
    return "\n".join(parts)


def command_text(name: str, command: Any) -> str:  # noqa: ANN401 - typer brings its own click
    """Return the section of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    lines = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    usage = ["autoencode", name, *(a.name.upper() + "..." * (a.nargs == -1) for a in arguments)]
    lines += [
        "```text",
        " ".join([*usage, *(f"{o.opts[0]} {o.name.upper()}" for o in options if o.required)]),
    ]
    lines += ["```", "", "| | |", "| --- | --- |"]
    lines += [f"| `{a.name.upper()}` | {cell(getattr(a, 'help', '') or '')} |" for a in arguments]
    for option in options:
        spelled = ", ".join(f"`{text}`" for text in [*option.opts, *option.secondary_opts])
        default = "" if option.default in (None, False) or option.is_flag else f" Default: {option.default}."
        required = " Required." if option.required else ""
        lines.append(f"| {spelled} | {cell(option.help or '')}{required}{default} |")
    if examples := re.findall(r"^autoencode .*$", command.epilog or "", re.MULTILINE):
        lines += ["", "```sh", *examples, "```"]
    return "\n".join([*lines, ""])


def corruptions_text() -> str:
    """Return the section on what `--corrupt` takes."""
    lines = ["## Corruptions", "", "What `--corrupt` takes; the first in each row is an example.", ""]
    lines += ["| | amount | |", "| --- | --- | --- |"]
    for name, kind in CORRUPTIONS.items():
        lines.append(f"| `{example(name)}` | {kind.parameter}, {kind.amounts} | {cell(kind.summary)} |")
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    """Return text that fits into a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def settings_page() -> str:
    """Return the reference of the settings of training: the file of a preset, and how presets differ."""
    lines = [
        "# Settings",
        "",
        "`autoencode config PRESET` prints the settings of a preset as below. Change such a file and give "
        "it to `autoencode train --config FILE`; `--set NAME=VALUE` changes one setting. Commented lines are "
        "the defaults of what a preset does not set.",
        "",
        "## The presets",
        "",
        "| preset | what it is | what differs from the paper's autoencoder |",
        "| --- | --- | --- |",
    ]
    plain = settings("paper-ae")
    for name, preset in PRESETS.items():
        model, config = settings(name)
        changes = [*differences(plain[0], model), *differences(plain[1], config)]
        lines.append(f"| `{name}` | {cell(preset.summary)} | {', '.join(changes) or 'nothing'} |")
    return "\n".join([*lines, "", "## All settings", "", "```toml", preset_file("best").strip(), "```", ""])


def differences(one: ModelConfig | TrainConfig, other: ModelConfig | TrainConfig) -> list[str]:
    """Return the fields in which the other settings differ, each as `name = value`."""
    before, after = one.to_json(), other.to_json()
    return [f"`{name} = {value}`" for name, value in after.items() if before[name] != value]


def python_page() -> str:
    """Return the reference of the Python API, from the docstrings of the names that the stub lists."""
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for node in ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            package = (node.module or "").partition(".")[0]
            sections.setdefault(package, []).extend(alias.asname or alias.name for alias in node.names)
    lines = [
        "# Python",
        "",
        "All that is public; names that are not here may change without notice. Each is loaded when it is "
        "first used, so that `import autoencode` takes no time.",
    ]
    for package, names in sections.items():
        lines += ["", f"## {SECTIONS.get(package, package.replace('_', ' ').capitalize())}", ""]
        functions_first = sorted(names, key=lambda name: (inspect.isclass(getattr(autoencode, name)), name))
        for name in functions_first:
            lines += ["```{eval-rst}", *directive(name), "```", ""]
    return "\n".join(lines)


def directive(name: str) -> list[str]:
    """Return the directive that documents one public name."""
    value = getattr(autoencode, name)
    if isinstance(value, type) and issubclass(value, BaseException):
        return [f".. autoexception:: autoencode.{name}"]
    if inspect.isclass(value):
        return [f".. autoclass:: autoencode.{name}", "   :members:"]
    if inspect.isroutine(value):
        return [f".. autofunction:: autoencode.{name}"]
    return [f".. py:data:: autoencode.{name}", "", "   Presets by name; see :doc:`settings`."]


def tree_page() -> str:
    """Return the tree of the source: each module with the first line of its docstring."""
    paths = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    folders = sorted({path.parent for path in paths} - {SOURCE})
    width = max(2 * len(path.relative_to(SOURCE).parts) + len(path.name) for path in paths) + 2
    lines = ["src/autoencode/"]
    for folder in [SOURCE, *folders]:
        indent = "  " * len(folder.relative_to(SOURCE).parts)
        if folder != SOURCE:
            lines.append(f"{indent + folder.name + '/':{width}}{first_line(folder / '__init__.py')}")
        inside = sorted(path for path in paths if path.parent == folder)
        lines += [f"{indent + '  ' + path.name:{width}}{first_line(path)}" for path in inside]
    head = "# Modules\n\nEach module, with the first line of its docstring."
    return "\n".join([head, "", "```text", *lines, "```", ""])


def first_line(path: Path) -> str:
    """Return the first line of the docstring of a module."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def layers() -> list[list[str]]:
    """Return the layers of the contract that import-linter checks, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (one for one in contracts["contracts"] if one["type"] == "layers")
    return [[name.strip() for name in re.split(r"[|:]", layer)] for layer in contract["layers"]]


def layers_picture() -> str:
    """Return the layers as an SVG: a row each, its modules side by side; imports go down alone."""
    width, height, gap, margin = 860, 30, 8, 12
    rows = layers()
    total = len(rows) * (height + gap) + margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-size="13" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        "<title>The layers of autoencode: a module may import those of the rows below its own</title>",
        f'<rect width="{width}" height="{total}" fill="#ffffff" rx="6"/>',
    ]
    for row, names in enumerate(rows):
        y = margin + row * (height + gap)
        box = (width - 2 * margin - gap * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            x = margin + column * (box + gap)
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{box:.1f}" height="{height}" rx="4" fill="#e8eef7" '
                'stroke="#5b7db1"/>'
            )
            parts.append(
                f'<text x="{x + box / 2:.1f}" y="{y + height / 2 + 4.5}" fill="#1b2a41">{escape(name)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])
