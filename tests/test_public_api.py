"""The names that are promised, and that promising them costs nothing until they are used."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import autoencode
from autoencode.errors import AutoencodeError

HEAVY = ("torch", "faiss", "numpy", "matplotlib", "PIL", "safetensors", "scipy", "skimage", "sklearn")


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(name for name in sys.modules if '.' not in name))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return set(found.stdout.splitlines()[-1].split())


STUB = Path(autoencode.__file__).with_suffix(".pyi")
HOMES = {
    alias.name: f"autoencode.{node.module}"
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_the_api_is_what_the_stub_lists_and_nothing_else() -> None:
    assert sorted([*HOMES, "__version__"]) == autoencode.__all__
    assert set(dir(autoencode)) == set(autoencode.__all__)


@pytest.mark.parametrize("name", sorted(set(autoencode.__all__) - {"__version__"}))
def test_every_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(autoencode, name)
    home = importlib.import_module(HOMES[name])
    assert getattr(home, name) is value
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
        assert value.__doc__ != inspect.getdoc(object)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        *(("generate", ()), ("walk", ()), ("morph", (["a", "b"],)), ("reconstruct", ("a",))),
        *(("find_outliers", ("a", None)), ("fit_reference", (None,)), ("evaluate", (None,))),
        *(("features", ("a",)), ("transfer", ("a",)), ("export_onnx", ("a",))),
    ],
)
def test_a_model_is_a_model_or_its_path_and_nothing_else(
    name: str, others: tuple[object, ...], tmp_path: Path
) -> None:
    with pytest.raises(autoencode.ConfigError, match="is no model"):
        getattr(autoencode, name)(object(), *others)
    with pytest.raises(autoencode.ModelFileError):
        getattr(autoencode, name)(tmp_path / "none", *others)


def test_unknown_names_raise_as_those_of_any_module_do() -> None:
    with pytest.raises(AttributeError, match="module 'autoencode' has no attribute 'trian'"):
        _ = autoencode.trian  # type: ignore[attr-defined]


def test_every_error_is_promised_and_of_one_family() -> None:
    module = importlib.import_module("autoencode.errors")
    errors = {name for name, value in vars(module).items() if inspect.isclass(value)}
    assert errors <= set(autoencode.__all__)
    assert all(issubclass(getattr(autoencode, name), AutoencodeError) for name in errors)
    assert module.__doc__ is not None
    assert all(name in module.__doc__ for name in errors)


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert autoencode.__version__ == version("autoencode")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import autoencode; autoencode.__version__").intersection(HEAVY)


@pytest.mark.parametrize("arguments", ["--help", "--version", "train --help", "reconstruct --help"])
def test_help_loads_nothing_heavy(arguments: str) -> None:
    code = (
        f"from autoencode.cli.main import main; sys.argv[1:] = {arguments.split()!r}\n"
        "try:\n    main()\nexcept SystemExit as err:\n    assert not err.code, err.code"
    )
    assert not loaded_after(code).intersection(HEAVY)


def test_help_answers_in_less_than_twice_the_time_that_its_parser_takes_to_load(
    tmp_path: Path,
) -> None:
    """Processor time: 0.23 s, and 0.13 for Typer alone. A machine that is slow is slow with both."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}  # with bytecode, as installed
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    asked = {"help": ["-m", "autoencode", "--help"], "parser": ["-c", "import typer, typer.rich_utils"]}
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(12):  # in turn, and other work may slow any of them down; the first compiles
        for name, arguments in asked.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[name].append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert median(seconds["help"]) < 2 * median(seconds["parser"])
    assert min(seconds["help"]) < 0.6  # whatever the parser takes


def test_the_package_runs_as_a_module_like_the_command() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autoencode", *arguments], capture_output=True, text=True
        )

    assert run("--version").stdout.strip() == f"autoencode {autoencode.__version__}"
    assert "train" in run("--help").stdout
    failed = run("train", "no-such-folder", "--out", "never-made")
    assert failed.returncode == 1
    assert "no-such-folder does not exist" in failed.stderr
