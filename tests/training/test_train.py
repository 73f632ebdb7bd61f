"""A run that was stopped ends as the one that was not; what cannot be continued says so."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoencode import (
    ConfigError,
    DivergedError,
    ImageFolderError,
    OutputError,
    Pack,
    PackError,
    Preprocessing,
    Run,
    RunError,
    TrainProgress,
    atomic,
    load_model,
    pack_folder,
    train,
)
from autoencode.atomic import exclusive
from autoencode.training import loop, objective, resume, runtime
from autoencode.training.losses import Terms
from autoencode.training.run import read_metrics, read_run

VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"corrupt": ("gaussian:0.3", "dropout:0.3"), "epochs": 3},
    "vae": {"kind": "vae", "batch_norm": True, "ema": 0.9, "sigma2": "auto", "kl_warmup": 1, "epochs": 2},
    "adversarial": {
        "kind": "vae",
        "adversarial": True,
        "batch_norm": True,
        "horizontal_flip": True,
        "shift": 2,
        "epochs": 2,
    },
    "residual": {
        "network": "residual",
        "optimizer": "adamw",
        "schedule": "cosine",
        "horizontal_flip": True,
        "shift": 2,
        "epochs": 3,
    },
    "perceptual": {
        "network": "residual",
        "optimizer": "adamw",
        "schedule": "cosine",
        "horizontal_flip": True,
        "shift": 2,
        "perceptual": 0.5,
        "epochs": 2,
    },
    # An epoch of four patches of each image, and moments of Muon.
    "restorer": {"preset": "restore", "epochs": 2, "patch": 16, "code_size": 256, "ema": 0.9},
    "self-supervised": {"preset": "restore", "epochs": 2, "code_size": 256, "self_supervised": True},
}
MEASURED = ("images_per_second", "seconds", "input_wait")  # differs between any two runs


class Death(BaseException):
    """Stands in for a kill where no process has to die: nothing catches it, nothing is written after it."""


def digest(run: Run | Path) -> str:
    path = run.model_path if isinstance(run, Run) else run
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the times."""
    text = (folder / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in r.items() if name not in MEASURED} for r in records]


def at_step(number: int, action: Callable[[], None]) -> Callable[[TrainProgress], None]:
    """A progress function that acts when so many steps were taken, the first counted as 1."""

    def progress(at: TrainProgress) -> None:
        if (at.epoch - 1) * at.steps + at.step == number:
            action()

    return progress


def die() -> None:
    raise Death


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | VARIANTS[request.param]


@pytest.fixture(scope="module")
def uninterrupted(variant: dict[str, Any], tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_pack.path, tmp_path_factory.mktemp("uninterrupted") / "run", **variant)


@pytest.fixture(scope="module")
def plain(tiny: dict[str, Any], tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three epochs of the simplest run."""
    return train(tiny_pack.path, tmp_path_factory.mktemp("plain") / "run", epochs=3, **tiny)


def assert_same(run: Run, expected: Run) -> None:
    assert digest(run) == digest(expected)
    assert lines(run.folder) == lines(expected.folder)
    assert not list(run.folder.glob("*.partial"))


KILLED = """
import json, os, signal, sys
from autoencode import train
source, out, step, settings = json.loads(sys.argv[1])
taken = set()  # epochs of the sharp decoder are counted from 1 again
def progress(at):
    taken.add((at.phase, at.epoch, at.step))
    if len(taken) == step:
        os.kill(os.getpid(), signal.SIGKILL)
train(source, out, checkpoint_every=2, progress=progress, **settings)
"""


def test_a_run_killed_at_a_random_step_ends_with_the_same_bytes(
    variant: dict[str, Any], uninterrupted: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    step = random.Random(len(variant)).randrange(3, int(lines(uninterrupted.folder)[-1]["step"]))
    arguments = json.dumps([str(tiny_pack.path), str(tmp_path / "run"), step, variant])
    killed = subprocess.run([sys.executable, "-c", KILLED, arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(lines(tmp_path / "run")) < len(lines(uninterrupted.folder))
    assert_same(train(tiny_pack.path, tmp_path / "run", resume=True), uninterrupted)


def test_ctrl_c_in_the_middle_of_an_epoch_loses_no_step(
    variant: dict[str, Any], uninterrupted: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    steps: list[int] = []
    for stop in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            train(
                tiny_pack.path,
                tmp_path / "run",
                resume=stop > 3,
                progress=at_step(stop, interrupt),
                **variant,
            )
    run = train(
        tiny_pack.path,
        tmp_path / "run",
        resume=True,
        progress=lambda at: steps.append((at.epoch - 1) * at.steps + at.step),
        **variant,
    )
    assert steps[0] == 8
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", ["save_model", "append_metrics", "save_checkpoint"])
def test_dying_between_two_writes_at_the_end_of_an_epoch_changes_nothing(
    write: str,
    done: bool,
    plain: Run,
    tiny: dict[str, Any],
    tiny_pack: Pack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = getattr(loop, write), []

    def dying(*arguments: object) -> object:
        calls.append(write)
        if len(calls) == 2 and not done:
            raise Death
        result = original(*arguments)
        if len(calls) == 2:
            raise Death
        return result

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(loop, write, dying)
        train(tiny_pack.path, tmp_path / "run", epochs=3, **tiny)
    assert_same(train(tiny_pack.path, tmp_path / "run", resume=True), plain)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Death):
        train(tiny_pack.path, out, progress=at_step(2, die), epochs=3, **tiny)
    assert not (out / "checkpoint.safetensors").exists()
    assert_same(train(tiny_pack.path, out, resume=True), plain)


def test_a_run_that_died_in_its_first_moment_does_not_block_its_folder(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / "run.json.123.partial").write_text("{")
    train(tiny_pack.path, out, epochs=1, **tiny)
    assert not (out / "run.json.123.partial").exists()


def test_a_line_cut_short_by_a_crash_is_written_again(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Death):
        train(tiny_pack.path, out, progress=at_step(7, die), epochs=3, **tiny)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    assert_same(train(tiny_pack.path, out, resume=True), plain)


def test_resuming_a_finished_run_changes_nothing(plain: Run, tiny_pack: Pack, tmp_path: Path) -> None:
    copy = shutil.copytree(plain.folder, tmp_path / "run")
    steps: list[TrainProgress] = []
    assert_same(train(tiny_pack.path, copy, resume=True, progress=steps.append), plain)
    assert not steps


def test_the_seed_decides_the_weights_and_the_state_of_torch_does_not(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert digest(train(tiny_pack.path, tmp_path / "a", epochs=3, **tiny)) == digest(plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(train(tiny_pack.path, tmp_path / "b", epochs=3, seed=1, **tiny)) != digest(plain)


def test_more_epochs_later_equal_more_epochs_at_once(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)
    run = train(tiny_pack.path, tmp_path / "run", resume=True, epochs=3)
    assert_same(run, plain)


def test_a_run_goes_on_in_micro_batches(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)
    run = train(tiny_pack.path, tmp_path / "run", resume=True, epochs=3, accumulate=2)
    assert read_run(run.folder).train.accumulate == 2
    assert [record["val_mse"] for record in run.metrics] == pytest.approx(
        [record["val_mse"] for record in plain.metrics], rel=1e-3
    )
    with pytest.raises(RunError, match="batch_size"):
        train(tiny_pack.path, tmp_path / "run", resume=True, accumulate=3, batch_size=4)


@pytest.mark.parametrize(
    "other",
    [{"kind": "vae", "kl_warmup_cycles": 1}, {"kind": "vae", "adversarial": True}],
)
def test_more_epochs_are_rejected_where_the_schedule_depends_on_their_number(
    other: dict[str, Any], tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny, **other)
    with pytest.raises(RunError, match="epochs 1, not 2"):
        train(tiny_pack.path, tmp_path / "run", resume=True, epochs=2)


@pytest.mark.parametrize(
    "setting",
    [
        {"code_size": 4},
        {"learning_rate": 0.1},
        {"epochs": 1},
        {"corrupt": ("rotate:5",)},
        {"batch_norm": True},
    ],
)
def test_a_run_resumed_with_another_setting_is_rejected_and_keeps_its_files(
    setting: dict[str, Any], plain: Run, tiny_pack: Pack
) -> None:
    before = {path.name: path.read_bytes() for path in plain.folder.iterdir()}
    with pytest.raises(RunError) as caught:
        train(tiny_pack.path, plain.folder, resume=True, **setting)
    (name,) = setting
    assert name in str(caught.value)
    assert str(plain.folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in plain.folder.iterdir()} == before


def test_a_preset_given_again_asks_for_no_more_epochs_than_the_run_has(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    settings = tiny | {"preset": "paper-denoise"}
    train(tiny_pack.path, tmp_path / "run", epochs=1, **settings)
    run = train(tiny_pack.path, tmp_path / "run", resume=True, **settings)
    assert len(run.metrics) == 1
    with pytest.raises(RunError, match="corrupt"):
        train(tiny_pack.path, tmp_path / "run", resume=True, **(tiny | {"preset": "paper-dropout"}))


def test_fewer_epochs_are_rejected_with_how_to_stop_a_run(plain: Run) -> None:
    with pytest.raises(RunError) as caught:
        train(plain.pack_path, plain.folder, resume=True, epochs=2)
    assert str(caught.value) == (
        f"The run in {plain.folder} is of 3 epochs: only more can be asked for, not 2. Leave that out; "
        "Ctrl-C stops a run and keeps it."
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"precision": "bf16"}, "precision fp32, not bf16"),
        ({"channels_last": False}, "memory format channels last, not channels first"),
    ],
)
def test_a_run_is_not_continued_in_another_way_of_computing(
    asked: dict[str, Any], words: str, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(tiny_pack.path, out, epochs=1, precision="fp32", **tiny)
    with pytest.raises(RunError, match=f"was started with {words}"):
        train(tiny_pack.path, out, epochs=2, resume=True, **asked)


def test_a_run_goes_on_as_it_was_started_whatever_this_machine_would_choose(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {"epochs": 2, "precision": "fp32", "channels_last": False, **tiny}
    whole = train(tiny_pack.path, tmp_path / "whole", **started)
    train(tiny_pack.path, tmp_path / "run", **{**started, "epochs": 1})
    monkeypatch.setattr(runtime, "multiplies_bf16", lambda _device: True)
    assert runtime.choose_runtime("cpu").bf16
    assert_same(train(tiny_pack.path, tmp_path / "run", epochs=2, resume=True), whole)


def test_a_run_of_a_machine_that_can_do_more_says_so(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train(tiny_pack.path, out, epochs=1, precision="bf16", **tiny)
    monkeypatch.setattr(resume, "multiplies_bf16", lambda _device: False)
    with pytest.raises(ConfigError, match=r"only emulates, slowly.*add --set precision=bf16"):
        train(tiny_pack.path, out, epochs=2, resume=True)
    train(tiny_pack.path, out, epochs=2, resume=True, precision="bf16")
    content = json.loads((out / "run.json").read_text())
    content["runtime"]["device"] = "cuda"
    (out / "run.json").write_text(json.dumps(content))
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError, match=r"Cannot use the device 'cuda'.*was started on cuda"):
        train(tiny_pack.path, out, epochs=3, resume=True)
    with pytest.raises(RunError, match="was started with device cuda, not cpu"):
        train(tiny_pack.path, out, epochs=3, resume=True, device="cpu")


def test_a_run_resumed_with_a_setting_there_is_not_says_so(plain: Run, tiny_pack: Pack) -> None:
    with pytest.raises(ConfigError, match="Unknown setting epoch"):
        train(tiny_pack.path, plain.folder, resume=True, epoch=4)
    with pytest.raises(ConfigError, match=r"epochs is 2\.5; it must be a whole number"):
        train(tiny_pack.path, plain.folder, resume=True, epochs=2.5)


def test_a_run_resumed_with_another_size_is_rejected(plain: Run, tiny_pack: Pack) -> None:
    with pytest.raises(RunError, match=r"started with 32x32 pixels .*, not 48x48 pixels"):
        train(tiny_pack.path, plain.folder, resume=True, preprocessing=Preprocessing(48, 48))


def test_a_run_resumed_on_another_folder_is_rejected(plain: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"was started on .*, not on {tmp_path}"):
        train(tmp_path, plain.folder, resume=True)


def test_a_run_resumed_after_its_images_changed_is_rejected(
    photos: Path, tiny: dict[str, Any], tiny_size: Preprocessing, tmp_path: Path
) -> None:
    images = shutil.copytree(photos / "coast", tmp_path / "images")
    pack = pack_folder(images, tmp_path / "p", tiny_size)
    train(pack.path, tmp_path / "run", epochs=1, **tiny)
    next(images.iterdir()).unlink()
    pack_folder(images, tmp_path / "p", tiny_size)
    with pytest.raises(RunError, match=r"images of .* are not those the run in"):
        train(pack.path, tmp_path / "run", resume=True, epochs=2)


def test_a_run_whose_pack_is_gone_says_so(
    photos: Path, tiny: dict[str, Any], tiny_size: Preprocessing, tmp_path: Path
) -> None:
    pack = pack_folder(photos / "coast", tmp_path / "p", tiny_size)
    train(pack.path, tmp_path / "run", epochs=1, **tiny)
    shutil.rmtree(pack.path)
    with pytest.raises(PackError, match=str(pack.path)):
        train(photos / "coast", tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_rejected(plain: Run, tiny_pack: Pack, tmp_path: Path) -> None:
    copy = shutil.copytree(plain.folder, tmp_path / "run")
    path = copy / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint.safetensors is damaged"):
        train(tiny_pack.path, copy, resume=True, epochs=4)


def test_nothing_to_resume_is_said(tiny_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"No run in .* to continue\. Leave --resume out to start one there"):
        train(tiny_pack.path, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run of ours"):
        train(tiny_pack.path, tmp_path, epochs=1, **tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_the_name_of_the_run_is_left_alone(tiny_pack: Pack, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError, match="out is a file"):
        train(tiny_pack.path, tmp_path / "out", resume=resume)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_is_not_started_twice(plain: Run, tiny_pack: Pack) -> None:
    before = digest(plain)
    with pytest.raises(RunError, match=r"holds a run already\. Add --resume \(in Python resume=True\)"):
        train(tiny_pack.path, plain.folder)
    assert digest(plain) == before


def test_two_processes_do_not_train_into_one_folder(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    with (
        exclusive(tmp_path / "run", "", RunError),
        pytest.raises(RunError, match="is being trained by another process"),
    ):
        train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)
    train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(
    tiny: dict[str, Any], photos: Path, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ours: list[str] = []

    def other_process(_done: int, _total: int) -> None:
        if not ours:
            pack = pack_folder(photos / "night", tmp_path / "p", tiny_size)
            ours.append(digest(train(pack.path, out, epochs=1, **tiny)))

    with pytest.raises(RunError, match="holds a run already"):
        train(photos / "coast", out, preprocessing=tiny_size, packing_progress=other_process, **tiny)
    assert [digest(out / "model.safetensors")] == ours


def test_a_folder_is_packed_once_for_all_its_runs(
    photos: Path, tiny: dict[str, Any], tiny_size: Preprocessing, tmp_path: Path
) -> None:
    read: list[int] = []
    runs = [
        train(
            photos / "coast",
            tmp_path / name,
            preprocessing=tiny_size,
            epochs=1,
            packing_progress=lambda _done, total: read.append(total),
            **tiny,
        )
        for name in ("first", "second")
    ]
    images = len(list((photos / "coast").iterdir()))
    assert (read[0], read[-1]) == (images, 0)
    assert list(tmp_path.glob("*.pack")) == [runs[0].pack_path] == [runs[1].pack_path]
    assert digest(runs[0]) == digest(runs[1])
    resumed = train(photos / "coast", tmp_path / "first", resume=True, epochs=2)
    assert len(resumed.metrics) == 2


def test_the_same_images_give_the_same_model_wherever_they_are(
    plain: Run, photos: Path, tiny: dict[str, Any], tiny_size: Preprocessing, tmp_path: Path
) -> None:
    images = shutil.copytree(photos, tmp_path / "elsewhere")
    run = train(images, tmp_path / "run", preprocessing=tiny_size, epochs=3, **tiny)
    assert_same(run, plain)


def test_bad_sources_are_rejected_before_a_run_is_made(tiny_pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, error, message in (
        (tmp_path / "none", ImageFolderError, "none does not exist"),
        (tmp_path / "empty", ImageFolderError, "No images in"),
    ):
        with pytest.raises(error, match=message):
            train(source, tmp_path / "run")
    with pytest.raises(ConfigError, match="Leave --size and --resize-mode out"):
        train(tiny_pack.path, tmp_path / "run", preprocessing=Preprocessing(48, 48))
    with pytest.raises(ConfigError, match="multiple of 128"):
        train(tiny_pack.path, tmp_path / "run", widths=(4,) * 6)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [48, "48", "48x32", (48, 32), [48, 32]])
def test_a_size_can_be_given_alone(
    size: int | str | tuple[int, int], photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = train(photos / "coast", tmp_path / "run", size=size, epochs=1, **tiny)
    expected = (48, 48 if size in (48, "48") else 32)
    packed = pack_folder(photos / "coast", tmp_path / "p", size=size)
    for made in (load_model(run.model_path).preprocessing, packed.preprocessing):
        assert (made.height, made.width) == expected


def test_a_size_that_cannot_be_used_is_rejected(photos: Path, tmp_path: Path) -> None:
    for size, message in ((100, "multiple of 16"), ("big", "not understood"), ((32,), "not understood")):
        with pytest.raises(ConfigError, match=message):
            train(photos, tmp_path / "run", size=size)
        with pytest.raises(ConfigError, match=message):
            pack_folder(photos, tmp_path / "p", size=size)
    with pytest.raises(ConfigError, match="Give either size=32 or preprocessing, not both"):
        train(photos, tmp_path / "run", size=32, preprocessing=Preprocessing(32, 32))
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_the_settings_is_said_before_what_is_in_the_folder(
    plain: Run, tiny_pack: Pack, photos: Path
) -> None:
    for source, wrong, message in (
        (tiny_pack.path, {"epochs": 0}, "epochs is 0"),
        (photos, {"size": 48, "widths": (4,) * 6}, "multiple of 128"),
        (photos, {"size": 32, "corrupt": ("downscale:33",)}, "the FACTOR is at most 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(source, plain.folder, **wrong)


def test_a_shift_by_more_than_half_of_the_images_is_rejected(tiny_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"more than half of images of 32 pixels\. Use 16 at most"):
        train(tiny_pack.path, tmp_path / "run", preset="paper-ae", widths=(4, 8), shift=17)


@pytest.mark.parametrize("count", [1, 2])
def test_batch_normalisation_of_a_single_value_is_never_asked_of_torch(
    count: int, photos: Path, tmp_path: Path
) -> None:
    """Ten or so images in batches that leave one over, and a deepest level of 1x1."""
    settings: dict[str, Any] = {
        "network": "residual",
        "widths": (4, 8, 8),
        "batch_norm": True,
        "code_size": 4,
    }
    pack = pack_folder(photos / "coast", tmp_path / "p", size=16)
    size = len(pack.rows("train")) - 1
    assert size > 1
    if count == 1:
        with pytest.raises(ConfigError, match="Batch normalisation has nothing to average over"):
            train(pack.path, tmp_path / "run", epochs=1, batch_size=1, **settings)
    else:
        run = train(pack.path, tmp_path / "run", epochs=1, batch_size=size, **settings)
        assert run.metrics[0]["step"] == 1


def test_a_size_that_does_not_fit_is_rejected_before_packing(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 128"):
        train(photos, tmp_path / "run", preprocessing=Preprocessing(48, 48), widths=(4,) * 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", ["paper", "residual"])
@pytest.mark.parametrize(
    "huge",
    [{"code_size": 10**18}, {"code_size": 10**13}, {"widths": (10**18,)}, {"widths": (10**9, 10**9)}],
    ids=str,
)
def test_a_network_that_no_memory_holds_is_rejected_before_packing(
    network: str, huge: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"code_size \d+ and widths [\d,]+ make a network of more than 1 TiB"
    ):
        train(photos, tmp_path / "run", size=32, network=network, **huge)
    assert list(tmp_path.iterdir()) == []


def test_very_few_images_train_too(
    photos: Path, tiny: dict[str, Any], tiny_size: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "coast" / "000.png", tmp_path / "one")
    run = train(tmp_path / "one", tmp_path / "run", preprocessing=tiny_size, epochs=2, kind="vae", **tiny)
    assert len(run.metrics) == 2


def test_a_full_disk_keeps_the_last_model_whole_and_the_run_goes_on_later(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    after_one_epoch: list[bytes] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:

        def fill() -> None:
            after_one_epoch.append((out / "model.safetensors").read_bytes())
            patch.setattr(atomic.os, "fsync", full)

        with pytest.raises(OutputError, match=r"model\.safetensors: No space left on device"):
            train(tiny_pack.path, out, progress=at_step(7, fill), epochs=3, **tiny)
    assert [(out / "model.safetensors").read_bytes()] == after_one_epoch
    assert not list(out.glob("*.partial"))
    load_model(out)
    assert_same(train(tiny_pack.path, out, resume=True), plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_model(
    value: float, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    good: list[str] = []
    original = objective.terms

    def broken(*arguments: object) -> Terms:
        found = original(*arguments)
        return found._replace(loss=found.loss * value)

    def break_it() -> None:
        good.append(digest(out / "model.safetensors"))
        monkeypatch.setattr(objective, "terms", broken)

    with pytest.raises(DivergedError) as caught:
        train(tiny_pack.path, out, progress=at_step(7, break_it), epochs=3, **tiny)
    message = str(caught.value)
    assert "no longer finite at epoch 2, step 3" in message
    assert f"The last good model, of epoch 1, is {out / 'model.safetensors'}" in message
    assert "lower learning rate (it was 0.002)" in message
    assert [digest(out / "model.safetensors")] == good
    load_model(out)


def test_a_run_that_diverged_in_its_first_epoch_leaves_its_folder_for_another_try(
    plain: Run, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original = objective.terms

    def broken(*arguments: object) -> Terms:
        found = original(*arguments)
        return found._replace(loss=found.loss * float("nan"))

    with monkeypatch.context() as patch, pytest.raises(DivergedError, match="Try again with a lower"):
        train(
            tiny_pack.path,
            out,
            checkpoint_every=1,
            progress=at_step(3, lambda: patch.setattr(objective, "terms", broken)),
            **tiny,
        )
    assert_same(train(tiny_pack.path, out, epochs=3, **tiny), plain)


def test_a_step_to_weights_that_are_not_finite_is_never_a_checkpoint(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original = loop.Loop._step

    def step(self: loop.Loop, *arguments: object) -> None:
        original(self, *arguments)
        if self.state.step == self.steps + 2:
            torch.nn.init.constant_(list(self.state.model.decoder.parameters())[-1], float("inf"))

    monkeypatch.setattr(loop.Loop, "_step", step)
    with pytest.raises(DivergedError, match=r"at epoch 2, step 2\. The last good model, of epoch 1"):
        train(tiny_pack.path, out, epochs=3, checkpoint_every=1, **tiny)
    monkeypatch.undo()
    assert len(train(tiny_pack.path, out, resume=True).metrics) == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_to_make_smaller_and_keeps_the_last_state(
    error: Exception,
    plain: Run,
    tiny: dict[str, Any],
    tiny_pack: Pack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
        train(
            tiny_pack.path,
            out,
            epochs=3,
            progress=at_step(7, lambda: patch.setattr(objective, "terms", fail)),
            **tiny,
        )
    message = str(caught.value)
    assert "There is not enough memory for batches of 8 images of 32x32." in message
    advice = "Continue with --resume --set accumulate=4, or start again in a new folder with a smaller"
    assert advice in message
    assert f"is kept in {out}" in message
    assert "\n" not in message
    assert_same(train(tiny_pack.path, out, resume=True), plain)


def test_too_little_memory_for_the_weights_is_not_blamed_on_the_batch(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loop, "initial_state", fail)
    with pytest.raises(ConfigError) as caught:
        train(tiny_pack.path, tmp_path / "run", **{**tiny, "code_size": 1_000_000})
    assert "memory to train" in str(caught.value)
    assert "Start again with a smaller code_size (it was 1000000) or smaller widths." in str(caught.value)
    assert "batch_size" not in str(caught.value)


def test_too_little_memory_from_the_start_does_not_block_the_folder(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r"batch_size or --size\.$"):
        patch.setattr(loop, "initial_state", fail)
        train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)
    train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)


def test_other_errors_of_torch_are_not_taken_for_too_little_memory(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(objective, "terms", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny_pack.path, tmp_path / "run", epochs=1, **tiny)


def test_weights_that_overflow_in_the_last_step_of_an_epoch_do_not_become_the_model(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = loop.Loop._step, []

    def step(self: loop.Loop, *arguments: object) -> None:
        original(self, *arguments)
        steps.append(1)
        if len(steps) == 2 * self.steps:
            # Infinite, yet the sigmoid makes a finite image and a finite loss of it.
            torch.nn.init.constant_(list(self.state.model.decoder.parameters())[-1], float("inf"))

    monkeypatch.setattr(loop.Loop, "_step", step)
    with pytest.raises(DivergedError, match=r"at epoch 2, step \d.* The last good model, of epoch 1"):
        train(tiny_pack.path, tmp_path / "run", epochs=3, **tiny)
    load_model(tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 1


def test_a_huge_learning_rate_ends_with_what_to_try(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    settings = tiny | {"kind": "vae", "sigma2": 0.001, "learning_rate": 1e12}
    with pytest.raises(DivergedError, match=r"there is no model yet\. .*larger sigma2"):
        train(tiny_pack.path, tmp_path / "run", **settings)


def test_settings_are_judged_by_the_size_of_a_pack_that_is_given(photos: Path, tmp_path: Path) -> None:
    """Eight levels need images of 256x256, twice the size a folder is packed at unless asked."""
    pack = pack_folder(photos, tmp_path / "pack", size=256)
    settings: dict[str, Any] = {
        "preset": "paper-ae",
        "widths": (2,) * 8,
        "code_size": 4,
        "batch_size": 16,
        "epochs": 1,
    }
    assert train(pack.path, tmp_path / "run", **settings).model_path.exists()
