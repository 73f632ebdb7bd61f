"""The documentation against the product: its commands run, its pages are in step."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from autoencode.cli.main import app
from autoencode.transfer_learning import methods

ROOT = Path(__file__).parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of soft random images, in the current folder: `photos`, and `labelled` with two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "LEAST_STEPS", 20)
    monkeypatch.setattr(methods, "EPOCHS", 1)
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "abcdefghijklmnopqrstuvwxyz":
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
        image = coarse.resize((48, 40), Image.Resampling.BICUBIC)
        image.save(tmp_path / "photos" / f"{name}.jpg")
        labelled = tmp_path / "labelled" / ("cats" if name < "n" else "dogs")
        labelled.mkdir(parents=True, exist_ok=True)
        image.save(labelled / f"{name}.jpg")
    return tmp_path


@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_every_command_of_the_page_runs(photos: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for line in blocks(page, "sh").splitlines() if line.startswith("autoencode ")]
    assert commands
    for line in commands:
        typed, _, file = line.partition(" > ")
        words = shlex.split(typed, comments=True)
        monkeypatch.setattr(sys, "argv", words)  # which --workers gives to each of them
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
        if file:
            Path(file).write_text(result.output)


def test_the_python_of_the_readme_runs(photos: Path) -> None:
    code = blocks(README, "python")
    assert "autoencode.train" in code
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_and_the_reference_name_every_command() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for page in (README, ROOT / "docs" / "reference.md"):
        missing = [name for name in commands if f"autoencode {name}" not in page.read_text()]
        assert not missing, f"{page} does not name {missing}"


def test_the_reference_is_what_the_code_says() -> None:
    script = load(ROOT / "docs" / "reference.py")
    assert script.PAGE.read_text() == script.page(), "run: python docs/reference.py"


def test_the_tree_of_the_design_names_every_module() -> None:
    tree = (ROOT / "docs" / "design.md").read_text()
    modules = [path for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"]
    missing = [str(path) for path in modules if not re.search(rf"\b{path.name}\b", tree)]
    assert not missing, f"the tree of docs/design.md does not name {missing}"


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=str)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
