"""What is published: the description on the package index, and the files that services read."""

from __future__ import annotations

import importlib.util
import re
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import autoencode

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Message:
    """Build a wheel or a source distribution and return its metadata."""
    from hatchling import build

    monkeypatch.chdir(ROOT)
    if kind == "wheel":
        with zipfile.ZipFile(folder / build.build_wheel(str(folder))) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return message_from_bytes(wheel.read(name))
    with tarfile.open(folder / build.build_sdist(str(folder))) as sdist:
        (member,) = (member for member in sdist if member.name.count("/") == 1 and "PKG-INFO" in member.name)
        content = sdist.extractfile(member)
        assert content is not None
        return message_from_bytes(content.read())


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_description_of_a_built_package_has_no_relative_link(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: ModuleType
) -> None:
    metadata = built(kind, tmp_path, monkeypatch)
    text = str(metadata.get_payload())
    assert text.lstrip().startswith("# autoencode")
    assert not hook.LINK.search(text)
    assert metadata["Version"] == autoencode.__version__


def test_a_wheel_has_all_files_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling import build

    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = set(wheel.namelist())
    package = ROOT / "src" / "autoencode"
    files = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert "autoencode/models/restorer.safetensors" in names


def test_links_of_the_description_lead_to_the_version_that_is_published(hook: ModuleType) -> None:
    readme = "![a](docs/a.png)\ncaption\n\n[b](docs/b.md#c), [d](https://e.org), [f](#g)"
    assert hook.description(readme, "https://h.org/i/{kind}/v1") == (
        "![a](https://h.org/i/raw/v1/docs/a.png)\ncaption\n\n"
        "[b](https://h.org/i/blob/v1/docs/b.md#c), [d](https://e.org), [f](#g)"
    )


def test_without_an_address_links_are_text_and_images_are_left_out(hook: ModuleType) -> None:
    readme = "# t\n\n![a](docs/a.png)\ncaption\n\n[b](docs/b.md#c), [d](https://e.org), [f](#g)"
    assert hook.description(readme, "") == "# t\n\nb, [d](https://e.org), [f](#g)"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == autoencode.__version__
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_yaml_files_can_be_read(page: Path) -> None:
    assert isinstance(yaml.safe_load(page.read_text()), dict)


def test_ci_runs_only_tests_and_targets_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = [line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line]
    assert commands
    for word in " ".join(commands).split():
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word
    for command in commands:
        if command.startswith("make "):
            assert command.split()[1] in targets, command


def test_pre_commit_runs_the_quick_checks_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert f"$(BIN)/{command}" in makefile, command


def floors() -> dict[str, Version]:
    """Return the lowest version that is allowed of each package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        requirement = Requirement(text)
        lowest = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
        found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = max(lowest)
    return found


_LISTED = tomllib.loads((ROOT / "docs" / "advisories.toml").read_text())
ADVISORIES, UNCALLED = _LISTED["packages"], _LISTED["uncalled"]


@pytest.mark.parametrize("name", UNCALLED)
def test_what_an_advisory_left_open_is_about_is_not_called(name: str) -> None:
    call = re.compile(rf"{re.escape(UNCALLED[name]['call'])}\b")
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    assert any(name in source for source in sources)
    assert not [source for source in sources if call.search(source)]


@pytest.mark.parametrize("name", ADVISORIES)
def test_no_version_with_a_known_advisory_is_allowed_or_installed(name: str) -> None:
    known = ADVISORIES[name]
    fixed = Version(known["fixed"])
    assert known["advisories"]
    # Of what requests brings, only the installed version can be looked at: no part of ours asks for it.
    if known.get("through") not in ("requests", "tensorboard") or name in floors():
        assert floors()[name] >= fixed
    try:
        assert Version(version(name)) >= fixed
    except PackageNotFoundError:
        assert name in floors() or "through" in known  # of an optional part that is not installed here
