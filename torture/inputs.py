"""What users give beside images, made by somebody else to hurt: networks, settings, tables, lists and masks.

Each is given to the command that takes it, typed as a user would, in a process of its own. The command ends
with a result or one line, in bounded time and memory, and writes nothing but its results.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# What the commands import when they are given is imported once, here.
import autoencode.index
import autoencode.outliers.inspection
import autoencode.reconstruction
import autoencode.training.train  # noqa: F401
from torture import networks
from torture.commands import TINY_OPTIONS, make_images
from torture.outcome import Outcome
from torture.processes import Ended, command, run
from torture.seeds import damaged, png, zeros

IMAGES = 12
MEMORY_MB = 700  # above what the command takes with a sound input
CPU_SECONDS, SECONDS = 60, 240  # of the processor, and of the clock, on a machine with other work
ENDLESS, ENDLESS_SECONDS = "many steps", 20
SECRET = b"a secret"  # beside the folder: nothing leads there

Arguments = Sequence[str | Path]


class Given(NamedTuple):
    """An input: its name, what makes it at a path, and whether it must be rejected."""

    name: str
    make: Callable[[Path], object]
    is_rejected: bool = False


class Kind(NamedTuple):
    """A kind of input: its name, that of its file, the command that takes it, and the inputs.

    The first input is sound.
    """

    name: str
    file: str
    typed: Callable[[Path, Path], Arguments]
    inputs: Callable[[], Iterator[Given]]


def text(content: str | bytes) -> Callable[[Path], object]:
    """Return a function that writes a file."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _settings(line: str | bytes) -> Callable[[Path], object]:
    """Return a function that writes settings of a small network, and one of them as a line that is given."""
    content = line if isinstance(line, bytes) else line.encode()
    small = (b"epochs = 1\n", b"widths = [4, 8]\n", b"code_size = 4\n", b"batch_size = 8\n")
    return text(b"".join(one for one in small if one[:6] not in content[:20]) + content)


def no_files() -> Iterator[Given]:
    """Yield what is no file, or none of this kind."""
    yield Given("nothing", lambda path: None, is_rejected=True)
    yield Given("a device", lambda path: path.symlink_to("/dev/zero"), is_rejected=True)
    yield Given("a pipe", os.mkfifo, is_rejected=True)
    yield Given("a link to itself", lambda path: path.symlink_to(path), is_rejected=True)
    yield Given("an empty file", text(""), is_rejected=True)
    yield Given("zeros", text(bytes(10_000)), is_rejected=True)


def networks_given() -> Iterator[Given]:
    """Yield ONNX files."""
    yield from (Given(name, make, rejected) for name, make, rejected in networks.made_to_hurt())
    yield from no_files()


def settings_given() -> Iterator[Given]:
    """Yield settings for `train --config`."""
    yield Given("sound", _settings(""))
    yield from no_files_but_empty()
    rejected = {
        "not UTF-8": b"epochs = 1 # \xff\n",
        "a zero byte": b"epochs = 1\0\n",
        "a key twice": "epochs = 1\nepochs = 2\n",
        "unknown": "no_such_setting = 1\n",
        "a table": "[epochs]\nx = 1\n",
        "deep lists": f"widths = {'[' * 100_000}",
        "deep and whole": f"widths = {'[' * 50_000}{']' * 50_000}\n",
        "deep tables": f"{'a.' * 50_000}b = 1\n",
        "a date": "epochs = 2020-01-01\n",
        "an out": 'out = "../elsewhere"\n',
        "many digits": f"epochs = {'9' * 100_000}\n",
        "nan": "learning_rate = nan\n",
        "infinite": "learning_rate = inf\n",
        "negative": "epochs = -1\n",
        "text for a number": 'epochs = "many"\n',
        "a number for text": "kind = 7\n",
        "a list of text": 'widths = ["a"]\n',
        "a huge width": "widths = [4294967296]\n",
        "a huge code": "code_size = 1000000000000\n",
        "many widths": f"widths = [{'4, ' * 10_000}4]\n",
        "no batch": "batch_size = 0\n",
        "a huge seed": f"seed = {2**70}\n",
        "a start elsewhere": 'init = "../secret"\n',
        "an odd damage": 'corrupt = ["gaussian:1e308"]\n',
        "long text": f'kind = "{"a" * 10_000_000}"\n',
        "a huge comment": b"#" * 20_000_000,
    }
    yield from (Given(name, _settings(content), is_rejected=True) for name, content in rejected.items())
    yield Given("a huge batch", _settings("batch_size = 1000000000000\n"))
    yield Given(ENDLESS, _settings("epochs = 1000000000\n"))


def no_files_but_empty() -> Iterator[Given]:
    """Yield what `no_files` does, without the empty file, which is a file of no setting."""
    yield from (given for given in no_files() if given.name != "an empty file")


def tables_given() -> Iterator[Given]:
    """Yield tables of paths."""
    yield Given("sound", text("path,label\nimages/class 0/0000.png,a\nimages/class 1/0001.png,b\n"))
    yield from no_files()
    first = "path,label\nimages/class 0/0000.png,a\n"
    cells = {
        "above": "../secret",
        "far above": "../" * 2000 + "etc/passwd",
        "absolute": "/etc/passwd",
        "a device": "/dev/zero",
        "a terminal": "/dev/tty",
        "a process": "/proc/self/mem",
        "a folder": "images",
        "a pipe": "pipe.png",
        "a long name": "a" * 10_000 + ".png",
        "a deep name": "a/" * 50_000 + "a.png",
        "a zero byte": "images/\0.png",
        "a line": '"images/\n.png"',
        "an odd letter": "images/\udcff.png",
        "a URL": "https://127.0.0.1:1/a.png",
        "itself": "given.csv",
        "a user": "~root/.ssh/id_rsa",
        "a home": "$HOME/a.png",
    }
    for name, cell in cells.items():
        yield Given(name, text(f"{first}{cell},b\n".encode("utf-8", "surrogateescape")))
    yield Given("nothing but above", text("path\n../secret\n"), is_rejected=True)
    yield Given("formulas", text(f"{first}=1+21.png,=cmd|' /C calc'!A0\n+1.png,@x\n"))
    yield Given("labels of paths", text(f"{first}images/class 1/0001.png,../../x\nimages/a.png,/etc\n"))
    yield Given("long labels", text(f"{first}images/class 1/0001.png,{'x' * 100_000}\n"))
    yield Given("a huge label", text(f"{first}images/class 1/0001.png,{'x' * 10_000_000}\n"))
    yield Given("odd labels", text(f'{first}images/class 1/0001.png,"\n\x1b[2J"\n'))
    yield Given("a million rows of one", text(first + "images/class 1/0001.png,b\n" * 10**6))
    yield Given("many rows of nothing", text(first + "".join(f"no/{n}.png,b\n" for n in range(50_000))))
    yield Given("many labels", text(first + "".join(f"images/{n}.png,{n}\n" for n in range(20_000))))
    yield Given("many columns", text("path" + ",x" * 100_000 + "\nimages/class 0/0000.png\n"))
    yield Given("more cells than columns", text("path\nimages/class 0/0000.png,1,2,3\n"))
    yield Given("a quote without end", text(f'{first}"{"a" * 5_000_000}'))
    yield Given("two of one name", text("path,path\nimages/class 0/0000.png,/etc/passwd\n"))
    yield Given("no path", text("file\nimages/class 0/0000.png\n"), is_rejected=True)
    yield Given("no row", text("path\n"), is_rejected=True)
    yield Given("an odd split", text("path,split\nimages/class 0/0000.png,../x\n"), is_rejected=True)
    yield Given("UTF-16", text(first.encode("utf-16")), is_rejected=True)
    yield Given("masks elsewhere", text("path,mask\nimages/class 0/0000.png,../../../dev/zero\n"))


def parquet_given() -> Iterator[Given]:
    """Yield tables of paths in Parquet."""
    sound = ["images/class 0/0000.png", "images/class 1/0001.png"]
    yield Given("sound", partial(_write_parquet, {"path": sound}))
    yield from no_files()
    yield Given("numbers", partial(_write_parquet, {"path": [1, 2]}))
    yield Given("lists", partial(_write_parquet, {"path": [["a"], ["b"]]}))
    yield Given("tables", partial(_write_parquet, {"path": [{"a": 1}]}))
    yield Given("bytes", partial(_write_parquet, {"path": [b"\xff\xfe"]}))
    yield Given("nothing", partial(_write_parquet, {"path": [None]}), is_rejected=True)
    yield Given("paths elsewhere", partial(_write_parquet, {"path": [*sound, "../secret", "/dev/zero"]}))
    # 100 million equal paths are some kilobytes of file.
    yield Given("a bomb", partial(_write_parquet_bomb, 100_000_000))


def _write_parquet(columns: dict[str, list[object]], path: Path) -> None:
    def written() -> None:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), path)

    _assert_ended(written)  # in a process of its own: its threads would not outlive the next fork


def _write_parquet_bomb(rows: int, path: Path) -> None:
    def written() -> None:
        import pyarrow as pa
        from pyarrow import parquet

        one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["a" * 4000]))
        with parquet.ParquetWriter(path, pa.schema([("path", one.type)])) as writer:
            for _ in range(rows // 10**6):
                writer.write_table(pa.table({"path": one}))

    _assert_ended(written)


def _assert_ended(function: Callable[[], object]) -> None:
    ended = run(function)
    if ended.code:
        raise AssertionError(str(ended))


def lists_given() -> Iterator[Given]:
    """Yield lists of paths."""
    yield Given("sound", text("images/class 0/0000.png\nimages/class 1\n"))
    yield from no_files()
    lines = {
        "itself": "given.txt",
        "a device": "/dev/zero",
        "a pipe": "pipe.png",
        "above": "../secret",
        "a zero byte": "images/\0.png",
        "a long name": "a" * 10_000 + ".png",
        "everything": "/proc/self/fd",
        "an odd letter": "images/\udcff.png",
    }
    for name, line in lines.items():
        content = f"images/class 0/0000.png\n{line}\n".encode("utf-8", "surrogateescape")
        yield Given(name, text(content))
    yield Given("itself often", text("given.txt\n" * 1000), is_rejected=True)
    yield Given("a long line", text("a" * 20_000_000))
    yield Given("a million of one", text("images/class 0/0000.png\n" * 10**6))


def masks_given() -> Iterator[Given]:
    """Yield folders of masks; images have 24x20 pixels and more."""
    yield Given("sound", partial(_mask, lambda size: Image.new("L", size, 255)))
    yield from (given for given in no_files() if given.name != "an empty file")
    odd: dict[str, Callable[[tuple[int, int]], Image.Image]] = {
        "of one bit": lambda size: Image.new("1", size, 1),
        "of 16 bits": lambda size: Image.fromarray(np.full(size[::-1], 65535, np.uint16)),
        "of floats": lambda size: Image.fromarray(np.full(size[::-1], np.nan, np.float32)),
        "in CMYK": lambda size: Image.new("CMYK", size, (0, 0, 0, 255)),
        "with alpha": lambda size: Image.new("RGBA", size, (255, 255, 255, 0)),
        "of a palette": lambda size: Image.new("P", size, 1),
    }
    for name, drawn in odd.items():
        yield Given(name, partial(_mask, drawn, ending=".tif"))
    yield Given("of another size", partial(_mask, lambda size: Image.new("L", (9, 9), 1)), is_rejected=True)
    yield Given("black", partial(_mask, lambda size: Image.new("L", size)), is_rejected=True)
    yield Given("an empty folder", Path.mkdir, is_rejected=True)
    for given in no_files():
        if given.name != "nothing":
            yield Given(f"{given.name} in it", partial(_in_folder, given.make), is_rejected=True)
    bomb = png(14_000, 14_000, 8, 0, zeros(14_000 * 14_001))
    yield Given("a bomb", partial(_in_folder, text(bomb)), is_rejected=True)
    yield Given("two of one", _two_masks, is_rejected=True)


def _mask(drawn: Callable[[tuple[int, int]], Image.Image], folder: Path, ending: str = ".png") -> None:
    folder.mkdir()
    image = folder.parent / "images" / "class 0" / "0000.png"
    made = drawn(Image.open(image).size)
    made.save(folder / f"0000_mask{ending}")


def _in_folder(make: Callable[[Path], object], folder: Path) -> None:
    folder.mkdir()
    make(folder / "0000_mask.png")


def _two_masks(folder: Path) -> None:
    _mask(lambda size: Image.new("L", size, 255), folder)
    shutil.copy(folder / "0000_mask.png", folder / "0000.png")


KINDS = (
    Kind(
        "network",
        "given.onnx",
        lambda had, out: ("index", had / "images", "--embedding", had / "given.onnx", "--out", out / "index"),
        networks_given,
    ),
    Kind(
        "settings of a network",
        networks.SETTINGS_NAME,
        lambda had, out: ("index", had / "images", "--embedding", had / "sound.onnx", "--out", out / "index"),
        lambda: (Given(*one) for one in networks.settings_made_to_hurt()),
    ),
    Kind(
        "settings",
        "given.toml",
        lambda had, out: (
            *("train", had / "images", "--config", had / "given.toml", "--size", "16", "--out", out / "run"),
        ),
        settings_given,
    ),
    Kind(
        "table",
        "given.csv",
        lambda had, out: ("pack", had / "given.csv", "--size", "16", "--out", out / "pack"),
        tables_given,
    ),
    Kind(
        "Parquet",
        "given.parquet",
        lambda had, out: ("pack", had / "given.parquet", "--size", "16", "--out", out / "pack"),
        parquet_given,
    ),
    Kind(
        "list",
        "given.txt",
        lambda had, out: ("reconstruct", had / "model", had / "given.txt", "--out", out / "reconstructed"),
        lists_given,
    ),
    Kind(
        "masks",
        "given",
        lambda had, out: (
            *("outliers", had / "normal.safetensors", had / "images", "--masks", had / "given"),
            *("--out", out / "table.csv"),
        ),
        masks_given,
    ),
)


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Give each kind of input, and damaged ones.

    Args:
        cases: damaged inputs of each kind; the inputs made to hurt come on top.
        seed: of the damage.
        folder: to work in.
        names: the kinds; of none, all.
    """
    outcome = Outcome()
    had, out = folder / "had", folder / "out"
    make_images(had / "images", IMAGES)
    (folder / "secret").write_bytes(SECRET)
    os.mkfifo(had / "pipe.png")
    chosen = [kind for kind in KINDS if kind.name in names or (not names and _is_installed(kind))]
    outcome.notes += [f"no {kind.name}: not installed" for kind in KINDS if not _is_installed(kind)]
    needed = {
        "list": ("train", had / "images", "--out", had / "model", *TINY_OPTIONS),
        "masks": ("outliers", had / "images", "--save", had / "normal.safetensors"),
    }
    for kind in chosen:
        if kind.name in needed:
            ended = run(command(*needed[kind.name]))
            outcome.check(ended.code == 0, f"nothing for {kind.name}: {ended}")
    if any(kind.name == "settings of a network" for kind in chosen):
        networks.sound(had / "sound.onnx")
    for kind in chosen:
        inputs = kind.inputs()
        sound = next(inputs)
        base = _given(kind, sound, had, out)
        outcome.check(base.code == 0, f"{kind.name}: the sound one: {base}")
        content = _content(kind, sound, had)
        more = [
            Given(f"damaged, seed {seed}, case {case}", text(_damaged(content, kind, seed, case)))
            for case in range(cases if content else 0)
        ]
        for given in [*inputs, *more]:
            ended = _given(kind, given, had, out)
            outcome.cases += 1
            _judge(f"{kind.name}: {given.name}", given, ended, base, outcome)
            strays = {path.name for path in folder.iterdir()} - {"had", "out", "secret"}
            is_left_alone = not strays and (folder / "secret").read_bytes() == SECRET
            outcome.check(is_left_alone, f"{kind.name}: {given.name}: wrote elsewhere: {strays}")
    return outcome


def _is_installed(kind: Kind) -> bool:
    needed = {"network": "onnxruntime", "settings of a network": "onnxruntime", "Parquet": "pyarrow"}
    return kind.name not in needed or importlib.util.find_spec(needed[kind.name]) is not None


def _given(kind: Kind, given: Given, had: Path, out: Path) -> Ended:
    path = had / kind.file
    given.make(path)
    out.mkdir()

    def limited() -> None:
        seconds = ENDLESS_SECONDS if given.name == ENDLESS else CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        signal.alarm(SECONDS)
        command(*kind.typed(had, out))()

    try:
        return run(limited)
    finally:
        shutil.rmtree(out)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _content(kind: Kind, sound: Given, had: Path) -> bytes:
    """Return the bytes of a sound input; none of a folder."""
    path = had / kind.file
    sound.make(path)
    if path.is_dir():
        shutil.rmtree(path)
        return b""
    content = path.read_bytes()
    path.unlink()
    return content


def _damaged(content: bytes, kind: Kind, seed: int, case: int) -> bytes:
    generator = np.random.default_rng([seed, case, *kind.name.encode()])
    return damaged(content, bytes(generator.bytes(500)), generator)


def _judge(name: str, given: Given, ended: Ended, base: Ended, outcome: Outcome) -> None:
    # Settings may ask for a training of years: it is the user's to stop.
    is_endless = given.name == ENDLESS and ended.code in (-signal.SIGXCPU, -signal.SIGALRM)
    outcome.check(ended.is_plain or is_endless, f"{name}: {ended}")
    outcome.check(not given.is_rejected or ended.code in (1, 2), f"{name}: was accepted: {ended}")
    allowed = base.most_memory_mb + MEMORY_MB
    outcome.check(ended.most_memory_mb < allowed, f"{name}: {ended.most_memory_mb:,.0f} MB")
