"""In the kernel of a notebook, functions of the public API show their progress in one line that changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import autoencode
from autoencode import notebook


class Handle:
    """What IPython's `display` returns for an output that is replaced later."""

    def __init__(self, outputs: list[list[str]]) -> None:
        self.own: list[str] = []
        outputs.append(self.own)

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.own.append(content["text/plain"])


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The outputs of a cell, each with the texts that it showed one after the other."""
    shown: list[list[str]] = []

    def display(content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert display_id
        handle = Handle(shown)
        handle.update(content, raw=raw)
        return handle

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    for name, stub in (("ipykernel", package), ("IPython", package), ("IPython.display", module)):
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setattr(notebook, "_EVERY", 0)
    loaded = {name: vars(autoencode).pop(name, None) for name in autoencode.__all__ if name != "__version__"}
    yield shown
    for name, value in loaded.items():
        vars(autoencode).pop(name, None)
        if value is not None:
            vars(autoencode)[name] = value


def test_training_in_a_notebook_is_one_line_that_changes(
    outputs: list[list[str]], photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    autoencode.train(photos, tmp_path / "run", epochs=2, size=32, **tiny)
    (line,) = outputs
    assert "of 48" in line[0]  # packing
    assert line[0].startswith("░")
    assert any("epoch 1 of 2, loss " in text for text in line)
    assert line[-1].startswith("█" * 20 + " epoch 2 of 2")
    assert all("\n" not in text for text in line)


def test_stages_are_named_and_a_progress_of_the_users_own_is_told_alone(
    outputs: list[list[str]], trained_vae: autoencode.Run, photos: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    autoencode.pack_folder(photos, tmp_path / "pack", size=32, progress=lambda *at: told.append(at))
    assert told
    assert outputs == []
    pack = autoencode.open_pack(trained_vae.pack_path)
    autoencode.find_outliers(trained_vae.folder, photos, pack, score="reconstruction")
    (line,) = outputs
    assert ": " in line[-1]


def test_a_wrong_call_is_an_error_of_the_function_itself(outputs: list[list[str]]) -> None:
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument|train\(\) missing 1"):
        autoencode.train()
    assert outputs == []


def test_outside_of_a_notebook_functions_are_themselves() -> None:
    from autoencode.training.train import train

    assert not notebook.is_notebook()
    assert autoencode.train is train
