"""What one epoch measures and how one step is taken, against the same computed by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.training.test_capture import Repeated
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from autoencode import DivergedError, Pack, Run, TrainProgress, load_model, settings, train
from autoencode.data.loader import DeviceImages, local_batch, steps_per_epoch
from autoencode.models.autoencoder import Autoencoder
from autoencode.pixels import to_float
from autoencode.training import losses, objective, runtime
from autoencode.training.capture import CapturedStep, Work
from autoencode.training.loop import Loop
from autoencode.training.optim import learning_rate_at
from autoencode.training.process import interrupts
from autoencode.training.run import RunSettings, read_metrics
from autoencode.training.runtime import Runtime, choose_runtime

FP32 = choose_runtime("cpu", "fp32")


def make_loop(pack: Pack, out: Path, runtime: Runtime = FP32, **overrides: Any) -> Loop:  # noqa: ANN401
    model, config = settings(**overrides)
    where = (str(pack.path), pack.fingerprint)
    run = RunSettings(model, config, pack.preprocessing, *where, "cpu", runtime.bf16, runtime.channels_last)
    return Loop(out, run, pack, runtime, lambda _: None)


def run_to_the_end(loop: Loop) -> None:
    with interrupts() as interrupted:
        loop.run(None, interrupted)


def validation_images(pack: Pack) -> torch.Tensor:
    return to_float(pack.pixels(pack.rows("validation")))


def test_the_metrics_have_what_every_reader_counts_on(
    trained: Run, trained_vae: Run, tiny_pack: Pack
) -> None:
    steps = steps_per_epoch(len(tiny_pack.rows("train")), 8)
    always = {"epoch", "step", "train_loss", "val_loss", "val_mse", "images_per_second", "learning_rate"}
    always |= {"seconds", "input_wait"}
    of_a_vae = {"train_reconstruction", "train_kl", "val_reconstruction", "val_kl", "beta", "sigma2"}
    for run, names in ((trained, always), (trained_vae, always | of_a_vae | {"active_units"})):
        text = (run.folder / "metrics.jsonl").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        assert records == run.metrics
        assert [(record["epoch"], record["step"]) for record in records] == [(1, steps), (2, 2 * steps)]
        assert all(names <= record.keys() for record in records)
        assert all(math.isfinite(value) for record in records for value in record.values())


def test_the_validation_numbers_of_an_autoencoder_are_those_of_the_saved_model(
    trained: Run, tiny_pack: Pack
) -> None:
    images = validation_images(tiny_pack)
    expected = functional.mse_loss(load_model(trained.model_path).reconstruct(images), images).item()
    assert trained.metrics[-1]["val_loss"] == pytest.approx(expected, rel=1e-3)
    assert trained.metrics[-1]["val_mse"] == pytest.approx(expected, rel=1e-3)


def test_the_validation_numbers_of_a_vae_are_those_of_the_saved_model(
    trained_vae: Run, tiny_pack: Pack
) -> None:
    images, model, last = (
        validation_images(tiny_pack),
        load_model(trained_vae.model_path),
        trained_vae.metrics[-1],
    )
    mean, log_variance = model.encode_distribution(images)
    assert log_variance is not None
    assert last["val_kl"] == pytest.approx(losses.kl(mean, log_variance).mean().item(), rel=1e-2)
    assert last["val_mse"] == pytest.approx((model.decode(mean) - images).square().mean().item(), rel=1e-3)
    assert last["sigma2"] == pytest.approx(model.sigma2.item())
    values = 3 * 32 * 32
    assert last["val_loss"] * values == pytest.approx(last["val_reconstruction"] + last["val_kl"], rel=1e-5)


def test_the_training_loss_is_the_mean_over_the_images_not_over_the_batches(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    # A step so small that the weights stay where they start.
    overrides = tiny | {"learning_rate": 1e-12, "epochs": 1, "batch_size": 25}
    start = make_loop(tiny_pack, tmp_path, **overrides).state.model
    images = to_float(tiny_pack.pixels(tiny_pack.rows("train")))
    assert len(images) % 25
    run = train(tiny_pack.path, tmp_path / "run", precision="fp32", **overrides)
    expected = functional.mse_loss(start(images).images, images).item()
    assert run.metrics[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_dropout_is_off_at_evaluation_and_noise_is_not(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    images = validation_images(tiny_pack)
    for corruption, clean in (("dropout:0.5", True), ("gaussian:0.5", False)):
        run = train(
            tiny_pack.path,
            tmp_path / corruption[:3],
            precision="fp32",
            epochs=1,
            corrupt=(corruption,),
            **tiny,
        )
        restored = load_model(run.model_path).reconstruct(images)
        expected = functional.mse_loss(restored, images).item()
        assert (run.metrics[0]["val_loss"] == pytest.approx(expected, rel=1e-4)) is clean


def test_the_validation_of_a_denoiser_sees_the_same_noise_every_epoch(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    settings = tiny | {"corrupt": ("gaussian:0.3",), "learning_rate": 1e-12}
    run = train(tiny_pack.path, tmp_path / "run", epochs=2, **settings)
    assert run.metrics[0]["val_loss"] == pytest.approx(run.metrics[1]["val_loss"], rel=1e-6)


def test_warmup_reaches_beta_at_exactly_the_stated_step(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    seen: list[float] = []
    original = losses.terms

    def terms(*arguments: Any) -> losses.Terms:  # noqa: ANN401
        if torch.is_grad_enabled():
            seen.append(arguments[3])
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoencode.training.objective.terms", terms)
        run = train(tiny_pack.path, tmp_path / "run", kind="vae", beta=2.0, kl_warmup=2, epochs=1, **tiny)
    steps = len(seen) // 3
    assert seen == [2.0 * min(1, step / (2 * steps)) for step in range(3 * steps)]
    assert seen.index(2.0) == 2 * steps
    # A line has the weight its last step was taken with.
    assert [record["beta"] for record in run.metrics] == seen[steps - 1 :: steps]
    assert [record["epoch"] for record in run.metrics] == [1, 2, 3]


def test_cycles_end_at_the_full_beta(tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path) -> None:
    run = train(tiny_pack.path, tmp_path / "run", kind="vae", kl_warmup_cycles=2, epochs=2, **tiny)
    assert run.metrics[-1]["beta"] == 1.0


def test_a_cosine_schedule_rises_and_ends_near_zero(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    loop = make_loop(tiny_pack, tmp_path, schedule="cosine", learning_rate=1.0, epochs=20, **tiny)
    rates = [learning_rate_at(loop.config, step, loop.total_steps) for step in range(loop.total_steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0
    assert top <= 0.06 * len(rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01


def test_the_paper_optimiser_takes_the_steps_that_torch_takes(tiny_pack: Pack, tmp_path: Path) -> None:
    loop = make_loop(tiny_pack, tmp_path, preset="paper-ae", widths=(4, 8), code_size=8)
    model = Autoencoder(loop.settings.model, tiny_pack.preprocessing)
    model.load_state_dict(loop.state.model.state_dict())
    optimizer = torch.optim.Adamax(model.parameters(), lr=2e-3)
    images = validation_images(tiny_pack)
    for _ in range(3):
        loop._step(images, local_batch(len(images), 0, 1))
        optimizer.zero_grad()
        functional.mse_loss(model(images).images, images).backward()
        optimizer.step()
    for name, weight in loop.state.model.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_average_of_the_weights_follows_them_with_the_stated_decay(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    loop = make_loop(tiny_pack, tmp_path, ema=0.5, **tiny)
    images, name = validation_images(tiny_pack), "to_mean.bias"
    expected = loop.state.model.state_dict()[name].clone()
    for step in range(8):
        loop._step(images, local_batch(len(images), 0, 1))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * loop.state.model.state_dict()[name]
    torch.testing.assert_close(loop.state.averaged.state_dict()[name], expected)
    assert not torch.equal(expected, loop.state.model.state_dict()[name])


def test_the_saved_model_of_an_averaged_run_is_the_average(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    loop = make_loop(tiny_pack, tmp_path, ema=0.9, epochs=1, **tiny)
    run_to_the_end(loop)
    saved = load_model(tmp_path).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in loop.state.averaged.state_dict().items())


def test_a_narrow_likelihood_keeps_its_gradient_finite_for_five_hundred_steps(
    tiny_pack: Pack, tmp_path: Path
) -> None:
    overrides = {"kind": "vae", "sigma2": 0.001, "widths": (4, 8), "code_size": 8, "batch_size": 4}
    loop = make_loop(tiny_pack, tmp_path, epochs=60, **overrides)
    parameters = list(loop.state.model.parameters())
    norms: list[float] = []

    def measure(*_: object) -> None:
        norms.append(sum(p.grad.square().sum().item() for p in parameters if p.grad is not None) ** 0.5)

    loop.state.optimizer.register_step_pre_hook(measure)
    images = validation_images(tiny_pack)
    for _ in range(500):
        loop._step(images, local_batch(len(images), 0, 1))
    assert len(norms) == 500
    assert all(map(math.isfinite, norms))
    assert max(norms) < 100
    assert all(torch.isfinite(parameter).all() for parameter in parameters)


class AsIfOnAGpu(Runtime):
    """The CPU, used as a GPU is: with images kept there, steps that are replayed, and rare looks."""

    runs_ahead = True

    def images_of(self, pack: Pack, rows: NDArray[np.int64]) -> DeviceImages:
        return DeviceImages(pack, rows, self.device, 2**30)

    def captured(self, work: Work) -> CapturedStep:
        return CapturedStep(work, Repeated())


AHEAD = AsIfOnAGpu(torch.device("cpu"), bf16=False, channels_last=True)
LIKE_A_GPU: list[dict[str, Any]] = [
    {"preset": "paper-ae"},
    {"kind": "vae", "kl_warmup": 1, "batch_norm": True, "ema": 0.5, "corrupt": ("gaussian:0.3",)},
    {"preset": "best-vae"},
    {"accumulate": 2, "horizontal_flip": True, "shift": 1},
]


@pytest.mark.parametrize("overrides", LIKE_A_GPU, ids=lambda one: str(one.get("preset", next(iter(one)))))
def test_images_on_the_device_and_replayed_steps_change_no_bit_of_a_run(
    overrides: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    own = {"widths": (4, 8), "code_size": 8, "batch_size": 7, "epochs": 2, **overrides}
    usual = make_loop(tiny_pack, tmp_path / "usual", FP32, **own)
    ahead = make_loop(tiny_pack, tmp_path / "ahead", AHEAD, **own)
    assert len(usual.train_rows) % 7 > 1, "the last batch is to be smaller"
    for loop in (usual, ahead):
        run_to_the_end(loop)
    assert (ahead.captured is None) == ("accumulate" in overrides)
    expected = usual.state.averaged.state_dict()
    for name, weight in ahead.state.averaged.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for one, other in zip(usual.records, ahead.records, strict=True):
        for name in one.keys() - {"seconds", "images_per_second", "input_wait"}:
            assert one[name] == other[name], name


@pytest.mark.parametrize("overrides", LIKE_A_GPU, ids=lambda one: str(one.get("preset", next(iter(one)))))
def test_no_value_is_read_while_steps_are_taken_on_a_gpu(
    overrides: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"widths": (4, 8), "code_size": 8, "batch_size": 7, "epochs": 2, **overrides}
    loop = make_loop(tiny_pack, tmp_path, AHEAD, **own)
    # On a CPU the optimisers read how many steps they have taken; on a GPU that is a tensor.
    monkeypatch.setattr(loop.state.optimizer, "step", lambda: None)
    images = loop._local_batches(loop._order(0))
    with ValuesRead() as read:
        for batch, local in images:
            loop._step(batch, local)
        assert not read.operations
        loop._look()
        assert read.operations


def test_a_run_that_diverges_on_a_gpu_says_at_which_steps_and_keeps_the_last_good_model(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "STEPS_BETWEEN_LOOKS", 2)
    seen: list[TrainProgress] = []
    loop = make_loop(tiny_pack, tmp_path, AHEAD, epochs=2, **tiny)
    loop.progress = seen.append
    original = objective.terms

    def broken(*arguments: Any) -> losses.Terms:  # noqa: ANN401
        found = original(*arguments)
        factor = math.inf if loop.state.step == loop.steps + 2 else 1
        return found._replace(loss=found.loss * factor)

    monkeypatch.setattr(objective, "terms", broken)
    with pytest.raises(DivergedError, match="at epoch 2, one of the steps 3 to 4") as caught:
        run_to_the_end(loop)
    assert f"The last good model, of epoch 1, is {tmp_path / 'model.safetensors'}" in str(caught.value)
    assert all(torch.isfinite(weight).all() for weight in load_model(tmp_path).state_dict().values())
    assert [at.step for at in seen if at.epoch == 1] == [*range(2, loop.steps, 2), loop.steps]


class ValuesRead(TorchDispatchMode):
    """Records the operations that bring a value from a device to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def gradient(pack: Pack, out: Path, runtime: Runtime) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of the first step of a small VAE."""
    loop = make_loop(pack, out, runtime, kind="vae", widths=(8, 16), code_size=8)
    return gradient_of(loop, runtime.to_device(validation_images(pack)))


def gradient_of(loop: Loop, images: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of a first step on these images."""
    local = local_batch(len(images), 0, 1)
    views = loop.objective.views(loop.state.model, images, local, "train", 0)
    result, _ = loop.objective.terms(loop.state.model, views, loop.objective.beta(0))
    result.loss.backward()
    parts = [p.grad.flatten() for p in loop.state.model.parameters() if p.grad is not None]
    return result.loss.item(), torch.cat(parts)


def test_bf16_gives_the_gradient_of_fp32_within_its_precision(tiny_pack: Pack, tmp_path: Path) -> None:
    loss, exact = gradient(tiny_pack, tmp_path, FP32)
    rounded_loss, rounded = gradient(tiny_pack, tmp_path, dataclasses.replace(FP32, bf16=True))
    assert rounded_loss == pytest.approx(loss, rel=1e-2)
    assert functional.cosine_similarity(exact, rounded, dim=0) > 0.999
    assert (rounded - exact).norm() < 0.01 * exact.norm()
    assert not torch.equal(rounded, exact)


def test_the_memory_format_changes_nothing_but_the_speed(tiny_pack: Pack, tmp_path: Path) -> None:
    loss, last = gradient(tiny_pack, tmp_path, FP32)
    first_loss, first = gradient(tiny_pack, tmp_path, dataclasses.replace(FP32, channels_last=False))
    assert first_loss == pytest.approx(loss, rel=1e-5)
    assert (first - last).norm() < 1e-4 * last.norm()


@pytest.mark.parametrize(
    "settings",
    [
        {"horizontal_flip": True, "shift": 1, "corrupt": ("gaussian:0.3", "rotate:20")},
        {"kind": "vae", "sigma2": "auto", "kl_warmup": 1},
        {"preset": "best", "widths": (4, 8)},
    ],
)
@pytest.mark.parametrize("accumulate", [3, 100])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(
    settings: dict[str, Any], accumulate: int, tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    whole, divided = (
        make_loop(
            tiny_pack, tmp_path / str(count), **(tiny | {"epochs": 2} | settings | {"accumulate": count})
        )
        for count in (1, accumulate)
    )
    seen: list[int] = []
    divided.state.model.encoder.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    run_to_the_end(whole)
    run_to_the_end(divided)
    assert max(seen[:3]) == (3 if accumulate == 3 else 1)
    expected, records = (read_metrics(loop.out) for loop in (whole, divided))
    assert len(records) == whole.config.all_epochs
    for one, other in zip(expected, records, strict=True):
        # The last two are counted or decided at a threshold, which a rounding can cross.
        apart = {"seconds", "images_per_second", "input_wait", "active_units", "sharp_is_kept"}
        for name in one.keys() - apart:
            # Adamax and AdamW make whole steps of what little a gradient has at first; features are in bf16.
            rel = 5e-3 if "perceptual" in name or "sharp" in name else 1e-3
            assert other[name] == pytest.approx(one[name], rel=rel, abs=1e-7), name


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_the_gradients_of_micro_batches_sum_to_that_of_the_batch(
    accumulate: int, tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In double precision: in single, one image and a batch are rounded so that they differ by some 1e-5.
    whole, loop = (make_loop(tiny_pack, tmp_path, kind="vae", widths=(8, 16), code_size=8) for _ in range(2))
    for one in (whole, loop):
        one.state.model.double()
    images = FP32.to_device(validation_images(tiny_pack)).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    _, expected = gradient_of(whole, images)
    for micro in local_batch(len(images), 0, 1).micro_batches(accumulate):
        views = loop.objective.views(loop.state.model, images[micro.positions], micro, "train", 0)
        loop._backward(views, micro, loop.objective.beta(0))
    parts = [p.grad.flatten() for p in loop.state.model.parameters() if p.grad is not None]
    assert (torch.cat(parts) - expected).norm() < 1e-10 * expected.norm()


def test_progress_counts_every_step_and_ends_each_epoch_with_its_record(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path
) -> None:
    seen: list[TrainProgress] = []
    run = train(tiny_pack.path, tmp_path / "run", epochs=2, progress=seen.append, **tiny)
    steps = steps_per_epoch(len(tiny_pack.rows("train")), 8)
    assert [(at.epoch, at.step) for at in seen] == [(e, s) for e in (1, 2) for s in range(1, steps + 1)]
    assert [at.record for at in seen if at.record] == run.metrics
    assert seen[-1].seconds_left == 0
    assert all(at.images_per_second > 0 and at.epochs == 2 and at.steps == steps for at in seen)


def test_the_speed_is_what_one_waits_for_and_the_wait_for_images_is_named(
    tiny: dict[str, Any], tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop._step

    def slow_step(self: Loop, *arguments: Any) -> None:  # noqa: ANN401
        time.sleep(0.3)
        step(self, *arguments)

    # Steps take long here, and reading below: on a busy machine either may wait for a processor, too.
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", slow_step)
        fast = train(tiny_pack.path, tmp_path / "fast", epochs=1, **tiny).metrics[0]
    original = Pack.pixels

    def slow(self: Pack, rows: Any) -> Any:  # noqa: ANN401
        time.sleep(0.3)
        return original(self, rows)

    monkeypatch.setattr(Pack, "pixels", slow)
    record = train(tiny_pack.path, tmp_path / "slow", epochs=1, **tiny).metrics[0]
    images = len(tiny_pack.rows("train"))
    assert record["seconds"] >= 0.3 * record["step"]
    assert record["images_per_second"] == pytest.approx(images / record["seconds"])
    assert 0 <= fast["input_wait"] < record["input_wait"] < 1


def test_an_epoch_that_ends_with_one_image_more_counts_them_all(tiny_pack: Pack, tmp_path: Path) -> None:
    size = len(tiny_pack.rows("train")) - 1
    seen: list[TrainProgress] = []
    overrides: dict[str, Any] = {"widths": (4, 8), "code_size": 8, "epochs": 1, "batch_size": size}
    overrides["perceptual"] = 0
    run = train(tiny_pack.path, tmp_path / "run", progress=seen.append, **overrides)
    assert [(at.step, at.steps) for at in seen] == [(1, 1)]
    assert seen[0].loss == pytest.approx(run.metrics[0]["train_loss"])


def test_a_fixed_sigma2_stays_that_of_the_model_whatever_pca_leaves(tiny_pack: Pack, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"kind": "vae", "network": "residual", "widths": (4, 8), "code_size": 8}
    assert make_loop(tiny_pack, tmp_path, sigma2=0.1, **overrides).state.model.sigma2 == pytest.approx(0.1)
    assert make_loop(tiny_pack, tmp_path, **overrides).state.model.sigma2 != pytest.approx(0.1)


def test_the_model_says_where_it_comes_from(trained: Run, tiny_pack: Pack) -> None:
    provenance = load_model(trained.model_path).provenance
    assert provenance["data"] == tiny_pack.fingerprint
    assert provenance["images"]["train"] == len(tiny_pack.rows("train"))
    assert (provenance["epoch"], provenance["train"]["batch_size"]) == (2, 8)
    assert provenance["metrics"]["val_mse"] == trained.metrics[-1]["val_mse"]
