"""Metrics for TensorBoard, an optional extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoencode.errors import MissingExtraError

if TYPE_CHECKING:
    from autoencode.training.loop import Progress


def logging_to(folder: Path, progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return `progress` that also writes the metrics of each epoch as event files in `folder`/tensorboard.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise MissingExtraError("tensorboard", "--tensorboard") from err
    writer: SummaryWriter | None = None

    def log(at: Progress) -> None:
        nonlocal writer
        progress(at)
        if at.record is None:
            return
        # Not before the run folder exists: train() rejects a folder that holds something else.
        writer = writer or SummaryWriter(str(folder / "tensorboard"))
        step = int(at.record["step"])
        for name, value in at.record.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        writer.flush()
        if at.epoch == at.epochs:
            writer.close()

    return log
