"""The command duplicates, and the script that it writes."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageOps
from typer.testing import CliRunner

from autoencode import ConfigError, ImageError
from autoencode.cli.main import app


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "it's $(touch hurt)").mkdir(parents=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8))
    picture = picture.resize((160, 128), Image.Resampling.BICUBIC)
    picture.save(folder / "b.png")
    shutil.copy(folder / "b.png", folder / "it's $(touch hurt)" / "-rf;`touch hurt`\n'.png")
    ImageOps.mirror(picture).resize((80, 64), Image.Resampling.LANCZOS).save(folder / "a.png")
    os.utime(folder / "a.png", (1, 1))
    return folder


def test_groups_are_printed_and_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = autoencode("duplicates", folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "duplicates: 2 copies in 1 group, of 3 images" in result.stdout
    assert "mirrored, resized" in result.stdout
    written = json.loads((out / "duplicates.json").read_text())
    ((first, same, small),) = written["groups"]
    assert (first["path"], first["kinds"], first["width"]) == (str(folder / "b.png"), [], 160)
    assert (same["kinds"], small["kinds"]) == (["identical"], ["mirrored", "resized"])
    with (out / "duplicates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["", "identical", "mirrored resized"]
    assert {row["group"] for row in rows} == {"1"}
    assert not (out / "others.txt").exists()


@pytest.mark.parametrize(("keep", "stays"), [("largest", "b.png"), ("oldest", "a.png"), ("first", "a.png")])
def test_the_script_moves_all_but_one_whatever_their_names_hold(
    folder: Path, tmp_path: Path, keep: str, stays: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    out, target = tmp_path / "out", tmp_path / "the copies"
    assert autoencode("duplicates", folder, "--out", out, "--keep", keep).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.rglob("*.png")} == before
    script = out / "move-others.sh"
    subprocess.run(["sh", script, target], check=True, cwd=tmp_path)
    assert [path.name for path in folder.rglob("*.png")] == [stays]
    moved = {path.name: path.read_bytes() for path in target.rglob("*.png")}
    assert moved == {name: content for name, content in before.items() if name != stays}
    assert list(tmp_path.rglob("hurt")) == []
    # Again: nothing is overwritten, and what is gone is no reason to go on.
    assert subprocess.run(["sh", script], check=False, capture_output=True).returncode != 0
    assert (out / "others.txt").read_bytes().count(b".png\n") == 2


def test_wrong_calls_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    result = autoencode("duplicates", folder, "--keep", "first")
    assert isinstance(result.exception, ConfigError)
    assert "give --out" in str(result.exception)
    (tmp_path / "x.png").write_bytes(b"no image")
    named = autoencode("duplicates", folder, tmp_path / "x.png")
    assert isinstance(named.exception, ImageError)
    assert "duplicates: 2 copies in 1 group" in named.stdout
