"""What is said of a file or folder is what it is, and how to make it again makes it again."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from autoencode import (
    ConfigError,
    Pack,
    Run,
    build_index,
    describe,
    load_model,
    pack_folder,
    save_model,
    transfer,
)
from autoencode.cli.main import app
from autoencode.outliers.normal import fit_normal


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_is_described_by_its_numbers(trained_vae: Run, tiny_pack: Pack) -> None:
    found = describe(trained_vae.folder)
    assert found.kind == "run"
    assert "run, epochs 2 of 2; variational autoencoder" in found.what
    assert "8 code dimensions" in found.what
    assert found.images == f"48 images of {tiny_pack.folder}"
    mse = trained_vae.metrics[-1]["val_mse"]
    assert f"MSE {mse:.5f} on the validation images, a PSNR of {-10 * np.log10(mse):.1f} dB" in found.quality
    assert "after epoch 2" in found.quality
    assert found.numbers["metrics"] == trained_vae.metrics
    assert found.numbers["sha256"] == load_model(trained_vae.folder).digest


def test_a_folder_of_results_lists_them(
    trained: Run, trained_vae: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for run in (trained, trained_vae):
        shutil.copytree(run.folder, runs / run.folder.name)
    shutil.copytree(tiny_pack.path, runs / "photos.pack")
    (runs / "damaged").mkdir()
    (runs / "damaged" / "run.json").write_text("{")
    (runs / "notes.txt").touch()
    found = describe(runs)
    assert (found.kind, found.what) == ("results", "a folder of 4 results of autoencode")
    head, *lines = str(found).splitlines()
    assert head == "is:      a folder of 4 results of autoencode"
    assert [Path(line.partition(": ")[0]).name for line in lines] == [
        "autoencoder",
        "damaged",
        "photos.pack",
        "vae",
    ]
    assert lines[0].startswith(f"{runs / 'autoencoder'}: run, epochs 2 of 2; autoencoder: ")
    assert "PSNR" in lines[0]
    assert [one["kind"] for one in found.numbers["results"]] == ["run", "unusable", "pack", "run"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="nothing that autoencode made"):
        describe(tmp_path / "empty")


def test_a_model_alone_says_the_same_and_how_to_train_it_again(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    shutil.copy(trained.model_path, tmp_path / "m.safetensors")
    found = describe(tmp_path / "m.safetensors")
    assert (found.kind, found.quality) == ("model", describe(trained.folder).quality)
    first, second = found.repeat.split(", then ")
    known = {"again.toml": str(tmp_path / "again.toml"), "IMAGES": str(photos)}
    for command, more in ((first, []), (second, ["--out", tmp_path / "again"])):
        words = [known.get(word, word) for word in shlex.split(command)[1:]]
        assert autoencode(*words, *more).exit_code == 0
    again, before = load_model(tmp_path / "again"), load_model(trained.folder)
    assert before.provenance.items() <= again.provenance.items()  # the same images and settings
    assert all(torch.equal(own, before.state_dict()[name]) for name, own in again.state_dict().items())


def test_packs_indexes_normal_images_and_classifiers_are_described(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "a.mp4").touch()
    pack = pack_folder(tmp_path / "photos", tmp_path / "pack", size=32)
    found = describe(pack.path)
    assert found.what.startswith("pack, 48 images of 32x32")
    assert found.quality == "skipped 1 file: 1 .mp4"
    assert found.numbers["fingerprint"] == pack.fingerprint
    build_index(photos / "coast", tmp_path / "index", trained.folder, embedding="code")
    found = describe(tmp_path / "index")
    assert (found.kind, found.images) == ("index", str(photos / "coast"))
    assert found.what.startswith("index, 16 images compared by codes of a model, whitened")
    normal = fit_normal(sorted((photos / "coast").glob("*.png"))[:10])
    normal.save(tmp_path / "normal.safetensors")
    found = describe(tmp_path / "normal.safetensors")
    assert (found.kind, found.images) == ("normal images", "10 images")
    assert f"down to {1 / 11:.2%}" in found.quality
    made = transfer(trained.folder, photos, tmp_path / "classifier", embedding="code")
    found = describe(tmp_path / "classifier")
    assert found.what.endswith("3 classes: coast, forest, night")
    assert found.quality == f"accuracy {made.classifier.provenance['accuracy']:.3f} on held-out images"


def test_the_command_for_a_pack_has_the_range_of_its_values(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((32, 32), 700, np.uint16)).save(tmp_path / "images" / "a.png")
    pack_folder(tmp_path / "images", tmp_path / "pack", {"value_range": (0, 1023), "height": 32, "width": 32})
    assert describe(tmp_path / "pack").repeat.endswith("--size 32x32 --resize-mode crop --range 0:1023")


def test_what_cannot_be_described_is_one_line(trained: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, part in (
        (tmp_path, "is nothing that"),
        (tmp_path / "text", "is nothing"),
        ("none", "not exist"),
    ):
        with pytest.raises(ConfigError, match=part) as caught:
            describe(path)
        assert str(caught.value).startswith(str(path))
        assert "Give a run folder, a model file" in str(caught.value)
    unsigned = tmp_path / "m.safetensors"
    save_model(unsigned, load_model(trained.folder), {})
    assert describe(unsigned).quality == describe(unsigned).settings == ""
    result = autoencode("info", unsigned, "--settings", tmp_path / "s.toml")
    assert "has no settings of a training" in str(result.exception)


def test_a_run_without_its_images_is_still_described(trained: Run, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    run = (moved / "run.json").read_text()
    (moved / "run.json").write_text(run.replace(str(trained.pack_path), str(tmp_path / "gone")))
    found = describe(moved)
    assert f"whose pack {tmp_path / 'gone'} is gone" in found.images
    assert found.repeat.startswith("autoencode train IMAGES --config ")


def test_a_folder_of_images_is_described_by_what_training_would_make_of_it(
    photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "a.mp4").touch()
    found = describe(tmp_path / "photos")
    assert (found.kind, found.what) == ("images", "a folder of 48 images in 3 sub-folders")
    assert "training would read them as 48x48 pixels" in found.images
    assert found.quality == "skipped 1 file: 1 .mp4"
    assert "next:    autoencode train " in str(found)
