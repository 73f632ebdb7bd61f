"""Without options, the images decide how a model is trained; a run can be extended or ended early."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import blobs

from autoencode import ConfigError, Pack, Run, RunError, load_model, load_restorer, pack_folder, train
from autoencode.training import loop, presets
from autoencode.training.run import read_metrics, read_run

SMALL: dict[str, Any] = {"widths": (4, 8), "epochs": 1}


def write(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Write an image of each (width, height)."""
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        Image.fromarray(blobs(number, height, width)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 20, (32, 32, "crop")),
        ([(100, 500)] * 20, (288, 64, "stretch")),  # of one shape: nothing is cut off
        ([(400, 300), (300, 400)] * 10, (128, 128, "crop")),  # of photographs a quarter, at the edges
        ([(600, 100), (100, 600)] * 10, (128, 128, "pad")),  # a crop would lose five sixths
    ],
)
def test_the_size_and_how_images_come_to_it_suit_the_folder(
    sizes: list[tuple[int, int]], expected: tuple[int, int, str], tmp_path: Path
) -> None:
    made = pack_folder(write(tmp_path / "images", sizes), tmp_path / "pack").preprocessing
    assert (made.height, made.width, made.resize_mode) == expected


def test_a_size_that_is_asked_for_is_kept_and_the_resize_mode_suits_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", [(60, 240)] * 10)
    made = pack_folder(folder, tmp_path / "pack", size=32).preprocessing
    assert (made.height, made.width, made.resize_mode) == (32, 32, "pad")
    again = pack_folder(folder, tmp_path / "pack")  # updated as it was made
    assert again.preprocessing == made
    asked = {"resize_mode": "crop", "height": 64, "width": 16}
    assert pack_folder(folder, tmp_path / "other", asked).preprocessing.resize_mode == "crop"


def test_train_without_options_takes_the_best_preset_and_says_what_the_images_decided(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    run = train(photos, chosen=said.append, **SMALL)
    assert run.folder == Path("runs") / "photos"
    model = load_model(run.model_path)
    assert model.config.network == "residual"
    images = len(pack_folder(photos, run.pack_path).rows("train"))
    # In sixteens, no more than images: a linear code of 256 dimensions needs as many.
    assert model.config.code_size == max(16, images // 16 * 16) < 256
    (line,) = said
    assert line.startswith("48x48 (crop): images of 40-46x36-40 pixels, width by height")
    assert line.endswith(f"code {model.config.code_size}: {images} training images")
    assert read_run(run.folder).chosen == line


def test_a_small_folder_gets_enough_steps_and_a_preset_of_the_paper_keeps_its_numbers(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Loop, "run", lambda *_: None)  # the settings alone
    train(tiny_pack.path, tmp_path / "best", widths=(4, 8))
    train(tiny_pack.path, tmp_path / "paper", preset="paper-ae", widths=(4, 8))
    best, paper = read_run(tmp_path / "best"), read_run(tmp_path / "paper")
    steps = math.ceil(len(tiny_pack.rows("train")) / best.train.batch_size)
    assert 1000 <= best.train.epochs * steps < 1000 + steps or best.train.epochs == 200
    assert (paper.train.epochs, paper.model.code_size, paper.chosen) == (10, 256, "")
    # So many that the last need not be the best one; which is kept.
    assert best.train.early_stopping == 25 < best.train.epochs / 3
    assert f"{best.train.epochs} epochs at most" in best.chosen
    assert paper.train.early_stopping == 0
    train(tiny_pack.path, tmp_path / "asked", widths=(4, 8), early_stopping=0)
    assert read_run(tmp_path / "asked").train.early_stopping == 0


@pytest.mark.parametrize(
    ("size", "images", "steps", "batches"),
    [
        (32, 200, 1000, 200),  # about 80 s of a processor for both phases, and 120 s at 64 pixels
        (64, 300, 1000, 200),
        (128, 300, 500, 100),  # 200 s: two minutes on two cores
        (128, 32, 200, 100),  # no more than 200 epochs
        (64, 600, 1800, 389),  # more steps help more images for longer
        (128, 650, 975, 210),
        (64, 1500, 3000, 640),  # a critic has to learn first
        (256, 1500, 750, 320),
        (256, 650, 487, 160),
        (128, 16_000, 5000, 625),  # ten epochs, and an eighth
    ],
)
def test_a_first_try_with_few_images_ends_in_two_minutes_and_more_get_more_steps(
    size: int, images: int, steps: int, batches: int, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = replace(tiny_pack.preprocessing, height=size, width=size)
    pack = cast(Pack, SimpleNamespace(preprocessing=preprocessing, training_rows=lambda: range(images)))
    _, config, _ = presets.adapted("best", *presets.settings(), pack, ())
    taken = config.epochs * math.ceil(images / config.batch_size)
    assert steps <= taken < 1.05 * steps
    assert config.perceptual_steps(taken) == pytest.approx(batches, rel=0.02)


def test_a_run_with_a_cosine_is_extended_by_another_cosine(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    cosine = tiny | {"schedule": "cosine"}
    train(tiny_pack.path, tmp_path / "run", epochs=2, **cosine)
    extended = train(tiny_pack.path, tmp_path / "run", resume=True, epochs=4)
    rates = [record["learning_rate"] for record in extended.metrics]
    assert len(rates) == 4
    assert rates[1] == rates[3] == 0  # each ends where the rate is 0
    assert rates[2] > 0
    # The same, killed on the way: what the extension does depends on where it began alone.
    train(tiny_pack.path, tmp_path / "other", epochs=2, **cosine)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_pack.path, tmp_path / "other", resume=True, epochs=4, progress=_interrupt_in_epoch(3))
    again = train(tiny_pack.path, tmp_path / "other", resume=True)
    assert again.model_path.read_bytes() == extended.model_path.read_bytes()


def _interrupt_in_epoch(number: int) -> Any:  # noqa: ANN401
    import signal

    def progress(at: Any) -> None:  # noqa: ANN401
        if at.epoch == number and at.step == 2 and at.record is None:
            signal.raise_signal(signal.SIGINT)

    return progress


def test_early_stopping_ends_a_run_and_keeps_its_best_epoch(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0])
    validate = loop.Loop._validate
    monkeypatch.setattr(loop.Loop, "_validate", lambda self: validate(self) | {"val_loss": next(losses)})
    run = train(tiny_pack.path, tmp_path / "run", epochs=50, early_stopping=3, **tiny)
    assert [record["val_loss"] for record in run.metrics] == [3, 1, 2, 2, 2]
    assert load_model(run.model_path).provenance["epoch"] == 2
    # Finished: continued, it does nothing; with more epochs it has patience again.
    assert len(train(tiny_pack.path, tmp_path / "run", resume=True).metrics) == 5
    more = train(tiny_pack.path, tmp_path / "run", resume=True, epochs=51)
    assert [record["val_loss"] for record in more.metrics[5:]] == [0.5, 2, 2, 2]
    assert load_model(run.model_path).provenance["epoch"] == 6


def test_a_run_can_start_from_a_model(
    trained: Run, tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_model(trained.model_path)
    steps = {"learning_rate": 1e-12, "epochs": 1, "batch_size": 64}
    run = train(tiny_pack.path, tmp_path / "run", init=trained.folder, **steps)
    after = load_model(run.model_path)
    assert after.config == before.config  # its network, although the default preset has another
    assert after.sharp_decoder is not None
    after.sharp_decoder = None
    for name, weight in after.state_dict().items():
        np.testing.assert_allclose(weight, before.state_dict()[name], atol=1e-5)
    with pytest.raises(ConfigError, match=r"has code_size 8, not 9\. Leave it"):
        train(tiny_pack.path, tmp_path / "other", init=trained.folder, code_size=9)
    with pytest.raises(ConfigError, match="has height 32, not 48"):
        train(tiny_pack.path, tmp_path / "other", init=trained.folder, size=48)
    with pytest.raises(RunError, match="Leave --init out"):
        train(tiny_pack.path, tmp_path / "run", init="random", resume=True)
    assert read_metrics(tmp_path / "other") == []


def test_a_restorer_starts_from_the_one_in_the_package_unless_its_network_is_another(
    tiny_pack: Pack, tmp_path: Path
) -> None:
    steps = {"preset": "restore", "epochs": 1, "patch": 16, "batch_size": 64, "learning_rate": 1e-12}
    told: list[str] = []
    run = train(tiny_pack.path, tmp_path / "run", chosen=told.append, **steps)
    assert "starts from the bundled restorer" in told[0]
    assert read_run(run.folder).init == "bundled"
    assert read_run(run.folder).train.learning_rate == 1e-12
    package = load_restorer().state_dict()
    for name, weight in load_restorer(run.folder).state_dict().items():
        torch.testing.assert_close(weight, package[name], atol=1e-5, rtol=0)
    for name, other in {"random": {"init": "random"}, "small": {"widths": (4, 6)}}.items():
        run = train(tiny_pack.path, tmp_path / name, **steps, **other)
        assert read_run(run.folder).init == "random"
        first = load_restorer(run.folder).net.first.weight
        assert first.shape != package["net.first.weight"].shape or (
            (first - package["net.first.weight"]).abs().max() > 0.01
        )


@pytest.mark.parametrize("self_supervised", [False, True])
def test_a_restorer_that_starts_from_one_takes_smaller_steps(
    tiny_pack: Pack, tmp_path: Path, self_supervised: bool
) -> None:
    steps = {"preset": "restore", "epochs": 1, "widths": (4, 6), "patch": 16}
    first = train(tiny_pack.path, tmp_path / "first", self_supervised=self_supervised, **steps)
    del steps["widths"]
    second = train(
        tiny_pack.path, tmp_path / "second", init=first.folder, self_supervised=self_supervised, **steps
    )
    rates = [read_run(run.folder).train.learning_rate for run in (first, second)]
    assert rates == [0.01 if self_supervised else 0.02, 0.005]


@pytest.mark.parametrize(
    "other",
    [
        {"patch": 16},
        {"patch": 16, "self_supervised": True},
        {"patch": 16, "corrupt": ("downscale:2",)},
        {"patch": 16, "init": "random"},
        {"patch": 16, "init": "bundled"},
    ],
)
def test_a_restorer_goes_on_by_the_arguments_it_was_started_with(
    tiny_pack: Pack, tmp_path: Path, other: dict[str, Any]
) -> None:
    arguments = {"preset": "restore", "epochs": 1, "batch_size": 64} | other
    train(tiny_pack.path, tmp_path / "run", **arguments)
    assert len(train(tiny_pack.path, tmp_path / "run", resume=True, **arguments | {"epochs": 2}).metrics) == 2


def test_a_run_that_started_from_a_model_goes_on_by_its_arguments(tiny_pack: Pack, tmp_path: Path) -> None:
    first = train(tiny_pack.path, tmp_path / "first", preset="restore", epochs=1, widths=(4, 6), patch=16)
    arguments = {"preset": "restore", "epochs": 1, "patch": 16, "init": first.folder}
    train(tiny_pack.path, tmp_path / "run", **arguments)
    with pytest.raises(RunError, match="learning_rate"):
        train(tiny_pack.path, tmp_path / "run", resume=True, **arguments, learning_rate=0.02)
    assert len(train(tiny_pack.path, tmp_path / "run", resume=True, **arguments).metrics) == 1
