"""One protocol: steps, epochs and the end of a training, for callbacks of anybody."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from autoencode import (
    Callback,
    DivergedError,
    MissingExtraError,
    MLflow,
    Pack,
    Run,
    TensorBoard,
    TrainProgress,
    load_model,
    train,
)


class Seen(Callback):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.records: list[dict[str, float]] = []
        self.ends: list[tuple[Run, BaseException | None]] = []

    def on_step(self, at: TrainProgress) -> None:
        self.steps.append((at.epoch, at.step))

    def on_epoch(self, at: TrainProgress) -> None:
        assert at.record is not None
        self.records.append(at.record)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        self.ends.append((run, error))


class Stop(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_epoch(self, at: TrainProgress) -> None:
        raise self.error


def test_every_step_every_epoch_and_the_end_are_told_in_order(
    tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path
) -> None:
    seen, order = Seen(), list[str]()

    class Order(Callback):
        def on_epoch(self, at: TrainProgress) -> None:
            order.append(f"{len(seen.records)} of {at.epoch}")

    plain = train(tiny_pack.path, tmp_path / "plain", epochs=2, **tiny)
    told: list[TrainProgress] = []
    run = train(
        tiny_pack.path, tmp_path / "run", epochs=2, progress=told.append, callbacks=[seen, Order()], **tiny
    )
    steps = told[0].steps
    assert seen.steps == [(epoch, step) for epoch in (1, 2) for step in range(1, steps + 1)]
    assert seen.records == run.metrics == [at.record for at in told if at.record]
    assert order == ["1 of 1", "2 of 2"]  # in the order given
    assert seen.ends == [(run, None)]
    # Told or not, the training is the same.
    assert load_model(run.model_path).digest == load_model(plain.model_path).digest


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_an_error_of_a_callback_ends_the_training_which_can_be_continued(
    error: BaseException, tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path
) -> None:
    seen, out = Seen(), tmp_path / "run"
    with pytest.raises(type(error)):
        train(tiny_pack.path, out, epochs=2, callbacks=[seen, Stop(error)], **tiny)
    [(run, told)] = seen.ends
    assert told is error
    assert [record["epoch"] for record in run.metrics] == [1]
    again = Seen()
    run = train(tiny_pack.path, out, resume=True, callbacks=[again])
    assert [record["epoch"] for record in again.records] == [2]
    plain = train(tiny_pack.path, tmp_path / "plain", epochs=2, **tiny)
    assert load_model(run.model_path).digest == load_model(plain.model_path).digest


def test_a_training_that_diverges_ends_with_that_error_and_one_that_never_began_tells_nothing(
    tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path
) -> None:
    seen = Seen()
    with pytest.raises(DivergedError):
        train(tiny_pack.path, tmp_path / "run", epochs=2, learning_rate=1e30, callbacks=[seen], **tiny)
    assert isinstance(seen.ends[0][1], DivergedError)
    with pytest.raises(Exception, match="epochs"):
        train(tiny_pack.path, tmp_path / "other", epochs=-1, callbacks=[seen], **tiny)
    assert len(seen.ends) == 1


def test_the_event_file_of_tensorboard_holds_the_metrics(
    tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    run = train(tiny_pack.path, out, epochs=2, callbacks=[TensorBoard(out)], **tiny)
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == run.metrics[0].keys() - {"step"}
    for name in ("train_loss", "val_mse"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in run.metrics]
        assert found == expected


def test_mlflow_holds_settings_metrics_and_the_model_without_a_server(
    tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "runs" / "one"
    run = train(tiny_pack.path, out, epochs=2, callbacks=[MLflow(out)], **tiny)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("autoencode")
    [found] = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params["code_size"] == "8"
    history = client.get_metric_history(found.info.run_id, "val_mse")
    assert [(one.step, one.value) for one in history] == [(r["step"], r["val_mse"]) for r in run.metrics]
    files = {path.name: path for path in (tmp_path / "runs" / "mlflow").rglob("*") if path.is_file()}
    assert files["model.safetensors"].read_bytes() == run.model_path.read_bytes()
    assert "run.toml" in files
    assert not (Path.cwd() / "mlruns").exists()


@pytest.mark.parametrize(("kind", "module"), [(TensorBoard, "torch.utils.tensorboard"), (MLflow, "mlflow")])
def test_without_the_extra_the_command_that_installs_it_is_named(
    kind: type[Callback], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install .*\[{kind.__name__.lower()}\]'"):
        kind(tmp_path)  # type: ignore[call-arg]
    assert not (tmp_path / "tensorboard").exists()
