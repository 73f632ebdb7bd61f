"""The perceptual phase: what it changes and what it leaves, stopped and resumed, and its distance."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoencode import (
    ConfigError,
    MissingExtraError,
    ModelFileError,
    Pack,
    Run,
    TrainProgress,
    find_outliers,
    load_model,
    save_model,
    settings,
    train,
)
from autoencode.data.loader import LocalBatch
from autoencode.models import efficientnet
from autoencode.models.backbones import BACKBONE
from autoencode.models.convolutions import ResidualDecoder
from autoencode.models.detail import Refinement
from autoencode.pixels import to_float
from autoencode.training import checkpoint, critic, loop, perceptual
from autoencode.training.config import TrainConfig
from autoencode.training.distributed import Processes
from autoencode.training.objective import Objective, Views
from autoencode.training.perceptual import (
    BLOCKS,
    LOSS_DB,
    STEP_IMAGES,
    begin,
    perceptual_distances,
)
from autoencode.training.runtime import choose_runtime
from autoencode.training.validation import validate_decoder

SETTINGS: dict[str, Any] = {"preset": "best", "widths": (4, 8), "code_size": 8, "batch_size": 8, "epochs": 2}


@pytest.fixture(scope="module", autouse=True)
def any_decoder_is_kept() -> Iterator[None]:
    """In the few steps of these runs a decoder learns too little to be closer than the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "FEW_IMAGES", 0)
        yield


@pytest.fixture(scope="module")
def sharp(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ten steps, and seven of the perceptual phase: an epoch and two steps of a second one."""
    out = tmp_path_factory.mktemp("sharp") / "run"
    return train(tiny_pack.path, out, perceptual=0.7, **SETTINGS)


@pytest.fixture(scope="module")
def plain(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_pack.path, tmp_path_factory.mktemp("plain") / "run", perceptual=0, **SETTINGS)


def validation_images(pack: Pack) -> torch.Tensor:
    return to_float(pack.pixels(pack.rows("validation")))


def interrupt_at(epoch: int, step: int) -> Any:  # noqa: ANN401
    def progress(at: TrainProgress) -> None:
        # Epochs of the phase are counted from 1 again.
        if (at.epoch + SETTINGS["epochs"] * bool(at.phase), at.step) == (epoch, step):
            signal.raise_signal(signal.SIGINT)

    return progress


def test_the_phase_changes_the_second_decoder_alone(sharp: Run, plain: Run) -> None:
    before, after = load_model(plain.model_path).state_dict(), load_model(sharp.model_path).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    added = after.keys() - before.keys() - {"sharp_decoder.detail"}
    refining = {name for name in added if name.startswith("sharp_decoder.refinement.")}
    assert after["sharp_decoder.refinement.last.weight"].abs().max() > 0  # where it began
    added -= refining
    assert {name.removeprefix("sharp_") for name in added} == {
        name for name in before if name.startswith("decoder.")
    }
    fine, coarse = after["sharp_decoder.detail"].tolist()
    assert 0 < coarse <= fine <= 1
    assert not torch.equal(after["sharp_decoder.out.weight"], after["decoder.out.weight"])


def test_a_decoder_that_takes_new_images_further_from_the_originals_is_left_out(
    plain: Run, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "FEW_IMAGES", 300)
    images, runtime = validation_images(tiny_pack), choose_runtime("cpu", "fp32")
    model = load_model(plain.model_path)
    phase, objective = begin(model, 3, 4, runtime), Objective(TrainConfig(), runtime, 1, 1)
    local = LocalBatch(0, len(images), len(images), len(images))

    def validated(train_images: int) -> dict[str, float]:
        batches = [(images, local)]
        counts = len(images), train_images
        return validate_decoder(phase, objective, lambda: batches, *counts, Processes())

    faithful = model.reconstruct(images, "faithful")
    expected = perceptual_distances(faithful, images).mean().item()
    for worse, blend in ((True, torch.rand(images.shape)), (False, images)):
        added = 0.2 * (blend - faithful)
        monkeypatch.setattr(phase.decoder, "forward", lambda codes, added=added: model.decoder(codes) + added)
        found = validated(train_images=300)
        assert found["val_faithful_perceptual"] == pytest.approx(expected, rel=1e-4)
        assert (found["val_perceptual"] > found["val_faithful_perceptual"]) == worse
        assert (phase.model.sharp_decoder is None) == worse == (not found["sharp_is_kept"])
        assert validated(train_images=301)["sharp_is_kept"]  # many images are not learnt by heart
        assert phase.model.sharp_decoder is phase.decoder


@pytest.mark.parametrize("score", ["spectrum", "path", "mahalanobis", "knn"])
def test_outliers_and_neighbours_are_those_of_a_run_without_the_phase(
    score: str, sharp: Run, plain: Run, photos: Path, tiny_pack: Pack
) -> None:
    found = [
        find_outliers(run.model_path, photos, tiny_pack, score=score, fpr=0.3).images
        for run in (sharp, plain)
    ]
    ours, theirs = ({one.path: one.score for one in images} for images in found)
    assert ours == theirs
    assert len(set(ours.values())) > 40
    codes = [load_model(run.model_path).encode(validation_images(tiny_pack)) for run in (sharp, plain)]
    assert torch.equal(*codes)


def test_gradients_reach_the_second_decoder_alone(tiny_pack: Pack, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watched(Exception):
        pass

    def stop(at: TrainProgress) -> None:
        if at.phase:
            raise Watched

    original = loop.start_perceptual

    def start(*arguments: Any) -> Any:  # noqa: ANN401
        seen.append(original(*arguments))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "start_perceptual", start)
        with pytest.raises(Watched):
            train(tiny_pack.path, tmp_path / "run", perceptual=0.7, progress=stop, **SETTINGS)
    [phase] = seen
    with_gradient = {name for name, weight in phase.model.named_parameters() if weight.grad is not None}
    assert with_gradient == {f"sharp_decoder.{name}" for name, _ in phase.decoder.named_parameters()}
    assert all(weight.grad is None for weight in BACKBONE.network.parameters())


def test_a_step_follows_the_sum_of_its_terms(
    plain: Run, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "_changed", lambda images, *_: [images.clone()])
    # In fp32: rounding to bf16 would hide an error of some hundredths.
    monkeypatch.setattr(BACKBONE, "fast", lambda _: BACKBONE.network)
    model, images = load_model(plain.model_path), validation_images(tiny_pack)[:4]
    phase = begin(model, 3, 4, choose_runtime("cpu", "fp32"))
    phase.scale = 0.7
    assert isinstance(phase.decoder.refinement, Refinement)
    nn.init.normal_(phase.decoder.refinement.last.weight, std=0.05)  # or no gradient passes it
    [judge] = copy.deepcopy(phase.critic.network)
    for optimizer in (phase.optimizer, phase.critic.optimizer):
        monkeypatch.setattr(optimizer, "step", lambda: None)
    local, views = LocalBatch(0, 4, 4, 4), Views(images, images, None)
    measured = phase._step(lambda: [(views, local)], 50, 100, Processes())

    decoder = phase.decoder
    found = {name: weight.grad for name, weight in decoder.named_parameters()}
    codes = model.encode(images).clone()
    restored, mixed = decoder(codes), decoder(critic.between(codes, 50, 3))
    error = functional.mse_loss(restored, images)
    distance = perceptual_distances(restored, images).mean()
    rest, pull = error + 0.7 * distance, -judge(2 * torch.cat([restored, mixed]) - 1).mean()
    weights = list(decoder.parameters())
    by_rest, by_pull = (torch.autograd.grad(term, weights, retain_graph=True) for term in (rest, pull))
    last = [id(weight) for weight in weights].index(id(decoder.last_weight))
    weight = critic.RATIO * by_rest[last].norm() / by_pull[last].norm()
    for name, one, other in zip(found, by_rest, by_pull, strict=True):
        expected = one + weight * other
        assert (found[name] - expected).norm() <= 1e-2 * expected.norm(), name
    assert measured[:3].tolist() == pytest.approx(
        [4 * rest.item(), 4 * error.item(), 4 * distance.item()], rel=1e-2
    )


def test_each_step_compares_large_images_at_another_scale(
    plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[torch.Tensor] = []

    def distances(ours: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        compared.append(ours)
        return ours.new_zeros(len(ours))

    monkeypatch.setattr(perceptual, "perceptual_distances", distances)
    phase = begin(load_model(plain.model_path), 3, 4, choose_runtime("cpu", "fp32"))
    images, local = torch.rand(2, 3, 256, 300), LocalBatch(0, 2, 2, 2)
    for step in range(6):
        phase._terms(images, images, local, step)
    assert all(one.shape == (2, 3, 112, 112) for one in compared)
    smallest = functional.interpolate(functional.avg_pool2d(images, 4), (112, 131), mode="bilinear")
    wanted = [one.std().item() for one in (images, functional.avg_pool2d(images, 2), smallest)]
    assert [one.std().item() for one in compared] == pytest.approx(2 * wanted, rel=0.05)


def test_a_batch_is_learnt_in_steps_of_at_most_so_many_images(sharp: Run) -> None:
    seen: list[tuple[int, int, list[int]]] = []

    def parts(images: torch.Tensor, local: LocalBatch, step: int) -> Any:  # noqa: ANN401
        seen.append((step, local.batch_size, images.flatten().int().tolist()))
        raise StopIteration

    phase = begin(load_model(sharp.model_path), 3, 2 * STEP_IMAGES, choose_runtime("cpu", "fp32"))
    phase.step = 5
    images = torch.arange(2 * STEP_IMAGES).float()[:, None]
    local = LocalBatch(0, len(images), len(images), len(images))

    def step(parts: Any, number: int, steps: int, _: Any) -> torch.Tensor:  # noqa: ANN401
        assert steps == 14
        with pytest.raises(StopIteration):
            parts()
        return torch.full((4,), float(number), dtype=torch.float64)

    phase._step = step  # type: ignore[method-assign]
    sums = phase.learn(images, local, parts, 7, Processes())
    evens, odds = list(range(0, 2 * STEP_IMAGES, 2)), list(range(1, 2 * STEP_IMAGES, 2))
    assert seen == [(10, STEP_IMAGES, evens), (11, STEP_IMAGES, odds)]
    assert sums.tolist() == [21.0] * 4
    assert phase.step == 6


def test_its_epochs_have_lines_of_their_own(sharp: Run, plain: Run) -> None:
    first = [{k: v for k, v in one.items() if k.startswith(("train_", "val_"))} for one in plain.metrics]
    assert [{k: one[k] for k in first[0]} for one in sharp.metrics[:2]] == first
    later = sharp.metrics[2:]
    assert [(one["epoch"], one["step"]) for one in later] == [(3, 15), (4, 17)]
    assert all("val_loss" not in one for one in later)
    assert later[-1]["val_perceptual"] < later[0]["train_perceptual"]
    kept = load_model(sharp.model_path).provenance["metrics"]
    assert kept["val_loss"] == plain.metrics[-1]["val_loss"]
    assert kept["val_perceptual"] == later[-1]["val_perceptual"]


def test_the_numbers_of_a_line_are_those_of_the_saved_decoder(sharp: Run, tiny_pack: Pack) -> None:
    model = load_model(sharp.model_path)
    images = validation_images(tiny_pack)
    decoded = model.reconstruct(images)
    last = sharp.metrics[-1]
    assert last["val_sharp_mse"] == pytest.approx((decoded - images).square().mean().item(), rel=1e-2)
    distance = perceptual_distances(decoded, images).mean().item()
    assert last["val_perceptual"] == pytest.approx(distance, rel=1e-2)
    faithful = model.reconstruct(images, "faithful")
    assert (faithful - images).square().mean() == pytest.approx(sharp.metrics[1]["val_mse"], rel=1e-2)


@pytest.mark.parametrize(("epoch", "step"), [(2, 5), (3, 2), (3, 5), (4, 1)])
def test_a_run_stopped_in_the_phase_or_before_it_continues_with_the_same_bytes(
    sharp: Run, tiny_pack: Pack, tmp_path: Path, epoch: int, step: int
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_pack.path, out, perceptual=0.7, progress=interrupt_at(epoch, step), **SETTINGS)
    assert load_model(out).decode(torch.zeros(1, 8)).shape == (1, 3, 32, 32)  # usable as it is
    run = train(tiny_pack.path, out, resume=True)
    assert run.model_path.read_bytes() == sharp.model_path.read_bytes()
    assert [one["step"] for one in run.metrics] == [one["step"] for one in sharp.metrics]
    assert train(tiny_pack.path, out, resume=True).metrics == run.metrics  # finished: nothing is done


def test_a_run_of_a_version_without_refinement_is_continued_without(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "start_perceptual", partial(checkpoint.start_perceptual, is_refined=False))
        with pytest.raises(KeyboardInterrupt):
            interrupt = interrupt_at(3, 2)
            train(tiny_pack.path, tmp_path / "run", perceptual=0.7, progress=interrupt, **SETTINGS)
    train(tiny_pack.path, tmp_path / "run", resume=True)
    decoder = load_model(tmp_path / "run").sharp_decoder
    assert decoder is not None
    assert decoder.refinement is None
    train(tiny_pack.path, tmp_path / "run", resume=True, epochs=3)
    decoder = load_model(tmp_path / "run").sharp_decoder
    assert decoder is not None
    assert decoder.refinement is not None


def test_more_epochs_learn_the_second_decoder_anew(sharp: Run, tiny_pack: Pack, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny_pack.path, out, perceptual=0.7, **SETTINGS)
    run = train(tiny_pack.path, out, resume=True, epochs=3)
    assert [(one["epoch"], "val_loss" in one) for one in run.metrics] == [
        (1, True),
        (2, True),
        (3, True),
        (4, False),
        (5, False),
        (6, False),
    ]
    weight = "sharp_decoder.out.weight"
    states = [load_model(one.model_path).state_dict()[weight] for one in (run, sharp)]
    assert not torch.equal(*states)


def test_after_early_stopping_the_phase_starts_from_the_best_epoch(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0])
    validate = loop.Loop._validate

    def worse(self: loop.Loop) -> dict[str, float]:
        found = validate(self)
        return found | {"val_loss": next(losses)} if "val_loss" in found else found

    monkeypatch.setattr(loop.Loop, "_validate", worse)
    changed = SETTINGS | {"epochs": 10}
    run = train(tiny_pack.path, tmp_path / "run", perceptual=0.1, early_stopping=2, **changed)
    assert [one["epoch"] for one in run.metrics] == [1, 2, 3, 4, 5]
    model = load_model(run.model_path)
    assert model.provenance["metrics"]["val_mse"] == run.metrics[1]["val_mse"]
    images = validation_images(tiny_pack)
    error = (model.reconstruct(images, "faithful") - images).square().mean()
    assert error == pytest.approx(run.metrics[1]["val_mse"], rel=1e-2)


@pytest.mark.parametrize(
    ("noise", "shift", "fine_first"), [(0, 0, None), (0.01, 0, None), (2, 0, True), (0.01, 0.6, False)]
)
def test_as_much_detail_is_drawn_as_the_loss_of_psnr_allows(
    plain: Run,
    tiny_pack: Pack,
    noise: float,
    shift: float,
    fine_first: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = load_model(plain.model_path), validation_images(tiny_pack)
    model.sharp_decoder = copy.deepcopy(model.decoder)
    model.sharp_decoder.detail = torch.ones(2)
    monkeypatch.setattr(torch.Tensor, "clamp", lambda values, *_: values)  # or the quadratic is not exact
    codes = model.encode(images)
    missing = (model.images_of(codes, "faithful") - images).square().mean().sqrt()
    added = missing * (shift + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(
        model.sharp_decoder, "forward", lambda codes: model.decoder(codes) + added[: len(codes)]
    )
    phase = begin(model, 3, 4, choose_runtime("cpu", "fp32"))
    phase.model, phase.decoder = model, model.sharp_decoder
    phase.choose_detail(phase.detail_terms(Views(images, images, None)))

    faithful, sharp = (
        (model.images_of(codes, decoder) - images).square().flatten(1).mean(1)
        for decoder in ("faithful", "sharp")
    )
    ratios = (sharp / faithful).double()
    lost_db = 10 * math.log10(ratios.mean())
    assert 10 * ratios.log10().mean() <= lost_db + 1e-6  # of the mean PSNR
    fine, coarse = model.sharp_decoder.detail.tolist()
    if fine_first is None:  # all of it costs less than that
        assert (fine, coarse) == (1, 1)
        assert lost_db < LOSS_DB
        return
    assert lost_db == pytest.approx(LOSS_DB, abs=1e-3)
    if fine_first:
        assert 0 < fine < 1
        assert coarse == pytest.approx(0.3 * fine)
    else:  # what is fine costs little: the rest of the loss is left to what is coarse
        assert fine == 1
        assert 0.3 < coarse < 1


def test_detail_that_lowers_the_error_is_drawn_whole(plain: Run) -> None:
    phase = begin(load_model(plain.model_path), 3, 4, choose_runtime("cpu", "fp32"))
    for known, expected in ((5.0, [1.0, 1.0]), (-50.0, [0.0, 0.0])):
        terms = [[1.0, known, known], [known, 1.0, 0.0], [known, 0.0, 1.0]]
        phase.choose_detail(torch.tensor(terms, dtype=torch.float64))
        assert phase.decoder.detail is not None
        assert phase.decoder.detail.tolist() == pytest.approx(expected, abs=2e-3)


def test_a_distance_has_a_gradient_also_where_validation_asked_for_that_size_first() -> None:
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        perceptual_distances(images, images)
    changed = (0.9 * images).requires_grad_()
    perceptual_distances(changed, images).sum().backward()
    assert changed.grad is not None
    assert changed.grad.abs().sum() > 0


def test_the_distance_is_equation_1_of_zhang_et_al(tiny_pack: Pack) -> None:
    images = functional.interpolate(validation_images(tiny_pack)[:3], (112, 112), mode="bilinear")
    other = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = torch.zeros(3)
    for mine, theirs in zip(
        BACKBONE.network.feature_maps(other, BLOCKS),
        BACKBONE.network.feature_maps(images, BLOCKS),
        strict=True,
    ):
        for image in range(3):
            places = [
                (mine[image, :, y, x] / mine[image, :, y, x].norm())
                .sub(theirs[image, :, y, x] / theirs[image, :, y, x].norm())
                .square()
                .sum()
                for y in range(0, mine.shape[2])
                for x in range(0, mine.shape[3])
            ]
            expected[image] += torch.stack(places).mean() / len(BLOCKS)
    # In bf16, where the hardware has it.
    torch.testing.assert_close(perceptual_distances(other, images), expected, rtol=2e-2, atol=1e-3)
    assert perceptual_distances(images, images).abs().max() < 1e-4


def test_decode_takes_the_sharp_decoder_unless_asked_for_the_faithful_one(sharp: Run, plain: Run) -> None:
    model, one = load_model(sharp.model_path), load_model(plain.model_path)
    codes = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(codes, "faithful"), one.decode(codes))
    assert torch.equal(one.decode(codes, "sharp"), one.decode(codes))  # it has but one
    assert not torch.equal(model.decode(codes), one.decode(codes))
    with pytest.raises(ConfigError, match="decoder"):
        model.decode(codes, "soft")  # type: ignore[arg-type]


def test_a_model_file_keeps_both_decoders(sharp: Run, tmp_path: Path) -> None:
    model = load_model(sharp.model_path)
    save_model(tmp_path / "model.safetensors", model, model.provenance)
    again = load_model(tmp_path / "model.safetensors")
    codes = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.decode(codes), model.decode(codes))
    assert isinstance(model.sharp_decoder, ResidualDecoder)
    model.sharp_decoder.out = nn.Conv2d(4, 3, 3)
    save_model(tmp_path / "model.safetensors", model, model.provenance)
    with pytest.raises(ModelFileError, match="does not hold a usable model"):
        load_model(tmp_path / "model.safetensors")


def test_without_the_weights_the_default_leaves_it_out_and_says_so(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda _: None)
    said: list[str] = []
    run = train(tiny_pack.path, tmp_path / "run", chosen=said.append, **(SETTINGS | {"epochs": 1}))
    assert load_model(run.model_path).sharp_decoder is None
    assert "no sharp decoder" in said[0]


def test_asked_for_without_the_weights_it_is_an_error(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install"):
        train(tiny_pack.path, tmp_path / "run", perceptual=0.5, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "restore", "perceptual": 0.2}, "restorer"),
        ({"batch_norm": True, "perceptual": 0.2}, "batch_norm"),
        ({"preset": "best-vae", "adversarial": True, "perceptual": 0.2}, "adversarial"),
        ({"perceptual": -1}, "at least 0"),
    ],
)
def test_what_cannot_go_with_it_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_the_default_gives_way_to_what_cannot_go_with_it() -> None:
    assert settings("best")[1].perceptual > 0
    assert settings("best", batch_norm=True)[1].perceptual == 0
    assert settings("best-vae", adversarial=True)[1].perceptual == 0
    assert settings("paper-ae")[1].perceptual == TrainConfig().perceptual == 0
