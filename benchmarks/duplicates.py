"""How many altered copies `find_duplicates` finds, by kind of copy, and how many pairs it lists are none.

    python benchmarks/duplicates.py FOLDER ... [--most 1000] [--copied 40] [--pages 200]

Of each folder `--most` images are taken evenly, and of `--copied` of them one copy of every kind below is
made. A pair that is no image with its own copy, and no two copies of one image, counts as false, so that true
duplicates inside a set count against precision: `--list` prints those pairs, to be looked at. Intervals are
Wilson's, of 95 %. `--pages` renders pages of text as a further folder.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from autoencode import find_duplicates
from autoencode.data.sources import find_images
from autoencode.metrics.statistics import wilson_interval

Picture = Image.Image


def _saved(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _scaled(picture: Picture, factor: float) -> Picture:
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _cropped(picture: Picture, left: float, top: float, share: float) -> Picture:
    width, height = picture.size
    x, y = round(left * width), round(top * height)
    return picture.crop((x, y, x + round(share * width), y + round(share * height)))


def _marked(picture: Picture) -> Picture:
    width, height = picture.size
    layer = Image.new("L", picture.size)
    font = ImageFont.load_default(max(6, round(min(width, height) / 5)))
    ImageDraw.Draw(layer).text((width / 2, height / 2), "SAMPLE", fill=128, font=font, anchor="mm")
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, layer)


def _border(picture: Picture) -> Picture:
    return ImageOps.expand(picture, max(1, round(0.06 * min(picture.size))), "black")


# The shares are of a side: a crop of 75 % keeps 56 % of the area.
COPIES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG 30": lambda picture: _saved(picture, 30),
    "half size": lambda picture: _scaled(picture, 1 / 2),
    "quarter size": lambda picture: _scaled(picture, 1 / 4),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "watermark": _marked,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "crop 90 %": lambda picture: _cropped(picture, 0.05, 0.05, 0.9),
    "corner crop": lambda picture: _cropped(picture, 0.2, 0.2, 0.8),
    "border": _border,
    "mirror": ImageOps.mirror,
    "rotated by 90": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "rotated by 3": lambda picture: picture.rotate(3, Image.Resampling.BICUBIC),
    "crop 75 %": lambda picture: _cropped(picture, 0.125, 0.125, 0.75),
}


def evenly(paths: Sequence[Path], most: int) -> list[Path]:
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]


def opened(path: Path) -> Picture:
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def lay_out(paths: Sequence[Path], copied: int, out: Path) -> dict[Path, tuple[int, str]]:
    """Write the images and copies; return the number of the image and the kind of copy, of each file."""
    files = {}
    for number, path in enumerate(paths):
        files[Path(shutil.copy(path, out / f"{number:05}{path.suffix}"))] = number, "original"
    for number in np.linspace(0, len(paths) - 1, copied).astype(int).tolist():
        original = paths[number]
        files[Path(shutil.copy(original, out / f"{number:05}-exact{original.suffix}"))] = number, "exact"
        for kind, copy in COPIES.items():
            made = out / f"{number:05}-{kind.replace(' ', '-').replace('%', 'percent')}.jpg"
            copy(opened(original)).save(made, quality=90)
            files[made] = number, kind
    return files


TEXT = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had "
    "an they which one you were all her she there would their we him been has when who will no more if "
    "out so up said what its about than into them can only other time new some could these two may first "
    "then do like any my now over such our man me even most made after also did many off before must well "
    "back through years much where your way down should because long each just state those people too mr "
    "how "
)


def render_pages(count: int, out: Path) -> None:
    """Pages of text in one layout: different words in the same places."""
    generator, words = np.random.default_rng(0), TEXT.split()
    heading, font = ImageFont.load_default(28), ImageFont.load_default(15)
    for number in range(count):
        page = Image.new("RGB", (620, 877), "white")
        draw = ImageDraw.Draw(page)
        draw.text((60, 50), " ".join(generator.choice(words, 4)).title(), "black", heading)
        for line in range(36):
            indent = 60 if line % 9 else 85
            text = ""
            while draw.textlength(text, font) < 560 - indent:
                kept, text = text, f"{text} {generator.choice(words)}".strip()
            draw.text((indent, 110 + 20 * line), kept, "black", font)
        draw.text((310, 845), str(number + 1), "black", font)
        page.save(out / f"{number:04}.png")


def measure(name: str, paths: Sequence[Path], copied: int, listed: int, kept_in: Path) -> None:
    folder, cache = kept_in / f"{name}-images", kept_in / f"{name}-compared"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = lay_out(paths, copied, folder)
    started, processor = time.monotonic(), time.process_time()
    found = find_duplicates(folder, cache=cache)
    seconds = time.monotonic() - started, time.process_time() - processor
    groups = [group.files for group in found.groups]
    together = {
        frozenset((one.path, other.path))
        for group in groups
        for one, other in itertools.combinations(group, 2)
    }
    hits: dict[str, list[bool]] = defaultdict(list)
    original = {number: path for path, (number, kind) in files.items() if kind == "original"}
    for path, (number, kind) in files.items():
        if kind != "original":
            hits[kind].append(frozenset((path, original[number])) in together)
    named: dict[str, Counter[str]] = defaultdict(Counter)
    for file in itertools.chain.from_iterable(groups):
        # What was done to one copy is no name for how it differs from another.
        if file.like is not None and files[file.like][1] in ("original", "exact"):
            named[files[file.path][1]][" ".join(file.kinds)] += 1
    wrong = [pair for pair in together if len({files[path][0] for path in pair}) > 1]
    false_ratio = wilson_interval(len(together) - len(wrong), max(1, len(together)))
    print(f"\n{name}: {len(files):,} files, {seconds[0]:.0f} s, {seconds[1]:.0f} s of the processor")
    print("\n| copy | found | recall | named |\n| --- | --- | --- | --- |")
    for kind, values in hits.items():
        interval = wilson_interval(sum(values), len(values))
        recall = f"{np.mean(values):.3f} ({interval.low:.3f}–{interval.high:.3f})"
        names = ", ".join(f"{kinds} {count}" for kinds, count in named[kind].most_common())
        print(f"| {kind} | {sum(values)} of {len(values)} | {recall} | {names} |")
    precision = 1 - len(wrong) / max(1, len(together))
    print(f"\nfalse pairs {len(wrong)} of {len(together)}, precision {precision:.3f}", end=" ")
    print(f"({false_ratio.low:.3f}–{false_ratio.high:.3f}); possible pairs {len(found.possible)}", end="; ")
    print(f"threshold {found.threshold}, different images up to {found.different:.3f}")
    for one, other in sorted(tuple(sorted(pair)) for pair in wrong)[:listed]:
        print(f"  {paths[files[one][0]]} {files[one][1]} = {paths[files[other][0]]} {files[other][1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--copied", type=int, default=40)
    parser.add_argument("--pages", type=int, default=0)
    parser.add_argument("--list", type=int, default=20)
    parser.add_argument("--keep-in", type=Path, help="a folder that keeps the copies and what was computed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept_in = given.keep_in or Path(temporary)
        for folder in given.folders:
            paths = evenly(find_images(folder), given.most)
            measure(folder.name, paths, given.copied, given.list, kept_in)
        if given.pages:
            pages = kept_in / "pages"
            pages.mkdir(parents=True, exist_ok=True)
            render_pages(given.pages, pages)
            measure("pages of text", find_images(pages), given.copied, given.list, kept_in)


if __name__ == "__main__":
    main()
