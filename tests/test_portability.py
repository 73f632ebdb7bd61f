"""Applications work without fcntl, fork, timers, positioned reads and owners of files, as on Windows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from autoencode import Pack, Run, build_index, find_outliers, load_model

# Other libraries go by sys.platform, which stays: they are imported before their means are taken away.
WITHOUT_POSIX = """
import asyncio, json, multiprocessing.connection, multiprocessing.util, os, signal, sys, warnings
import faiss, matplotlib.pyplot, PIL.Image, scipy.stats, sklearn.neighbors, sklearn.linear_model, torch
for name in [name for name in sys.modules if name.partition(".")[0] in ("autoencode", "filelock")]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in (
    "fork forkpty pread pwrite preadv pwritev O_NONBLOCK O_NOFOLLOW O_CLOEXEC O_DIRECTORY fchmod "
    "fchown chown lchown sched_getaffinity getuid geteuid getgid getegid getpgid setsid setpgid killpg "
    "mkfifo statvfs sysconf posix_fadvise posix_fallocate sendfile uname getloadavg"
).split():
    delattr(os, name)
for name in "setitimer getitimer alarm SIGALRM SIGPROF SIGKILL SIGHUP SIGCHLD pthread_sigmask".split():
    delattr(signal, name)
warnings.filterwarnings("ignore", "only soft file lock")  # filelock takes this for Linux without fcntl
"""

APPLICATIONS = """
from pathlib import Path
import autoencode
from autoencode import Preprocessing
photos, model_path, index_path, out = map(Path, sys.argv[1:])
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    warnings.filterwarnings("ignore", "only soft file lock")
    pack = autoencode.pack_folder(photos, out / "pack", Preprocessing(32, 32))
[said] = [str(warning.message) for warning in warned]
assert "in this process" in said and "\\n" not in said, said
assert len(pack) == 48
assert autoencode.pack_folder(photos, out / "pack", Preprocessing(32, 32)).fingerprint == pack.fingerprint
model = autoencode.load_model(model_path)
files = sorted(photos.rglob("*.png"))
codes = model.encode(model.read(files))
assert codes.shape[0] == 48
assert len(autoencode.reconstruct(model, files, out / "reconstructed").results) == 48
index = autoencode.open_index(index_path)
nearest = [[str(one.path) for one in found.found] for found in index.search(files[:5], k=3).results]
assert len(autoencode.build_index(photos, out / "index", model_path, embedding="code").codes) == 48
outliers = autoencode.find_outliers(model, files, pack, fpr=0.3)
scores = [image.score for image in outliers.images]
run = autoencode.train(pack.path, out / "run", epochs=1, widths=(4, 8), code_size=8, batch_size=8)
assert autoencode.train(pack.path, run.folder, epochs=2, resume=True).metrics[-2]["epoch"] == 2
print(json.dumps([pack.fingerprint, codes.tolist(), nearest, scores]))
"""


def test_applications_need_no_posix_and_give_the_same(
    trained: Run, photos: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    made = tmp_path / "index"
    index = build_index(photos, made, trained.model_path, embedding="code")
    (tmp_path / "out").mkdir()
    arguments = map(str, (photos, trained.model_path, made, tmp_path / "out"))
    command = [sys.executable, "-c", WITHOUT_POSIX + APPLICATIONS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model, files = load_model(trained.model_path), sorted(photos.rglob("*.png"))
    assert json.loads(done.stdout) == [
        tiny_pack.fingerprint,
        model.encode(model.read(files)).tolist(),
        [[str(one.path) for one in found.found] for found in index.search(files[:5], k=3).results],
        [image.score for image in find_outliers(model, files, tiny_pack, fpr=0.3).images],
    ]
