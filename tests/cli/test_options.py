"""The text of an option becomes a setting, or an error that shows how to write it."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from autoencode import ConfigError, Limits, Pack, Preprocessing, Run, configuration
from autoencode.cli import options
from autoencode.data import preprocessing
from autoencode.models import networks


def test_the_pack_of_a_run_is_found_from_its_folder_and_its_model_file(
    trained: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    assert options.pack_of(trained.folder, "--pack PACK") == str(tiny_pack.path)
    assert options.pack_of(trained.model_path, "--pack PACK") == str(tiny_pack.path)
    copied = tmp_path / "model.safetensors"
    copied.write_bytes(trained.model_path.read_bytes())
    with pytest.raises(
        ConfigError, match=r"is no run folder that would name the pack\. Give it: --pack PACK\."
    ):
        options.pack_of(copied, "--pack PACK")


def test_no_option_means_no_opinion() -> None:
    assert options.preprocessing(None, None, None) is None
    assert options.limits(None, None) == Limits()
    assert options.kl_warmup(None) == {}


@pytest.mark.parametrize(
    ("size", "resize_mode", "background", "expected"),
    [
        ("64", None, None, Preprocessing(64, 64)),
        ("32x48", options.ResizeMode.pad, "black", Preprocessing(32, 48, "pad", (0, 0, 0))),
        (
            None,
            options.ResizeMode.stretch,
            "#0a0b0c",
            Preprocessing(resize_mode="stretch", background=(10, 11, 12)),
        ),
        (None, None, "#0a0b0cff", Preprocessing(background=(10, 11, 12))),
    ],
)
def test_sizes_fits_and_colours_are_read(
    size: str | None, resize_mode: options.ResizeMode | None, background: str | None, expected: Preprocessing
) -> None:
    assert options.preprocessing(size, resize_mode, background) == expected


@pytest.mark.parametrize("background", ["", "whitish", "#12", "rgb(300"])
def test_an_unknown_colour_is_rejected_with_how_to_write_one(background: str) -> None:
    with pytest.raises(ConfigError, match="Use a name such as white, or #rrggbb"):
        options.preprocessing(None, None, background)


def test_limits_given_replace_the_usual_ones_one_by_one() -> None:
    assert options.limits(10, None) == Limits(max_pixels=10)
    assert options.limits(None, 20) == Limits(max_bytes=20)


def test_lists_of_whole_numbers_are_read() -> None:
    assert options.whole_numbers("32, 64,128") == (32, 64, 128)
    for wrong in ("", "1,,2", "1.5", "a"):
        with pytest.raises(ConfigError, match="no list of whole numbers such as"):
            options.whole_numbers(wrong)


def test_sigma2_is_a_number_or_auto() -> None:
    assert options.sigma2("auto") == "auto"
    assert options.sigma2("1e-2") == 0.01
    with pytest.raises(ConfigError, match="must be a number or auto"):
        options.sigma2("Auto?")


def test_a_warmup_is_a_number_of_epochs_or_of_cycles() -> None:
    assert options.kl_warmup("40") == {"kl_warmup": 40}
    assert options.kl_warmup("cyclic:4") == {"kl_warmup_cycles": 4}
    for wrong in ("", "cyclic", "cyclic:", "linear:3", "-1", "1.5", "cyclic:x"):
        with pytest.raises(ConfigError, match="a number of epochs, or cyclic:N"):
            options.kl_warmup(wrong)


@pytest.mark.parametrize(
    ("choices", "allowed"),
    [
        (options.ResizeMode, preprocessing.ResizeMode),
        (options.Kind, configuration.Kind),
        (options.Loss, configuration.Loss),
        (options.Precision, configuration.Precision),
    ],
)
def test_the_command_line_offers_what_the_library_allows(
    choices: type[options.ResizeMode], allowed: object
) -> None:
    assert tuple(choice.value for choice in choices) == typing.get_args(allowed)


def test_the_command_line_offers_every_network() -> None:
    assert [choice.value for choice in options.Network] == list(networks.NETWORKS)


def test_the_limits_are_stated_in_the_help() -> None:
    for option, limit in ((options.MaxPixels, Limits().max_pixels), (options.MaxBytes, Limits().max_bytes)):
        _, declared = typing.get_args(option)
        assert f"Default: {limit:,}." in declared.help
