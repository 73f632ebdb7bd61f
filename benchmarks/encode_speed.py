"""How fast this package and others encode a pack, with the same weights and images.

    python benchmarks/encode_speed.py [--images 512] [--rounds 5] [--side 128] [--only eager ours]
        [--network paper|best|efficientnet] [--source PHOTOS]

The network is the paper's encoder or that of the preset `best`, with random weights, or EfficientNet-Lite0.

Each contender lives in a process of its own and encodes the whole pack, pixels read and turned into floats
included, when it is its turn (A B C, A B C, ...). Ratios are medians over the rounds; the error is the
distance of a contender's codes from those of plain PyTorch, over the spread of these codes around their mean.
`kept` is the share of the ten nearest images of each image that are the same by both. Contenders that are not
installed are left out and named; OpenVINO is one (`pip install openvino`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from machine import machine

BATCH = 128
OPENVINO_PIXELS = 2**18  # computed at once: 16 images of 128x128, which it is fastest with
ROOT = Path(__file__).resolve().parents[1]
Floats = NDArray[np.float32]
Encode = Callable[[], Floats]


def opened(folder: Path) -> tuple:
    """The model, None for EfficientNet-Lite0, the pack and its rows."""
    from autoencode import load_model, open_pack

    pack, path = open_pack(folder / "images.pack"), folder / "model.safetensors"
    return load_model(path) if path.exists() else None, pack, np.unique(pack.rows())


def in_batches(folder: Path, encode: Callable) -> Encode:
    """A loop as a tutorial writes it: a batch of pixels, to floats in [0, 1], to codes."""
    import torch

    _, pack, rows = opened(folder)

    def run() -> Floats:
        parts = []
        for start in range(0, len(rows), BATCH):
            pixels = torch.from_numpy(pack.pixels(rows[start : start + BATCH]))
            parts.append(np.asarray(encode(pixels.permute(0, 3, 1, 2).float() / 255)))
        return np.concatenate(parts)

    return run


def plain_network(folder: Path, channels_last: bool = False):  # noqa: ANN201
    """Return the network that gives codes or descriptors, as a torch module."""
    import torch

    memory = torch.channels_last if channels_last else torch.contiguous_format
    model, *_ = opened(folder)
    if model is None:
        return described_by_port().to(memory_format=memory).eval()

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images):  # noqa: ANN001, ANN202
            return self.model.posterior(images).mean

    return Mean().to(memory_format=memory).eval()


def described_by_port():  # noqa: ANN201
    """EfficientNet-Lite0 by another package, with its batch normalisations, and our pooling of its maps."""
    import torch
    import torch.nn.functional as F
    from efficientnet_lite_pytorch import EfficientNet

    from autoencode.models.efficientnet import MEAN, SPREAD, pretrained_weights

    class Described(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name("efficientnet-lite0")
            self.network.load_state_dict(pretrained_weights())
            self.maps: dict[int, torch.Tensor] = {}
            for block in (10, 14):
                self.network._blocks[block].register_forward_hook(
                    lambda _module, _inputs, output, block=block: self.maps.update({block: output})
                )

        def forward(self, images):  # noqa: ANN001, ANN202
            last = self.network.extract_features((images - MEAN) / SPREAD)
            pooled = [(self.maps[10], 4), (self.maps[14], 4), (last, 1)]
            parts = [F.normalize(F.adaptive_avg_pool2d(maps, side).flatten(1)) for maps, side in pooled]
            return F.normalize(torch.cat(parts, 1))

    return Described()


def eager(folder: Path) -> Encode:
    import torch

    network = plain_network(folder)

    def encode(images):  # noqa: ANN001, ANN202
        with torch.no_grad():
            return network(images.contiguous()).numpy()

    return in_batches(folder, encode)


def bf16(folder: Path) -> Encode:
    import torch

    return in_batches(folder, _bf16(plain_network(folder, channels_last=True), torch))


def compiled(folder: Path) -> Encode:
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    network = torch.compile(plain_network(folder, channels_last=True))
    return in_batches(folder, _bf16(network, torch))


def _bf16(network, torch):  # noqa: ANN001, ANN202
    def encode(images):  # noqa: ANN001, ANN202
        placed = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return network(placed).float().numpy()

    return encode


def openvino(folder: Path) -> Encode:
    # The import, and each conversion, would report itself to Google Analytics.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as ov
    import torch

    _, pack, rows = opened(folder)
    height, width = pack.pixels(rows[:1]).shape[1:3]
    converted = ov.convert_model(plain_network(folder), example_input=torch.zeros(2, 3, height, width))
    converted.reshape({converted.input(0): ov.PartialShape([-1, 3, height, width])})
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = ov.Core().compile_model(converted, "CPU", settings)
    size = max(1, OPENVINO_PIXELS // (height * width))
    return in_batches(
        folder,
        lambda images: np.concatenate([network(part.numpy())[0] for part in torch.split(images, size)]),
    )


def ours(folder: Path, suffix: str = "") -> Encode:
    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()  # as the commands do
    from autoencode.data.loader import batches
    from autoencode.embedding import find_encoder

    model, pack, rows = opened(folder)
    kind = "code" if model else {128: "pretrained", 224: "pretrained-224"}[pack.preprocessing.height]
    encoder = find_encoder(f"{kind}{suffix}", model)
    return lambda: np.concatenate([encoder.encode(images) for images in batches(pack, rows, BATCH)])


CONTENDERS = {
    "eager": ("PyTorch, as a tutorial writes it", eager),
    "bf16": ("the same in bf16, channels last", bf16),
    "compile": ("the same, torch.compile with freezing", compiled),
    "openvino": ("OpenVINO, bf16", openvino),
    "ours": ("**autoencode**", ours),
    "ours-bf16": ("**autoencode**, `--embedding code-bf16`", lambda folder: ours(folder, "-bf16")),
}


def serve(name: str, folder: Path) -> None:
    """The process of one contender: at each line on stdin, encode once."""
    started = time.perf_counter()
    encode = CONTENDERS[name][1](folder)
    np.save(folder / f"{name}.npy", encode())
    print(json.dumps({"started": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        before = time.perf_counter(), time.process_time()
        encode()
        print(json.dumps({"waited": time.perf_counter() - before[0], "cpu": time.process_time() - before[1]}))
        sys.stdout.flush()
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}), flush=True)


class Contender:
    def __init__(self, name: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
        self.name, self.rounds = name, list[dict[str, float]]()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.started = self._answer().get("started")

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        return next((json.loads(line) for line in self.process.stdout if line.startswith("{")), {})

    def take_turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.peak = self._answer().get("peak", 0.0)
        self.process.wait()


def error(codes: Floats, reference: Floats) -> float:
    return float(np.linalg.norm(codes - reference) / np.linalg.norm(reference - reference.mean(0)))


def kept(codes: Floats, reference: Floats, network: str) -> float:
    from autoencode.index.neighbours import fit_vector_space
    from autoencode.index.request import same_neighbours

    space = fit_vector_space(reference, "cosine" if network == "efficientnet" else "whitened")
    return same_neighbours(space, reference, codes)


def table(contenders: Sequence[Contender], folder: Path, images: int, network: str) -> str:
    plain = contenders[0]
    reference = np.load(folder / f"{plain.name}.npy")
    lines = [
        "| contender | images/s | a CPU second | of plain PyTorch | spread | error | kept | start, s "
        "| peak GB |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in contenders:
        waited, cpu = (statistics.median(r[key] for r in one.rounds) for key in ("waited", "cpu"))
        codes = np.load(folder / f"{one.name}.npy")
        ratios = [a["waited"] / b["waited"] for a, b in zip(plain.rounds, one.rounds, strict=True)]
        lines.append(
            f"| {CONTENDERS[one.name][0]} | {images / waited:.0f} | {images / cpu:.0f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
            f"| {error(codes, reference):.1e} | {kept(codes, reference, network):.4f} | {one.started:.1f} "
            f"| {one.peak:.2f} |"
        )
    return "\n".join(lines)


def prepare(folder: Path, images: int, side: int, network: str, source: Path | None) -> None:
    import torch

    from autoencode import Autoencoder, ModelConfig, Preprocessing, pack_folder, save_model
    from packing import write_jpegs

    write_jpegs(folder / "images", images, source)
    preprocessing = Preprocessing(side, side)
    pack_folder(folder / "images", folder / "images.pack", preprocessing)
    if network == "efficientnet":
        return
    torch.manual_seed(0)
    config = ModelConfig() if network == "paper" else ModelConfig(network="residual", widths=(32, 64, 128))
    model = Autoencoder(config, preprocessing)
    if network == "best":  # whose convolutions start at zero
        torch.nn.init.normal_(model.to_mean.weight, std=0.01)
    save_model(folder / "model.safetensors", model, {})


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--network", choices=("paper", "best", "efficientnet"), default="paper")
    parser.add_argument("--source", type=Path, help="a folder of photographs, instead of drawn images")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, chosen.images, chosen.side, chosen.network, chosen.source)
        names = list(chosen.only)
        if chosen.network == "efficientnet":  # bf16 is its default
            names = [name for name in names if name != "ours-bf16"]
        contenders = [Contender(name, folder) for name in names]
        missing = [one.name for one in contenders if one.started is None]
        contenders = [one for one in contenders if one.started is not None]
        for _ in range(chosen.rounds):
            for one in contenders:
                one.take_turn()
        for one in contenders:
            one.stop()
        print(
            f"{machine()}; {chosen.network} at {chosen.side}x{chosen.side}, {chosen.images:,} images, "
            f"{chosen.rounds} rounds\n"
        )
        print(table(contenders, folder, chosen.images, chosen.network))
    if missing:
        print(f"\nNot installed, or failed: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
