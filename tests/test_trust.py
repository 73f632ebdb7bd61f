"""Nothing that comes from a file is ever run, and what may be read is held to what it says."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import autoencode
from autoencode import AutoencodeError, load_classifier, load_model, open_index, open_pack

SOURCE = Path(autoencode.__file__).parent
# What runs code that is in a file, by way of reading it.
RUNS_CODE = re.compile(
    r"\b(?:c?pickle|dill|joblib|shelve|marshal)\b|torch\.(?:jit\.)?load\(|np\.load\(|yaml|\beval\(|\bexec\("
    r"|allow_pickle|__import__|\bos\.system|shell=True"
)
# Each use, with the reason why no stranger's file comes near it.
ALLOWED = {
    ("data/workers.py", "pickle"),  # between a process and the workers it started, over a socket of its own
    # Arrays of measurements that the same command kept, without pickles.
    *(
        (f"duplicates/{module}.py", use)
        for module in ("memory", "sketches")
        for use in ("np.load(", "allow_pickle")
    ),
    ("models/efficientnet.py", "torch.load("),  # of an installed package, with weights_only
}


def test_no_source_reads_files_in_a_way_that_runs_what_is_in_them() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        code = re.sub(r'"""[\s\S]*?"""|#.*|\.eval\(', "", path.read_text())
        found |= {(path.relative_to(SOURCE).as_posix(), match[0]) for match in RUNS_CODE.finditer(code)}
    assert found == ALLOWED


def test_weights_in_a_pickle_are_loaded_as_weights_only() -> None:
    source = (SOURCE / "models" / "efficientnet.py").read_text()
    assert len(re.findall(r"torch\.load\(", source)) == len(re.findall(r"weights_only=True", source)) == 1


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return _explode, (str(self.path), "w")


def _explode(path: str, mode: str) -> object:
    return Path(path).open(mode).close()


@pytest.mark.parametrize("form", ["pickle", "torch", "numpy"])
def test_a_pickle_in_the_place_of_any_file_of_ours_is_rejected_and_not_run(form: str, tmp_path: Path) -> None:
    fired, path = tmp_path / "fired", tmp_path / "file"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(fired)))
    elif form == "torch":
        torch.save({"model": Bomb(fired)}, path)
    else:
        with path.open("wb") as file:
            np.save(file, np.array([Bomb(fired)], object), allow_pickle=True)
    content = path.read_bytes()
    readers: dict[str, Callable[[Path], object]] = {
        "model.safetensors": load_model,
        "classifier.safetensors": load_classifier,
        "index.safetensors": open_index,
        "pack.json": open_pack,
    }
    for name, reader in readers.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AutoencodeError):
            reader(tmp_path)
    assert not fired.exists()
    pickle.loads(pickle.dumps(Bomb(fired)))
    assert fired.exists()  # it would have
