"""Image files that a fuzzer grows: it keeps each change that reaches lines not seen before, ours or Pillow's.

The fuzzer is atheris (libFuzzer for Python), which is not installed with the rest: `pip install atheris`.
Unlike `torture.images` it decodes in its own process, so that a crash is one.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from torture.outcome import Outcome
from torture.seeds import seeds

SECONDS, MEMORY_MB = 5, 3_000
MOST_PIXELS = 1_000_000  # what is larger takes long, and is in `torture.images`
MOST_BYTES = 64 * 1024
_END = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Read so many files, grown from sound ones.

    Args:
        cases: files.
        seed: of the fuzzer.
        folder: to work in.
    """
    outcome = Outcome()
    if importlib.util.find_spec("atheris") is None:
        outcome.skipped = "needs a fuzzer: pip install atheris"
        return outcome
    corpus, found = folder / "corpus", folder / "found"
    corpus.mkdir()
    found.mkdir()
    for number, (extension, content) in enumerate(seeds()):
        (corpus / f"{number:03}{extension}").write_bytes(content)
    command = [
        *(sys.executable, "-m", "torture.guided", f"-runs={cases}", f"-seed={seed + 1}"),
        *(f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MOST_BYTES}"),
        *(f"-artifact_prefix={found}/", str(corpus)),
    ]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    done = _END.search(ended.stderr)
    is_good = ended.returncode == 0 and done is not None
    if outcome.check(is_good, _last_words(ended.stdout + ended.stderr, found)) and done:
        outcome.cases = int(done[1])
        outcome.notes.append(f"{int(done[2]):,} edges reached")
    return outcome


def _last_words(text: str, found: Path) -> str:
    contents = [f"{path.name}: {path.read_bytes()[:2_000].hex()}" for path in sorted(found.iterdir())]
    return "\n".join([*text.strip().splitlines()[-15:], *contents])


def _fuzz() -> None:
    import atheris

    with atheris.instrument_imports(include=["autoencode.data", "PIL"]):
        from autoencode.data.preprocessing import Limits, Preprocessing, read_image
        from autoencode.errors import ImageError

    size, limits = Preprocessing(16, 32), Limits(max_pixels=MOST_PIXELS)

    def read(content: bytes) -> None:
        try:
            pixels = read_image(content, size, limits)
        except ImageError as err:
            assert str(err) and "\n" not in str(err), f"a reason of no line, or of several: {err!r}"
        else:
            assert pixels.shape == (16, 32, 3)

    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz()
