"""Advice on a run that learns nothing, and events for TensorBoard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from autoencode import Pack, TrainConfig, TrainProgress, train
from autoencode.training.progress import advice, constant_image_mse, epochs_in_words, has_ended
from autoencode.training.run import RunSettings


def lines(
    val_losses: list[float], train_losses: list[float] | None = None, **more: float
) -> list[dict[str, float]]:
    train_losses = train_losses or val_losses
    return [
        {"epoch": epoch, "step": 10 * epoch, "val_loss": loss, "val_mse": loss, "train_loss": trained, **more}
        for epoch, (loss, trained) in enumerate(zip(val_losses, train_losses, strict=True), start=1)
    ]


def run_of(extended_at: int = 0, **settings: Any) -> RunSettings:  # noqa: ANN401
    return cast(RunSettings, SimpleNamespace(train=TrainConfig(**settings), extended_at=extended_at))


def advice_on(records: list[dict[str, float]], constant: float = 1.0, **settings: Any) -> str:  # noqa: ANN401
    return advice(records, TrainConfig(**settings), lambda: constant) or ""


def test_a_run_that_gets_better_is_left_alone() -> None:
    for epochs in range(1, 11):
        assert advice_on(lines([0.9**epoch for epoch in range(epochs)]), constant=2.0) == ""


def test_a_third_of_the_epochs_without_progress_is_too_long() -> None:
    losses = [0.5, 0.4, 0.41, 0.42, 0.4, 0.43]
    assert advice_on(lines(losses[:5]), epochs=12) == ""
    message = advice_on(lines(losses), epochs=12, learning_rate=0.5)
    assert "not improved for 4 epochs, since epoch 2" in message
    assert "lower learning rate (it is 0.5)" in message
    assert advice_on(lines(losses), epochs=30) == ""


def test_three_epochs_are_waited_for_in_the_shortest_run() -> None:
    assert advice_on(lines([0.5, 0.6, 0.6]), epochs=4) == ""
    assert "for 3 epochs" in advice_on(lines([0.5, 0.6, 0.6, 0.6]), epochs=4)


def test_learning_by_heart_asks_for_other_things_than_a_lower_rate() -> None:
    message = advice_on(lines([0.5, 0.6, 0.6, 0.6], [0.5, 0.4, 0.3, 0.2]), epochs=4)
    assert "fewer epochs, or more images" in message
    learnt_by_heart = lines([0.5, 0.6, 0.6, 0.6], [0.5, 0.4, 0.3, 0.2])
    assert advice_on(learnt_by_heart, epochs=4, early_stopping=3) == "", "the best epoch is kept anyway"
    assert "lower learning rate" in advice_on(lines([0.5, 0.6, 0.6, 0.6]), epochs=4, early_stopping=3)
    assert "learning rate" not in message


def test_a_model_no_better_than_a_constant_image_is_named_with_both_numbers() -> None:
    falling = [0.9, 0.8, 0.7]
    assert advice_on(lines(falling[:2]), constant=0.1) == ""
    message = advice_on(lines(falling), constant=0.1, epochs=3)
    assert "no better than one constant image" in message
    assert "0.70000, of the mean image 0.10000" in message
    assert "sigma2" not in message
    vae = lines(falling, val_kl=0.0)
    assert "a smaller sigma2" in advice_on(vae, constant=0.1, epochs=3, loss="gaussian")
    assert "a smaller beta" in advice_on(vae, constant=0.1, epochs=3, loss="mae")


def test_losses_under_another_weight_of_the_kl_are_not_compared() -> None:
    records = lines([0.1, 0.2, 0.3, 0.4], val_kl=1.0)
    for index, record in enumerate(records):
        record["beta"] = index / 4
    assert advice_on(records, epochs=4) == ""


def test_the_epochs_of_a_run_are_said_in_the_numbers_that_were_asked_for() -> None:
    settings: dict[str, Any] = {"epochs": 20, "early_stopping": 3, "perceptual": 0.1}
    run, records = run_of(**settings), lines([0.3, 0.1, 0.2, 0.2, 0.2])
    sharp = {"epoch": 6.0, "step": 60.0, "val_perceptual": 1.0}
    assert epochs_in_words(run, [*records, sharp]) == (
        "5 of 20, as the last 3 brought nothing better; the model is of epoch 2; "
        "then 1 of 2 of the sharp decoder"
    )
    assert epochs_in_words(run, [*records, sharp, sharp]).endswith("; then 2 of the sharp decoder")
    for is_kept in (0.0, 1.0):
        last = sharp | {"sharp_is_kept": is_kept}
        assert ("left out" in epochs_in_words(run, [*records, sharp, last])) == (not is_kept)
    assert epochs_in_words(run, records[:3]) == "3 of 20; the model is of epoch 2"
    assert epochs_in_words(run_of(**settings | {"early_stopping": 0}), records[:3]) == "3 of 20"
    assert epochs_in_words(run, []) == "0 of 20"
    assert epochs_in_words(run_of(extended_at=40, **settings), records) == "5 of 20; the model is of epoch 2"


def test_a_run_has_ended_after_its_epochs_or_its_patience_and_those_of_the_sharp_decoder() -> None:
    records, sharp = lines([0.5, 0.4, 0.41, 0.42, 0.43]), [{"val_perceptual": 1.0}] * 2
    run = run_of(epochs=5, early_stopping=3, perceptual=0.4)
    assert has_ended(run, records + sharp)
    assert not has_ended(run, records + sharp[:1])
    assert not has_ended(run, records[:4])
    # Patience ended it after four of ten epochs; the sharp decoder gets its share of ten.
    patient: dict[str, Any] = {"epochs": 10, "early_stopping": 2}
    assert has_ended(run_of(**patient), records[:4])
    assert not has_ended(run_of(**patient), records[:3])
    assert has_ended(run_of(perceptual=0.4, **patient), records[:4] + sharp * 2)
    assert not has_ended(run_of(perceptual=0.4, **patient), [])
    # Extended after those four, it was interrupted one epoch later.
    assert not has_ended(run_of(extended_at=40, **patient), records)


def test_the_constant_image_is_the_mean_of_the_training_images(tiny_pack: Pack) -> None:
    training, validation = (tiny_pack.pixels(tiny_pack.rows(s)) / 255 for s in ("train", "validation"))
    expected = ((validation - training.mean(axis=0)) ** 2).mean()
    found = constant_image_mse(tiny_pack, tiny_pack.rows("train"), tiny_pack.rows("validation"))
    assert found == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(found)


def test_a_far_too_high_learning_rate_is_said_once_and_the_run_goes_on(
    tiny: dict[str, Any],
    tiny_pack: Pack,
    tmp_path: Any,  # noqa: ANN401
) -> None:
    seen: list[TrainProgress] = []
    train(tiny_pack.path, tmp_path / "run", epochs=4, learning_rate=1e6, progress=seen.append, **tiny)
    warnings = [(at.epoch, at.warning) for at in seen if at.warning]
    assert [epoch for epoch, _ in warnings] == [3]
    assert "lower learning rate (it is 1e+06)" in str(warnings[0][1])


def test_a_learned_variance_far_below_the_validation_error_is_reported_at_once() -> None:
    vae = lines([0.01], val_kl=9.0, sigma2=0.002)
    message = advice_on(vae, loss="gaussian", sigma2="auto")
    assert "Validation mse 0.01000 is far above sigma2 0.00200" in message
    assert "smaller code_size" in message
    assert advice_on(lines([0.01], val_kl=9.0, sigma2=0.003), loss="gaussian", sigma2="auto") == ""
    assert advice_on(vae, loss="gaussian", sigma2=0.002) == ""
    assert advice_on(lines([0.01], sigma2=0.002)) == ""
