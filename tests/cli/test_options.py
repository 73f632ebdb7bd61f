"""The text of an option becomes a setting, or an error that shows how to write it."""

from __future__ import annotations

import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command

from autoencode import ConfigError, Limits, Pack, Run, fit_prior, load_model, pack_folder, save_model
from autoencode.atomic import exclusive
from autoencode.cli import options
from autoencode.configuration import ResizeMode


def test_the_pack_of_a_run_is_found_from_its_folder_and_its_model_file(
    trained: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    assert options.pack_of(trained.folder, "--pack PACK").path == tiny_pack.path
    assert options.pack_of(trained.model_path, "--pack PACK").path == tiny_pack.path
    copied = tmp_path / "model.safetensors"
    copied.write_bytes(trained.model_path.read_bytes())
    with pytest.raises(
        ConfigError, match=r"is not a run folder, and no pack there has .* Give it: --pack PACK\."
    ):
        options.pack_of(copied, "--pack PACK")
    # Packs of other images beside it, and what is no pack, are passed over.
    (tmp_path / "a.pack").mkdir()
    pack_folder(tiny_pack.folder / "coast", tmp_path / "b.pack", size=32)
    shutil.copytree(tiny_pack.path, tmp_path / "c.pack")
    assert options.pack_of(copied, "--pack PACK").path == tmp_path / "c.pack"


def test_a_model_whose_training_was_interrupted_or_still_runs_is_used_and_that_is_said(
    autoencode: Command, trained: Run, photos: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.folder, tmp_path / "run")
    words = "reconstruct", run, photos / "coast" / "000.png", "--out", tmp_path / "out"
    assert autoencode(*words).err == ""
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    result = autoencode(*words)
    assert result.code == 0
    assert result.err.startswith(f"note: training of {run} was interrupted: run its train command again with")
    assert result.err.count("\n") == 1
    for others in (("embed", run, photos, "--out", tmp_path / "v.npz"), ("evaluate", run)):
        assert f"note: training of {run} was interrupted" in autoencode(*others).err
    assert "interrupted: --resume continues it" in autoencode("info", run).out
    with exclusive(run, "busy", RuntimeError):
        assert autoencode(*words).err.startswith(f"note: training of {run} is still running (epochs ")
    # A run without its settings is a folder with a model, which is all that the command needs.
    (run / "run.json").write_text("{}")
    assert autoencode(*words) == (0, result.out, "")


def test_no_option_means_no_opinion() -> None:
    assert options.preprocessing(None, None, None) == {}


@pytest.mark.parametrize(
    ("size", "resize_mode", "background", "expected"),
    [
        ("64", None, None, {"height": 64, "width": 64}),
        (
            "32x48",
            "pad",
            "black",
            {"height": 32, "width": 48, "resize_mode": "pad", "background": (0, 0, 0)},
        ),
        (None, "stretch", "#0a0b0c", {"resize_mode": "stretch", "background": (10, 11, 12)}),
        (None, None, "#0a0b0cff", {"background": (10, 11, 12)}),
    ],
)
def test_sizes_resize_modes_and_colours_are_read(
    size: str | None, resize_mode: ResizeMode | None, background: str | None, expected: dict[str, Any]
) -> None:
    assert options.preprocessing(size, resize_mode, background) == expected


@pytest.mark.parametrize("background", ["", "whitish", "#12", "rgb(300"])
def test_an_unknown_colour_is_rejected_with_how_to_write_one(background: str) -> None:
    with pytest.raises(ConfigError, match="Use a name such as white, or #rrggbb"):
        options.preprocessing(None, None, background)


def test_a_smaller_limit_on_pixels_keeps_that_on_bytes_and_a_larger_one_raises_it() -> None:
    usual = Limits()
    assert options.limits(10) == Limits(max_pixels=10)
    assert options.limits(3 * usual.max_pixels) == Limits(3 * usual.max_pixels, 3 * usual.max_bytes)


def test_the_limit_is_stated_in_the_help() -> None:
    _, declared = typing.get_args(options.MaxPixels)
    assert f"Default: {Limits().max_pixels:,}." in declared.help


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("reconstruct RUN IMAGES", "results/reconstruct-run/reconstructions.csv"),
        ("morph RUN IMAGES/000.png IMAGES/003.png", "results/morph-run.gif"),
        ("generate RUN -n 2", "results/generate-run/grid.png"),
        ("features RUN IMAGES/000.png", "results/features-run/layers.csv"),
        ("embed RUN IMAGES", "results/embed-coast.npz"),
        ("export RUN", "results/export-run/encoder.onnx"),
        ("pack IMAGES --size 32", "results/pack-coast.pack/pack.json"),
        ("index IMAGES", "indexes/coast/index.safetensors"),
    ],
)
def test_every_command_has_a_place_for_its_results(
    command: str,
    made: str,
    autoencode: Command,
    trained: Run,
    tiny_pack: Pack,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(trained.folder, tmp_path / "run")
    model = load_model(trained.model_path)
    fit_prior(model, tiny_pack)
    save_model(run / "model.safetensors", model, model.provenance)
    words = command.replace("RUN", str(run)).replace("IMAGES", str(photos / "coast")).split()
    result = autoencode(*words)
    assert result.code == 0, result.err
    assert (tmp_path / made).is_file()
    assert made.rpartition("/")[0] in result.out


def test_results_of_two_calls_are_kept_but_for_a_command_that_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "runs" / "photos" / "model.safetensors"
    first = options.out_or_default(None, "generate", model)
    assert first == Path("results/generate-photos")
    first.mkdir(parents=True)
    assert options.out_or_default(None, "generate", model.parent) == Path("results/generate-photos-2")
    assert options.out_or_default(None, "generate", model, continues=True) == first
    assert options.out_or_default(None, "morph", model, ".gif") == Path("results/morph-photos.gif")
    assert options.out_or_default(None, "restore", [tmp_path / "a.jpg"]) == Path("results/restore-a")
    assert options.out_or_default(Path("new"), "generate", model) == Path("new")
