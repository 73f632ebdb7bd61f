"""Report the progress of training: the protocol of callbacks, and two of them, TensorBoard and MLflow.

class Stop(Callback):
    def on_epoch(self, at: TrainProgress) -> None:
        if at.record.get("val_mse", 1) < 0.005:  # an epoch of the perceptual phase has none
            raise KeyboardInterrupt  # the state is saved; --resume continues

autoencode.train("photos", callbacks=[Stop()])
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.errors import MissingExtraError
from autoencode.training.run import CONFIG_NAME, read_run

if TYPE_CHECKING:
    from autoencode.training.progress import TrainProgress
    from autoencode.training.train import Run


class Callback:
    """Receives the events of a training, in its first process; a subclass has the methods it needs.

    An error that a method raises ends the training, which keeps its last state.
    """

    def on_step(self, at: TrainProgress) -> None:
        """A step of the optimiser was taken."""

    def on_epoch(self, at: TrainProgress) -> None:
        """An epoch is over: measured on validation images, and saved; `at.record` holds the numbers."""

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """The training is over.

        Args:
            run: what there is of it; without an epoch it has no model.
            error: why it ended before its last epoch, such as a KeyboardInterrupt; None if it did not.
        """


def calling(
    progress: Callable[[TrainProgress], None] | None, callbacks: Sequence[Callback]
) -> Callable[[TrainProgress], None]:
    """Return a function that passes its argument to `progress`, then to the callbacks in their order."""

    def report(at: TrainProgress) -> None:
        if progress is not None:
            progress(at)
        for callback in callbacks:
            callback.on_step(at)
            if at.record is not None:
                callback.on_epoch(at)

    return report


@contextmanager
def telling_the_end(callbacks: Sequence[Callback], run: Callable[[], Run | None]) -> Iterator[None]:
    """Report the end of the training inside to callbacks, also after an error.

    Args:
        callbacks: called in their order.
        run: returns the run as it is by then, or None if it never began; then no callback is called.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as err:
        error = err
        raise
    finally:
        if callbacks and (made := run()) is not None:
            for callback in callbacks:
                callback.on_end(made, error)


class TensorBoard(Callback):
    """Writes the metrics of each epoch to event files in `folder`/tensorboard.

    Args:
        folder: of the run.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as err:
            raise MissingExtraError("tensorboard", "TensorBoard") from err
        self._folder, self._make = Path(folder), SummaryWriter
        self._writer: SummaryWriter | None = None

    def on_epoch(self, at: TrainProgress) -> None:
        """Write the metrics of an epoch."""
        assert at.record is not None
        # Not before the run folder exists: train() rejects a folder that holds something else.
        self._writer = self._writer or self._make(str(self._folder / "tensorboard"))
        for name, value in at.record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(at.record["step"]))
        self._writer.flush()

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class MLflow(Callback):
    """Logs settings, the metrics of each epoch and the model to MLflow; a database beside the run by default.

    `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows it. Nothing leaves the machine, unless a
    server is named.

    Args:
        folder: of the run.
        uri: a database or server of MLflow; by default that of the variable MLFLOW_TRACKING_URI, or
            sqlite:///PARENT/mlflow.db in the folder that holds the run.
        experiment: the name of the experiment there.

    Raises:
        MissingExtraError: MLflow is not installed.
    """

    def __init__(self, folder: str | Path, uri: str | None = None, experiment: str = "autoencode") -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as err:
            raise MissingExtraError("mlflow", "MLflow") from err
        self._folder, self._make, self._experiment = Path(folder).absolute(), MlflowClient, experiment
        beside = f"sqlite:///{self._folder.parent / 'mlflow.db'}"
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self._client: Any = None
        self._run = ""

    def on_epoch(self, at: TrainProgress) -> None:
        """Log the metrics of an epoch."""
        assert at.record is not None
        with _quiet():
            if self._client is None:
                self._start()
            for name, value in at.record.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self._client.log_metric(self._run, name, value, step=int(at.record["step"]))

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Log the model and its settings file, and how the training ended."""
        if self._client is None:  # it ended before an epoch was done
            return
        with _quiet():
            for path in (run.model_path, run.folder / CONFIG_NAME):
                if path.exists():
                    self._client.log_artifact(self._run, str(path))
            stopped = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self._run, "FINISHED" if error is None else stopped)

    def _start(self) -> None:
        self._client = self._make(self._uri)
        known = self._client.get_experiment_by_name(self._experiment)
        if known is None:
            # With a database, its default is a folder of the current directory.
            local = (self._folder.parent / "mlflow").as_uri() if self._uri.startswith("sqlite:") else None
            experiment = self._client.create_experiment(self._experiment, artifact_location=local)
        else:
            experiment = known.experiment_id
        self._run = self._client.create_run(experiment, run_name=self._folder.name).info.run_id
        settings = read_run(self._folder)
        for name, value in (settings.model.to_json() | settings.train.to_json()).items():
            self._client.log_param(self._run, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Its libraries warn of each other's next versions, which a user can do nothing about.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
