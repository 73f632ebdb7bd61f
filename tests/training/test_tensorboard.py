"""Event files hold the numbers of metrics.jsonl, and nothing is written before the run exists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from autoencode import MissingExtraError, Pack, Progress, train
from autoencode.training.progress import logging_to


def test_the_event_file_holds_the_metrics(tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen: list[Progress] = []
    run = train(
        tiny_pack.path, tmp_path / "run", epochs=2, progress=logging_to(tmp_path / "run", seen.append), **tiny
    )
    assert [at.record for at in seen if at.record] == run.metrics
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == run.metrics[0].keys() - {"step"}
    for name in ("train_loss", "val_mse"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in run.metrics]
        assert found == expected


def test_nothing_is_written_before_an_epoch_is_done(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = logging_to(tmp_path / "run", lambda _: None)
    log(Progress(1, 2, 1, 5, 0.1, 10.0, 1.0))
    assert not (tmp_path / "run").exists()


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[tensorboard\]'"):
        logging_to(tmp_path, lambda _: None)
