"""The documentation against the product: its commands run, its pages name all there is, its links hold.

`make docs` builds the site itself, with every warning an error.
"""

import importlib.util
import re
import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import autoencode
from autoencode import ModelConfig, TrainConfig
from autoencode.cli import main
from autoencode.cli.main import app
from autoencode.data.corruptions import CORRUPTIONS
from autoencode.training import presets
from autoencode.transfer_learning import fine_tuning

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
# Commands that serve until they are stopped, or need an object storage, are shown and not run.
WITHOUT_COMMANDS = {"page", "storage"}


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of soft random images here: `photos`, `good`, `new`, and `labelled` with two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fine_tuning, "LEAST_STEPS", 20)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    monkeypatch.setattr(presets, "LEAST_STEPS", 2)
    monkeypatch.setattr(presets, "ENOUGH_STEPS", 2)
    monkeypatch.setattr(presets, "_LEAST_RESTORER_STEPS", 2)
    write_photos(tmp_path)
    return tmp_path


def write_photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name in "abcdefghijklmnopqrstuvwxyz":
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
        image = coarse.resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / "photos" / f"{name}.jpg")
        labelled = folder / "labelled" / ("cats" if name < "n" else "dogs")
        inspected = folder / ("good" if name < "u" else "new")
        for other in (labelled, inspected, folder / "test"):
            other.mkdir(parents=True, exist_ok=True)
            image.save(other / f"{name}.jpg")
        if inspected.name == "new":
            (folder / "ground_truth").mkdir(exist_ok=True)
            mask = Image.new("L", image.size)
            mask.paste(255, (10, 10, 30, 30))
            mask.save(folder / "ground_truth" / f"{name}.png")


def commands_of(page: Path) -> list[str]:
    return [line for line in blocks(page, "sh").splitlines() if line.startswith("autoencode ")]


def makes_its_own_model(page: Path) -> bool:
    trainings = [line for line in commands_of(page) if line.startswith("autoencode train photos")]
    return any("--out runs/photos" in line or "--out" not in line for line in trainings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs/photos` that most guides begin with, made by the command of the first guide."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_photos(folder)
        monkeypatch.chdir(folder)
        words = shlex.split("train photos --preset best --size 64 --epochs 2 --out runs/photos")
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.stem)
def test_every_command_of_the_page_runs(
    page: Path, photos: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = commands_of(page)
    assert commands or page.stem in WITHOUT_COMMANDS, f"{page} shows no command"
    if not makes_its_own_model(page):
        monkeypatch.chdir(request.getfixturevalue("trained"))
    for line in commands:
        typed, _, file = line.partition(" > ")
        words = shlex.split(typed, comments=True)
        monkeypatch.setattr(sys, "argv", words)  # which --workers gives to each of them
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
        if file:
            Path(file).write_text(result.output)


FIRST_ANSWERS = {
    "photos": "autoencode train photos",
    "info photos": "autoencode index photos",
    "info good": "20 images",
    "info runs/photos --json": '"fingerprint"',
}


def test_the_first_commands_do_what_the_guide_says(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs" / "guides" / "commands.md").read_text().partition("## Slips")[0]
    rows = re.findall(r"^\| `autoencode ?(.*?)` \| .* \| (.*) \|$", guide, re.MULTILINE)
    assert len(rows) == 21
    monkeypatch.chdir(trained)
    for typed, said in rows:
        if typed in ("train photos", "evaluate runs/photos"):  # which other tests run, for seconds
            continue
        result = CliRunner().invoke(app, shlex.split(typed))
        fails = said.startswith("no such") or said.startswith("no index")
        assert (result.exit_code != 0) == fails, (typed, result.output, result.exception)
        told = f"{result.output} {result.exception}"
        assert "Traceback" not in told
        assert FIRST_ANSWERS.get(typed, "") in " ".join(told.replace("│", " ").split())


def answers(typed: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program prints for a wrong call, on standard error alone."""
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["autoencode", *shlex.split(typed)])
    monkeypatch.setattr(main, "app", partial(app, prog_name="autoencode"))
    with pytest.raises(SystemExit) as ended:
        main.main()
    printed = capfd.readouterr()
    assert ended.value.code in (1, 2), (typed, printed)
    assert printed.out == "", typed
    return printed.err


def test_a_slip_is_answered_as_the_guide_says(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs" / "guides" / "commands.md").read_text().partition("## Slips")[2]
    rows = re.findall(r"^\| `autoencode (.*?)` \| (.*) \|$", guide, re.MULTILINE)
    assert len(rows) >= 30
    monkeypatch.chdir(trained)
    for typed, said in rows:
        assert answers(typed, capfd, monkeypatch) == f"error: {said}\n", typed


def test_the_python_of_the_readme_runs(photos: Path) -> None:
    code = blocks(README, "python")
    assert "autoencode.train" in code
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_and_the_reference_name_every_command(pages: ModuleType) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    readme, reference = README.read_text(), pages.commands_page()
    for name in commands:
        assert f"autoencode {name}" in readme, f"README.md does not name {name}"
        assert f"\n## {name}\n" in reference, f"the reference does not name {name}"


def test_the_reference_has_every_option_and_every_setting(pages: ModuleType) -> None:
    reference, settings = pages.commands_page(), pages.settings_page()
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for option in command.params:
            for spelled in option.opts if option.param_type_name == "option" else []:
                assert f"`{spelled}`" in reference or spelled == "--help", spelled
    for field in [*fields(ModelConfig), *fields(TrainConfig)]:
        assert re.search(rf"^{field.name} = ", settings, re.MULTILINE), field.name
    for preset in autoencode.PRESETS:
        assert f"`{preset}`" in settings


def test_the_guide_says_what_every_preset_is() -> None:
    guide = (ROOT / "docs" / "guides" / "train.md").read_text()
    table = guide[guide.index("| preset ") :].split("\n\n")[0]
    assert re.findall(r"`([\w-]+)`", table) == list(autoencode.PRESETS)


def test_the_reference_has_every_public_name(pages: ModuleType) -> None:
    reference = pages.python_page()
    for name in autoencode.__all__:
        assert name == "__version__" or re.search(rf":: autoencode\.{name}$", reference, re.MULTILINE), name


def test_the_page_on_the_design_names_every_folder(pages: ModuleType) -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    for folder in sorted(path.parent for path in pages.SOURCE.glob("*/__init__.py")):
        assert f"`{folder.name}/`" in design, folder.name


def test_the_table_of_extensions_names_registries_files_and_tests_that_exist(pages: ModuleType) -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where a change goes")[2].partition("## ")[0]
    registries = re.findall(r"`(\w+)` (?:in|of) `([\w/.]+\.py)`", table)
    assert {"CORRUPTIONS", "NETWORKS", "EMBEDDINGS", "SCORES", "STORES", "PRESETS", "TABS"} <= {
        name for name, _ in registries
    }
    for name, path in registries:
        text = (pages.SOURCE / path).read_text()
        assert re.search(rf"^(?:class )?{name}\b", text, re.MULTILINE), f"{name} in {path}"
    for path in re.findall(r"`((?:tests|docs|src)/[\w/.]+)`", table):
        assert (ROOT / path).exists(), path


def test_the_tree_names_every_module_and_says_what_it_is(pages: ModuleType) -> None:
    tree = pages.tree_page()
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^ +{path.name} +\S", tree, re.MULTILINE), path


def test_the_picture_of_the_layers_is_what_the_linter_checks(pages: ModuleType) -> None:
    picture = pages.layers_picture()
    assert pages.LAYERS.read_text() == picture, "run: make docs"
    for layer in pages.layers():
        assert all(f">{name}</text>" in picture for name in layer)


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md")]), ids=str
)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The script that makes pages of the site from the product."""
    return load(ROOT / "docs" / "pages.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guide_to_restoring_says_what_each_damage_is_for() -> None:
    rows = [line for line in (ROOT / "docs/guides/restore.md").read_text().splitlines() if line[:3] == "| `"]
    named = {row.split("`")[1].partition(":")[0] for row in rows}
    assert set(CORRUPTIONS) <= named
