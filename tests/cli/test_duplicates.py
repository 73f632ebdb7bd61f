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

from autoencode import ConfigError, ImageError, OutputError, find_duplicates
from autoencode.atomic import exclusive
from autoencode.cli.main import app
from autoencode.duplicates.output import write_results


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


def test_what_a_killed_search_left_half_written_is_gone_after_the_next(folder: Path, tmp_path: Path) -> None:
    found, out = find_duplicates(folder), tmp_path / "out"
    for write in (
        lambda: write_results(found, out, "first"),
        lambda: find_duplicates(folder, cache=out),
    ):
        out.mkdir(exist_ok=True)
        (out / "duplicates.csv.7ef7afad4015.partial").write_bytes(b"group,pa")
        write()
        assert not list(out.glob("*.partial"))
    with (
        exclusive(out, "", OutputError),
        pytest.raises(OutputError, match="Another process is searching"),
    ):
        write_results(found, out, "first")


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


@pytest.mark.parametrize(("keep", "stays"), [("largest", "b.png"), ("oldest", "a.png")])
def test_the_file_that_stays_is_named_everywhere(folder: Path, tmp_path: Path, keep: str, stays: str) -> None:
    out = tmp_path / "out"
    result = autoencode("duplicates", folder, "--out", out, "--keep", keep)
    (line,) = (line for line in result.stdout.splitlines() if " kept " in line)
    assert line.endswith(f"/{stays}")
    (group,) = json.loads((out / "duplicates.json").read_text())["groups"]
    assert [(Path(file["path"]).name, file["like"]) for file in group if file["stays"]] == [(stays, None)]
    with (out / "duplicates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stays"] for row in rows] == ["yes", "no", "no"]
    others = (out / "others.txt").read_text()
    assert [row["path"] in others for row in rows] == [False, True, True]


def test_without_a_choice_nothing_is_called_kept(folder: Path, tmp_path: Path) -> None:
    result = autoencode("duplicates", folder, "--out", tmp_path / "out")
    assert "kept" not in result.stdout
    assert "reference" in result.stdout
    assert "stays" not in (tmp_path / "out" / "duplicates.json").read_text()


def moving(folder: Path, tmp_path: Path, keep: str = "largest") -> tuple[Path, Path]:
    """Return the script that moves the copies away, and where to."""
    autoencode("duplicates", folder, "--out", tmp_path / "out", "--keep", keep)
    return tmp_path / "out" / "move-others.sh", tmp_path / "the copies"


def run(script: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", script, target], check=True, capture_output=True, text=True)


def test_the_script_goes_on_after_an_interruption(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    script, target = moving(folder, tmp_path)
    # A part of the one that was being copied to another disk.
    (target / "").mkdir()
    part = target / ".move-others.2"
    part.write_bytes(before["a.png"][:100])
    assert "moved: 2" in run(script, target).stdout
    after = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert after == {name: content for name, content in before.items() if name != "b.png"}
    again = run(script, target)
    assert ("moved: 0" in again.stdout, again.stderr.count("moved before: ")) == (True, 2)
    # All of it was there, and its name was not yet.
    (target / "a.png").rename(part)
    assert "moved: 1" in run(script, target).stdout
    assert (target / "a.png").read_bytes() == before["a.png"]


def test_the_script_skips_what_is_gone_and_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    script, target = moving(folder, tmp_path)
    (folder / "a.png").unlink()
    result = run(script, target)
    assert "moved: 1" in result.stdout
    assert f"gone: {folder / 'a.png'}" in result.stderr
    (folder / "a.png").write_bytes(b"another")
    (target / "a.png").write_bytes(b"mine")
    assert "another file is there already" in run(script, target).stderr
    assert ((folder / "a.png").read_bytes(), (target / "a.png").read_bytes()) == (b"another", b"mine")


@pytest.mark.parametrize("keep", ["largest", "oldest", "first"])
def test_no_link_leads_nowhere_after_the_move(folder: Path, tmp_path: Path, keep: str) -> None:
    (folder / "0 link.png").symlink_to("b.png")
    (folder / "1 link.png").symlink_to("a.png")
    shutil.copy(folder / "a.png", tmp_path / "elsewhere.png")
    (folder / "2 link.png").symlink_to("../elsewhere.png")
    links = {path: path.read_bytes() for path in folder.glob("*link.png")}
    script, target = moving(folder, tmp_path, keep)
    assert "2 links left out" in autoencode("duplicates", folder).stderr
    run(script, target)
    assert {path: path.read_bytes() for path in folder.glob("*link.png")} == links
    assert [path.name.strip() for path in target.rglob("*") if path.is_file()] == ["-rf;`touch hurt`\n'.png"]


def test_wrong_calls_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    result = autoencode("duplicates", folder, "--keep", "first")
    assert isinstance(result.exception, ConfigError)
    assert "give --out" in str(result.exception)
    (tmp_path / "x.png").write_bytes(b"no image")
    named = autoencode("duplicates", folder, tmp_path / "x.png")
    assert isinstance(named.exception, ImageError)
    assert "duplicates: 2 copies in 1 group" in named.stdout
