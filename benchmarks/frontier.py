"""What a larger network buys: validation error against the time of training, of three sizes of `best`.

    OMP_NUM_THREADS=1 python benchmarks/frontier.py PACK [--epochs 1 2 5] [--out docs/figures/frontier.png]

`best` with half its widths, its own and twice them, for a few numbers of epochs each: its learning rate
falls over the whole run, so only the end of a run counts. Beside them the paper's autoencoder, whose rate is
constant, after each epoch of one run, and PCA of the same code size, of scikit-learn on the same images.
Times are processor time, validation after each epoch included: of one thread what one waits on an idle core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from autoencode.training.process import keep_freed_memory

keep_freed_memory()

import matplotlib.pyplot as plt  # noqa: E402 - after the allocator, as in the verbs
import torch  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402

from autoencode import Pack, TrainProgress, open_pack, train  # noqa: E402
from autoencode.pixels import to_float  # noqa: E402
from machine import machine  # noqa: E402

SIZES = {"half the widths": (16, 32, 64), "`best`": (32, 64, 128), "twice the widths": (64, 128, 256)}
COLOURS = dict(zip(SIZES, ("#56b4e9", "#0072b2", "#009e73"), strict=True))
Point = tuple[int, float, float]  # epochs, seconds, validation MSE


def points(source: Path, **settings: object) -> list[Point]:
    """One run: after each epoch, the processor time so far and the error on validation images."""
    found: list[Point] = []
    started = time.process_time()

    def note(progress: TrainProgress) -> None:
        if progress.record is not None:
            found.append((progress.epoch, time.process_time() - started, progress.record["val_mse"]))

    with tempfile.TemporaryDirectory() as folder:
        train(source, Path(folder) / "run", progress=note, **settings)
    return found


def pca_point(pack: Pack, components: int) -> Point:
    training, validation = (
        to_float(pack.pixels(rows)).flatten(1).numpy()
        for rows in (pack.training_rows(), pack.rows("validation"))
    )
    started = time.process_time()
    fitted = PCA(components, svd_solver="randomized", random_state=0).fit(training)
    seconds = time.process_time() - started
    restored = fitted.inverse_transform(fitted.transform(validation)).clip(0, 1)
    return 0, seconds, float(((restored - validation) ** 2).mean())


def drawn(lines: dict[str, list[Point]], pca: Point, code: int, out: Path) -> None:
    """All of them, and those that start from PCA again on a scale of their own."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for axes, names in zip(panels, (lines, SIZES), strict=True):
        for name in names:
            _, seconds, errors = zip(*lines[name], strict=True)
            colour = COLOURS.get(name, "#d55e00")
            axes.plot(seconds, errors, "o-", color=colour, label=name.replace("`", ""), markersize=4)
        axes.axhline(pca[2], color="#6b7280", linestyle="--", label=f"PCA, {code} components")
        axes.set_xlabel("processor time of training, seconds")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("validation mean squared error")
    panels[0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--code-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/frontier.png"))
    chosen = parser.parse_args()
    code = chosen.code_size
    print(f"{machine()}; {torch.get_num_threads()} threads, code {code}\n")
    print("| network | epochs | processor seconds | validation MSE |\n| --- | --- | --- | --- |")

    def told(name: str, point: Point) -> Point:
        print(f"| {name} | {point[0] or '-'} | {point[1]:.0f} | {point[2]:.5f} |", flush=True)
        return point

    pca = told("PCA", pca_point(open_pack(chosen.pack), code))
    paper = points(chosen.pack, preset="paper-ae", code_size=code, epochs=2 * max(chosen.epochs))
    lines = {"paper-ae": [told("`paper-ae`", point) for point in paper]}
    for name, widths in SIZES.items():
        settings = {"preset": "best", "code_size": code, "widths": widths}
        lines[name] = [
            told(name, points(chosen.pack, epochs=epochs, **settings)[-1]) for epochs in chosen.epochs
        ]
    drawn(lines, pca, code, chosen.out)


if __name__ == "__main__":
    main()
