"""Nothing that comes from a file is ever run, and what may be read is held to what it says."""

from __future__ import annotations

import ast
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import autoencode
from autoencode import (
    AutoencodeError,
    build_index,
    load_classifier,
    load_model,
    open_index,
    open_pack,
    pack_folder,
    reconstruct,
    train,
)

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
    *(("duplicates/features.py", use) for use in ("np.load(", "allow_pickle")),
    ("models/efficientnet.py", "torch.load("),  # of an installed package, with weights_only
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of eight small images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20), (number * 30, 99, 9)).save(folder / f"{number}.png")
    return folder


def test_no_source_reads_files_in_a_way_that_runs_what_is_in_them() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        code = re.sub(r'"""[\s\S]*?"""|#.*|\.eval\(', "", path.read_text())
        found |= {(path.relative_to(SOURCE).as_posix(), match[0]) for match in RUNS_CODE.finditer(code)}
    assert found == ALLOWED


def test_weights_in_a_pickle_are_loaded_as_weights_only() -> None:
    source = (SOURCE / "models" / "efficientnet.py").read_text()
    assert len(re.findall(r"torch\.load\(", source)) == len(re.findall(r"weights_only=True", source)) == 1


# What opens a file by its name, past `autoencode.untrusted`: it would wait for a pipe, or read a device.
OPENS = re.compile(
    r"open|.*(?:path|file|table|temporary|folder|\))\.open|(?!decoding).*\.read_(?:text|bytes)|(?:json|tomllib)\.load"
    r"|np\.(?:load|memmap|fromfile|loadtxt|genfromtxt)|.*safe_open|.*load_file|Image\.open|.*read_table"
    r"|.*InferenceSession|shutil\.copy.*|.*FileIO|_Unwaiting"
)
# Each use, with the reason why it is no stranger's file, or is looked at before.
OPENED = {
    ("untrusted.py", "_Unwaiting"): 1,  # the one way
    ("atomic.py", "open"): 1,  # a new temporary file, as the next two
    ("atomic.py", "temporary.open"): 1,
    ("data/shards.py", "path.open"): 1,
    ("data/shards.py", "temporary.open"): 1,
    ("storage.py", "shutil.copyfileobj"): 1,  # between files that are open
    (
        "errors.py",
        "metadata.distribution('autoencode').read_text",
    ): 1,  # installed, as the next three
    ("web/server.py", "path.read_bytes"): 1,
    ("web/server.py", "(STATIC / 'index.html').read_text"): 1,
    ("report/page.py", "TEMPLATE.read_text"): 1,
    ("report/page.py", "Image.open"): 1,  # bytes in memory, as the next three
    ("web/start.py", "Image.open"): 1,
    ("data/damage.py", "Image.open"): 1,
    ("duplicates/verdict.py", "Image.open"): 1,
    ("data/workers.py", "open"): 1,  # /dev/null
    # The kernel's own.
    ("data/workers.py", "Path('/proc/meminfo').read_text"): 1,
    ("data/workers.py", "Path(f'/sys/fs/cgroup/memory.{name}').read_text"): 1,
    ("data/workers.py", "Path('/proc/self/statm').read_text"): 1,
    ("data/sources.py", "(unfinished / f'{number:06}.png').read_bytes"): 1,  # just written to a new folder
    ("index/lance/tables.py", "path.read_bytes"): 1,  # likewise
    ("data/decoders.py", "np.memmap"): 1,  # digests that the same command wrote
    ("export.py", "onnxruntime.InferenceSession"): 1,  # the bytes of a model that was just exported
    ("models/model_file.py", "safetensors.safe_open"): 2,  # after `check_file`, as the next
    ("models/backbones.py", "onnxruntime.InferenceSession"): 1,
    ("models/judge.py", "onnxruntime.InferenceSession"): 1,  # of an installed package
    ("trial.py", "onnxruntime.InferenceSession"): 1,
    # What `open_file` opened.
    ("duplicates/features.py", "np.load"): 1,
    ("index/__init__.py", "_existing(location).open"): 1,  # a store, not a file, as the next
    ("web/commands.py", "FileStore().open"): 1,
}


def test_every_file_of_a_stranger_is_opened_in_one_way() -> None:
    found: dict[tuple[str, str], int] = {}
    for path in SOURCE.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        for name in (ast.unparse(call.func) for call in calls):
            if OPENS.fullmatch(name):
                use = path.relative_to(SOURCE).as_posix(), name
                found[use] = found.get(use, 0) + 1
    assert found == OPENED


TRAPS = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", ["pack.json", "manifest.jsonl", "shards/00000.u8"])
def test_a_pack_that_is_a_trap_is_rejected_in_one_line(
    name: str, kind: str, photos: Path, tmp_path: Path
) -> None:
    pack = pack_folder(photos, tmp_path / "pack", size=16, workers=1)
    (pack.path / name).unlink()
    TRAPS[kind](pack.path / name)
    with pytest.raises(AutoencodeError) as err:
        opened = open_pack(pack.path)
        opened.pixels(opened.rows())
    assert "\n" not in str(err.value)


def test_a_shard_or_list_that_leads_to_a_file_elsewhere_is_not_shown(photos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10**6))
    for name in ("pack.json", "manifest.jsonl", "shards/00000.u8"):
        pack = pack_folder(photos, tmp_path / name.replace("/", "-"), size=16, workers=1)
        secret.write_bytes((pack.path / name).read_bytes())
        (pack.path / name).unlink()
        (pack.path / name).symlink_to(secret)
        with pytest.raises(AutoencodeError):
            opened = open_pack(pack.path)
            opened.pixels(opened.rows())


def test_a_manifest_of_endless_or_equal_lines_is_rejected_in_no_time(photos: Path, tmp_path: Path) -> None:
    pack = pack_folder(photos, tmp_path / "pack", size=16, workers=1)
    manifest = pack.path / "manifest.jsonl"
    line = manifest.read_bytes().splitlines(keepends=True)[0]
    manifest.write_bytes(line * 100_000)
    with pytest.raises(AutoencodeError, match="damaged in line 2"):
        open_pack(pack.path)
    manifest.write_bytes(b"")
    os.truncate(manifest, 2**33)
    tracemalloc.start()
    with pytest.raises(AutoencodeError, match="line of more than"):
        open_pack(pack.path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    tracemalloc.stop()


def test_what_is_made_of_a_private_folder_is_private(photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    photos.chmod(0o700)
    pack_folder(photos, tmp_path / "pack", size=16, workers=1)
    run = train(photos, tmp_path / "run", size=16, epochs=1, widths=(4, 8), code_size=4, keep_memory=False)
    build_index(photos, tmp_path / "index", run.folder, embedding="code")
    reconstruct(run.folder, [photos], tmp_path / "reconstructed")
    open_to_others = [
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.lstat().st_mode & 0o077 and photos not in path.parents and not path.is_symlink()
    ]
    assert open_to_others == []


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
