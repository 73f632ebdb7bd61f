"""All that goes on for months, for a while: training, updates of an index, kills, the page, a watched folder.

In each round a model is trained and used, an index loses images and gets new ones, a command is killed and
given again, the page is visited, and files come to a watched folder. Memory and open files of what trains, of
the page and of what watches stay flat, and no temporary file is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from autoencode.atomic import TEMPORARY_SUFFIX
from autoencode.data.pack import open_pack
from autoencode.generation import fit_prior, generate
from autoencode.index import build_index, open_index
from autoencode.models.model_file import load_model
from autoencode.training.run import read_metrics
from autoencode.training.train import train
from torture.commands import COMMANDS, TINY, make_images, make_model
from torture.outcome import Outcome
from torture.processes import Child, open_files, resident_mb, run
from torture.visitor import Visitor
from torture.watcher import Watcher

WARM_UP_SHARE = 0.2
WARM_UP_ROUNDS = 3
GROWTH_MB = 24.0  # what pools of the allocator and caches of libraries may still take
EXTRA_FILES = 4  # connections that have just been closed
# A long soak rests after each round, so many times as long as the round took: connections and jobs that
# expire need idle time, too, and a machine may have other work meanwhile.
LONG_S, RESTS, LONGEST_REST_S = 600, 4.0, 60.0
TEMPORARY = "temporary"  # the folder for temporary files
KILLED = tuple(command for command in COMMANDS if command.name in ("pack", "train", "index"))
CHANGES = 3  # images that go and images that come, in each update


class _Use(NamedTuple):
    """What a process has: memory without what it is meant to hold, and open files."""

    memory_mb: float
    files: int


class _Killed:
    """Commands that are killed, and then given again until they end.

    Args:
        folder: to work in.
        seed: of the moments.
        outcome: to note failures in.
    """

    def __init__(self, folder: Path, seed: int, outcome: Outcome) -> None:
        self._folder, self._random = folder, np.random.default_rng(seed)
        self._images = make_images(folder / "images", 12)
        ended = run(lambda: make_model(folder, self._images))
        outcome.check(ended.code == 0, f"no model for the kills: {ended}")
        self._whole: dict[str, tuple[str, float]] = {}
        self.kills = 0  # those that ended a command

    def kill_one(self, number: int, outcome: Outcome) -> None:
        """Kill a command at random moments, then let it end: the result is that of one left alone."""
        command, out = KILLED[number % len(KILLED)], self._folder / "out"
        started = time.monotonic()
        if command.name not in self._whole:
            ended = run(lambda: command.run(self._images, out))
            outcome.check(ended.code == 0, f"{command.name}: {ended}")
            self._whole[command.name] = command.result(out), time.monotonic() - started
            self._clear()
        expected, seconds = self._whole[command.name]
        for after in self._random.uniform(0, seconds, size=self._random.integers(1, 3)):
            child = Child(lambda: command.run(self._images, out))
            time.sleep(after)
            child.kill()
            ended = child.wait()
            self.kills += ended.code == -signal.SIGKILL
            outcome.check(ended.code in (0, -signal.SIGKILL), f"{command.name} killed: {ended}")
        ended = run(lambda: command.run(self._images, out))
        if outcome.check(ended.code == 0, f"{command.name} after kills: {ended}"):
            outcome.check(command.result(out) == expected, f"{command.name} after kills: another result")
        left = _temporaries(self._folder)
        outcome.check(not left, f"{command.name} after kills left {left}")
        self._clear()

    def _clear(self) -> None:
        for path in (self._folder / "out", self._folder / "out.pack"):
            shutil.rmtree(path, ignore_errors=True)


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Go on for so many seconds.

    Args:
        cases: seconds.
        seed: of the training and of the kills.
        folder: to work in.
    """
    outcome = Outcome()
    # Of its own, so that what is left there was left by this soak; children have it from the environment.
    (folder / TEMPORARY).mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / TEMPORARY)
    killed = _Killed(folder / "killed", seed, outcome)
    images = make_images(folder / "images", 24)
    watched, index = folder / "watched", folder / "watched-index"
    _train_on(images, watched, seed, epochs=1)
    build_index(images, index, watched, embedding="code")
    watcher = Watcher(folder / "watching")
    visitor = Visitor(watched, index, seed)
    try:
        _soak(outcome, cases, seed, folder, visitor, watcher, killed)
    finally:
        watcher.leave()
        visitor.leave()
    in_temporary = {path.name for path in (folder / TEMPORARY).iterdir()} - {f"torchinductor_{getuser()}"}
    left = [*in_temporary, *_temporaries(folder)]  # torch keeps its cache
    outcome.check(not left, f"temporary files are left: {left[:9]}")
    outcome.notes.append(f"{killed.kills} kills, {len(left)} temporary files left")
    return outcome


def _soak(
    outcome: Outcome,
    seconds: int,
    seed: int,
    folder: Path,
    visitor: Visitor,
    watcher: Watcher,
    killed: _Killed,
) -> None:
    images, start = folder / "images", time.monotonic()
    shown = sorted(images.rglob("*.png"))
    warm: list[dict[str, _Use]] = []  # what each has after each round, from the first that counts
    is_long = seconds >= LONG_S
    while time.monotonic() - start < seconds or outcome.cases < 2 * WARM_UP_ROUNDS:
        began = time.monotonic()
        watcher.send()
        _round(images, folder, seed)
        _update(outcome, folder)
        if is_long or outcome.cases % 3 == 0:
            killed.kill_one(outcome.cases, outcome)
        outcome.cases += 1
        # One epoch more of the run that the page is about, seen there while it is in use.
        _train_on(images, folder / "watched", seed, epochs=1 + outcome.cases)
        visitor.look_around(shown[outcome.cases % len(shown)])
        watcher.wait()
        now = {
            "training": _Use(resident_mb(os.getpid()), open_files(os.getpid())),
            "page": _of(visitor),
            "watching": _Use(watcher.memory_mb(), watcher.open_files()),
        }
        if time.monotonic() - start >= WARM_UP_SHARE * seconds and outcome.cases >= WARM_UP_ROUNDS:
            warm.append(now)
        if is_long:
            _tell(outcome, time.monotonic() - start, now)
            time.sleep(min(RESTS * (time.monotonic() - began), LONGEST_REST_S))
    logged = len(read_metrics(folder / "watched"))  # with the epochs of a warm-up
    outcome.check(logged > outcome.cases, f"{logged} epochs were trained in {outcome.cases} rounds")
    seen = visitor.epochs_seen
    outcome.check(seen == logged, f"the page has seen {seen} epochs of {logged}")
    outcome.check(not watcher.missed, f"the watching missed {watcher.missed[:9]}")
    for name in warm[0]:
        _compare(outcome, name, [uses[name] for uses in warm])


def _tell(outcome: Outcome, seconds: float, now: dict[str, _Use]) -> None:
    """Print a line on a round: a soak of hours is looked at before it ends."""
    uses = ", ".join(f"{name} {use.memory_mb:.0f} MB {use.files} files" for name, use in now.items())
    failures = f"{len(outcome.failures)} failures"
    print(f"soak {outcome.cases:4} rounds {seconds:6.0f} s: {uses}, {failures}", flush=True)


def _temporaries(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(f"*{TEMPORARY_SUFFIX}")]


def growth_mb(memory_mb: list[float]) -> float:
    """How much memory has grown, without its largest step.

    What leaks grows in every round. A pool that a library makes once, when two threads happen to meet, is a
    single step, and a soak of a few rounds may be the one that sees it.

    Args:
        memory_mb: memory after each round.
    """
    steps = np.diff(memory_mb)
    return float(steps.sum() - steps.max(initial=0.0))


def _compare(outcome: Outcome, name: str, uses: list[_Use]) -> None:
    before, after = uses[0], uses[-1]
    memory = f"memory {before.memory_mb:.0f} to {after.memory_mb:.0f} MB"
    files = f"open files {before.files} to {after.files}"
    outcome.check(growth_mb([use.memory_mb for use in uses]) < GROWTH_MB, f"{name}: {memory}")
    allowed = EXTRA_FILES if name == "page" else 0
    outcome.check(after.files <= before.files + allowed, f"{name}: {files}")
    outcome.notes.append(f"{name}: {memory}, {files}")


def _of(visitor: Visitor) -> _Use:
    return _Use(visitor.memory_mb() - visitor.held_mb, visitor.open_files())


def _train_on(images: Path, out: Path, seed: int, epochs: int) -> None:
    going_on = out.exists()
    train(
        images,
        out,
        size=None if going_on else 16,
        epochs=epochs,
        kind="vae",
        seed=seed,
        resume=going_on,
        keep_memory=False,
        **TINY,
    )


def _round(images: Path, folder: Path, seed: int) -> None:
    _train_on(images, folder / "run", seed, epochs=1)
    model = load_model(folder / "run")
    [made] = folder.glob("*.pack")
    pack = open_pack(made)
    fit_prior(model, pack)
    generate(model, 4, folder / "new")
    model.decode(model.encode(torch.from_numpy(pack.pixels(pack.rows())).permute(0, 3, 1, 2).float() / 255))
    build_index(images, folder / "index", folder / "run", embedding="code")
    open_index(folder / "index", model=folder / "run").search(images / "class 0", 3)
    for name in ("run", "new", "index"):
        shutil.rmtree(folder / name)


def _update(outcome: Outcome, folder: Path) -> None:
    """Add images to an indexed folder and take older ones out, then update the index."""
    images = folder / "changing"
    make_images(images, CHANGES, first=outcome.cases * CHANGES)
    for path in sorted(images.rglob("*.png"), key=lambda path: path.name)[: -8 * CHANGES]:
        path.unlink()
    build_index(images, folder / "changing-index", folder / "killed" / "model.safetensors", embedding="code")
    there = set(images.rglob("*.png"))
    found = open_index(folder / "changing-index").search(folder / "images" / "class 0" / "0000.png", 99)
    listed = {neighbour.path for neighbour in found.results[0].found}
    outcome.check(listed == there, f"update {outcome.cases}: {len(listed)} images for {len(there)} files")
