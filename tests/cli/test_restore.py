"""The command restore, and train with its preset, end to end."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import Command, assert_one_line

from autoencode import (
    ModelConfig,
    Pack,
    Preprocessing,
    Restorer,
    Run,
    load_restorer,
    restoration,
    save_model,
    train,
)
from autoencode.models.bundled import name_of_model
from autoencode.restoration import SHEET_NAME
from torture import seeds


@pytest.fixture(scope="module")
def run(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "restore"
    return train(tiny_pack.path, out, preset="restore", widths=(4, 6), patch=32, epochs=1)


def test_a_restorer_is_trained_shown_and_used(autoencode: Command, photos: Path, tmp_path: Path) -> None:
    settings = ("--size", "32", "--epochs", "1", "--set", "widths=4,6", "--set", "patch=32")
    trained = autoencode("train", photos, "--preset", "restore", *settings, "--out", tmp_path / "run")
    assert (trained.code, trained.err) == (0, "")
    assert "sheet:  " in trained.out
    assert (tmp_path / "run" / SHEET_NAME).exists()
    assert (tmp_path / "run" / "curves.png").exists()
    restored = autoencode("restore", tmp_path / "run", photos, "--out", tmp_path / "out", "--clean", photos)
    assert restored.code == 0, restored.err
    assert "against the clean images: median PSNR " in restored.out
    for path in photos.rglob("*.png"):
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.relative_to(photos)) as after:
            assert (after.size, after.mode) == (before.size, before.mode)


def test_a_restorer_can_start_from_one_trained_at_another_size(tiny_pack: Pack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Restorer(ModelConfig(kind="restorer", network="gated", widths=(4, 6)), Preprocessing(48, 64))
    save_model(tmp_path / "first.safetensors", first, {})
    steps = {"preset": "restore", "epochs": 1, "patch": 16, "learning_rate": 1e-12}
    run = train(tiny_pack.path, tmp_path / "run", init=tmp_path / "first.safetensors", **steps)
    found = load_restorer(run.model_path)
    assert found.preprocessing == tiny_pack.preprocessing
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, first.state_dict()[name], atol=1e-5, rtol=0)


def test_restore_says_what_it_did_and_what_was_done_before(
    autoencode: Command, run: Run, photos: Path, tmp_path: Path
) -> None:
    once = autoencode("restore", run.folder, photos / "coast", "--out", tmp_path / "out", "--compare")
    assert once.out.startswith("restored: 16 images. Removed in the median image: 0.")
    assert "before and after: " in once.out
    again = autoencode("restore", run.folder, photos / "coast", "--out", tmp_path / "out", "--compare")
    assert "restored: 16 images, 16 of them by an earlier run." in again.out


def test_what_is_not_in_the_results_is_said_and_in_the_json(autoencode: Command, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    rows = b"".join(b"\0" + bytes(range(200, 200 + 6 * 4)) for _ in range(3))
    (tmp_path / "deep.png").write_bytes(seeds.png(4, 3, 16, 2, zlib.compress(rows)))
    given = ("restore", tmp_path / "pages.tif", tmp_path / "deep.png", "--out", tmp_path / "out")
    for told in (autoencode(*given), autoencode(*given)):  # also of what an earlier run restored
        assert "note: 1 file has more pages or frames; only the first was restored\n" in told.out
        assert "note: 1 file of 16-bit colour became 8-bit\n" in told.out
    pages, deep = json.loads(autoencode(*given, "--json").out)["results"]
    assert (pages["has_more_frames"], pages["was_16_bit_colour"]) == (True, False)
    assert (deep["has_more_frames"], deep["was_16_bit_colour"]) == (False, True)


def test_what_may_be_meant_as_a_model_is_not_restored_by_the_bundled_one(
    autoencode: Command, run: Run, photos: Path, tmp_path: Path
) -> None:
    image, out = next(photos.rglob("*.png")), ("--out", tmp_path / "out")
    runs = tmp_path / "runs"
    shutil.copytree(run.folder, runs / "mine")
    settings = next((runs / "mine").glob("*.json*"))
    (tmp_path / "README.md").write_text("words")
    for given, told in (
        ((tmp_path / "README.md", image), "README.md is neither a model nor an image.\n"),
        ((settings, image), f"is neither a model nor an image. Did you mean {runs / 'mine'}?"),
        ((image, runs / "mine"), f"is a model. Give it first: autoencode restore {runs / 'mine'} IMAGES."),
        ((runs, image), f"holds runs. Give one of them as the model: {runs / 'mine'}."),
    ):
        assert_one_line(autoencode("restore", *given, *out), told, code=2)
    assert not (tmp_path / "out").exists()


def test_a_folder_named_like_an_image_is_rejected(autoencode: Command, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    told = f"--out is a folder, and {out} the name of an image. Give --out {tmp_path / 'out'}\n"
    assert_one_line(autoencode("restore", photos, "--out", out), told, code=2)
    assert not out.exists()


@pytest.mark.parametrize("amount", ["nan", "1.5", "-1"])
def test_an_amount_out_of_range_is_told_the_range(autoencode: Command, photos: Path, amount: str) -> None:
    told = f"The amount is {amount}; it must be from 0 to 1."
    assert_one_line(autoencode("restore", photos, "--amount", amount), told, code=2)


def test_a_stopped_call_says_how_much_is_done(
    autoencode: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = restoration.append_result

    def stop(folder: Path, key: str, result: restoration.Restoration) -> None:
        appended(folder, key, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(restoration, "append_result", stop)
    given = ("restore", photos / "coast", "--out", tmp_path / "out")
    once, again = autoencode(*given), autoencode(*given)
    assert (once.code, again.code) == (130, 130)
    assert once.err == "stopped: 0 of 16 images done; run the same command again to go on\n"
    assert again.err == "stopped: 1 of 16 images done; run the same command again to go on\n"


def test_images_alone_are_restored_by_the_bundled_restorer(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    alone = autoencode("restore", photos / "coast", "--out", tmp_path / "out")
    assert (alone.code, alone.err) == (0, "")
    assert "by the bundled restorer" in alone.out
    named = autoencode("restore", "bundled", photos / "coast", "--out", tmp_path / "out")
    assert "16 of them by an earlier run" in named.out


def test_a_folder_called_bundled_is_that_folder_and_not_the_bundled_restorer(
    autoencode: Command, run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "coast", "bundled")
    images = autoencode("restore", "bundled", "--out", "restored")
    assert images.out.startswith("restored: 16 images")
    assert "by the bundled restorer" in images.out
    shutil.rmtree("bundled")
    shutil.copytree(run.folder, "bundled")
    model = autoencode("restore", "bundled", photos / "coast", "--out", "by-run")
    assert (model.code, "by the bundled restorer" in model.out) == (0, False)
    assert load_restorer("bundled").digest == load_restorer(run.folder).digest
    assert load_restorer().digest != load_restorer("bundled").digest
    assert name_of_model("bundled") == str(tmp_path / "bundled")


def test_a_model_without_images_and_a_name_that_is_neither_are_rejected(
    autoencode: Command, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    alone = autoencode("restore", run.folder, *out)
    assert_one_line(alone, "is a model. Give the images that it is to restore", code=2)
    missing = autoencode("restore", tmp_path / "nothing", photos, *out)
    assert_one_line(
        missing, f"There is no {tmp_path / 'nothing'}. Give a model or images that exist.", code=2
    )
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text("{}")
    assert_one_line(autoencode("restore", tmp_path / "unfinished", photos, *out), "No model in")
    assert not (tmp_path / "out").exists()


def test_a_file_asked_for_by_name_that_is_skipped_fails_the_command_after_the_others_are_done(
    autoencode: Command, run: Run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = (photos / "coast" / "000.png", tmp_path / "broken.png")
    result = autoencode("restore", run.folder, *images, "--out", tmp_path / "out")
    assert_one_line(result, "1 file asked for by name", tmp_path / "broken.png")
    assert (tmp_path / "out" / "000.png").exists()


@pytest.mark.parametrize("command", ["reconstruct", "evaluate", "outliers", "report"])
def test_commands_that_need_codes_say_what_a_restorer_is_for(
    command: str, autoencode: Command, run: Run, photos: Path, tmp_path: Path
) -> None:
    arguments = {
        "reconstruct": (run.folder, photos, "--out", tmp_path / "out"),
        "evaluate": (run.folder, "--out", tmp_path / "out.json"),
        "outliers": (run.folder, photos),
        "report": (run.folder,),
    }[command]
    result = autoencode(command, *arguments)
    assert_one_line(result, "is a restorer: it restores images with `autoencode restore`")


def test_an_autoencoder_cannot_restore(
    autoencode: Command, trained: Run, photos: Path, tmp_path: Path
) -> None:
    result = autoencode("restore", trained.folder, photos, "--out", tmp_path / "out")
    assert_one_line(result, "is no restorer. Train one with `autoencode train IMAGES --preset restore`")


def test_images_smaller_than_the_grid_of_the_network_are_restored(
    autoencode: Command, run: Run, tmp_path: Path
) -> None:
    Image.fromarray(np.full((1, 3, 3), 200, np.uint8)).save(tmp_path / "tiny.png")
    assert autoencode("restore", run.folder, tmp_path / "tiny.png", "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "tiny.png") as after:
        assert after.size == (3, 1)
