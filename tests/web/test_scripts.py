"""The scripts of the page that need no page: their own tests, run by Node, and their types."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).with_name("scripts").glob("*.test.mjs"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name.partition(".")[0])
def test_a_script_does_what_its_tests_say(script: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    # The scripts of the page end in .js: from this version on Node sees by the syntax that they are modules.
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, version.strip().lstrip("v").split("."))) < (20, 19):
        pytest.skip(f"Node {version.strip()} is older than 20.19")
    done = subprocess.run(
        [node, "--no-warnings", "--test", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_types_of_the_scripts_agree() -> None:
    # `make test` puts it there if npm is at hand: PyPI has no TypeScript.
    found = shutil.which("tsc", path=str(Path(sys.prefix) / "node_modules" / ".bin")) or shutil.which("tsc")
    if found is None or shutil.which("node") is None:
        pytest.skip("TypeScript is not installed: npm install --prefix .venv typescript@5")
    command = [found, "--project", str(Path(__file__).with_name("scripts"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
