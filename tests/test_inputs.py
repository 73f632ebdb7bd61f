"""The table of what can be given as images is true: what it says is taken is, the rest gets one line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import blobs

from autoencode import (
    AutoencodeError,
    Autoencoder,
    Pack,
    Run,
    build_index,
    embed,
    load_model,
    pack_folder,
    reconstruct,
)

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "inputs.md"
ROWS = re.findall(r"^\| (.*) \| (yes|no) \| (yes|no) \| (yes|no) \| (yes|no) \|$", GUIDE.read_text(), re.M)
PIXELS = np.stack([blobs(number, 32, 32) for number in range(3)])


def forms(kind: str, folder: Path) -> list[Any]:
    """What a row of the table means."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(PIXELS):
        for half in ("one", "two"):
            (folder / half).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / half / f"{number}.png")
    names = [f"one/{number}.png" for number in range(3)]
    (folder / "paths.txt").write_text("\n".join(names))
    for name, separator in (("table.csv", ","), ("table.tsv", "\t")):
        lines = [f"path{separator}label", *(f"{path}{separator}a" for path in names)]
        (folder / name).write_text("\n".join(lines))
    content = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(content, "PNG")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(PIXELS), torch.arange(3))
    return {
        "a folder": lambda: [folder / "one"],
        "image files, one or several": lambda: [folder / names[0], [folder / name for name in names]],
        "several folders": lambda: [[folder / "one", folder / "two"]],
        "a text file of paths, one a line": lambda: [folder / "paths.txt"],
        "a table: CSV, TSV, Parquet": lambda: [folder / "table.csv", folder / "table.tsv"],
        "a data frame": lambda: [_frame([str(folder / name) for name in names])],
        "a pack": lambda: [pack_folder(folder / "one", folder / "pack", size=32).path],
        "arrays, tensors": lambda: [PIXELS, PIXELS[0], torch.from_numpy(PIXELS)],
        "Pillow images, contents of files": lambda: [Image.fromarray(PIXELS[0]), content.getvalue()],
        "a torch or Hugging Face dataset": lambda: [tensors],
    }[kind]()


def _frame(paths: list[str]) -> Any:  # noqa: ANN401
    return pytest.importorskip("pandas").DataFrame({"path": paths})


def commands(model: Autoencoder, folder: Path) -> list[list[Callable[[Any], object]]]:
    """The functions of each column of the table."""
    return [
        [lambda given: pack_folder(given, folder / "p", size=32), lambda given: embed(given, model)],
        [lambda given: reconstruct(model, given, folder / "r")],
        [lambda given: build_index(given, folder / "i", model)],
        [model.read, model.encode, model.reconstruct],
    ]


@pytest.mark.parametrize(("kind", "takes"), [(kind, takes) for kind, *takes in ROWS], ids=str)
def test_what_the_table_says_of_each_form_is_so(
    kind: str, takes: list[str], trained: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    for index, given in enumerate(forms(kind, tmp_path / "images")):
        work = tmp_path / str(index)
        work.mkdir()
        for taken, functions in zip(takes, commands(load_model(trained.model_path), work), strict=True):
            for function in functions:
                if taken == "yes":
                    assert function(given) is not None
                else:
                    with pytest.raises(AutoencodeError) as caught:
                        function(given)
                    assert "\n" not in str(caught.value)


def test_the_table_is_read_by_this_test() -> None:
    assert len(ROWS) == 10
