"""malloc is told to keep memory on glibc, and left alone elsewhere and where it is turned off."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from autoencode.training import process
from autoencode.training.process import keep_freed_memory

# Allocates and frees 64 MB again and again; with the memory kept, only the first time faults it in.
FAULTS = """
import ctypes, resource, sys
from autoencode.training.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
assert "torch" not in sys.modules
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def refuse_to_load_a_library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for libc, so that the tests leave the allocator of their own process alone."""
    loaded: list[str] = []

    def load(name: str) -> object:
        loaded.append(name)
        raise OSError("no such library")

    monkeypatch.setattr(process.ctypes, "CDLL", load)
    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.delenv("AUTOENCODE_KEEP_MEMORY", raising=False)
    return loaded


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_is_touched_off_linux(
    platform: str, monkeypatch: pytest.MonkeyPatch, refuse_to_load_a_library: list[str]
) -> None:
    monkeypatch.setattr(process.sys, "platform", platform)
    assert keep_freed_memory() is False
    assert not refuse_to_load_a_library


def test_the_environment_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, refuse_to_load_a_library: list[str]
) -> None:
    monkeypatch.setenv("AUTOENCODE_KEEP_MEMORY", "0")
    assert keep_freed_memory() is False
    assert not refuse_to_load_a_library


def test_another_c_library_is_left_alone(refuse_to_load_a_library: list[str]) -> None:
    assert keep_freed_memory() is False
    assert refuse_to_load_a_library == ["libc.so.6"]


def test_every_setting_must_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, answer: int) -> None:
            self.calls: list[tuple[int, int]] = []
            self.answer = answer

        def mallopt(self, parameter: int, value: int) -> int:
            self.calls.append((parameter, value))
            return self.answer

    for answer in (1, 0):
        libc = Libc(answer)
        monkeypatch.setattr(process.ctypes, "CDLL", lambda _name, libc=libc: libc)
        assert keep_freed_memory() is bool(answer)
        assert libc.calls[0] == (-4, 0)  # M_MMAP_MAX: nothing is mapped on its own any more


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc")
def test_freed_memory_is_not_faulted_in_again() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("keep", "return")
    ]
    assert faults[0] < faults[1] / 5
    assert ctypes.sizeof(ctypes.c_size_t) == 8
