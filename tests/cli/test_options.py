"""The text of an option becomes a setting, or an error that shows how to write it."""

from __future__ import annotations

import shutil
import typing
from pathlib import Path
from typing import Any

import pytest

from autoencode import ConfigError, Limits, Pack, Run, pack_folder
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
