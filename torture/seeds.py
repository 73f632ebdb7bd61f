"""Image files of every format and mode, damage to them, and files made to hurt."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

Generator = np.random.Generator

EXTENSION = {
    "JPEG": ".jpg",
    "MPO": ".mpo",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "PPM": ".ppm",
}
_MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "AVIF": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "RGBA", "I;16", "F"),
}
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def picture(height: int = 37, width: int = 53, seed: int = 0) -> Image.Image:
    """Return a smooth coloured picture."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y * (c + 1) + seed + c) for c in range(3)]
    return Image.fromarray(np.asarray(127.5 + 120 * np.stack(waves, -1), np.uint8))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a colour picture in any mode of Pillow."""
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
        assert converted is not None
        return converted
    return image.convert(mode)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def seeds() -> list[tuple[str, bytes]]:
    """Return sound files (extension, content): every format and mode, and the ways of writing them."""
    image, other = picture(), picture(seed=1)
    made = [
        (file_format, encoded(in_mode(image, mode), file_format))
        for file_format, modes in _MODES.items()
        for mode in modes
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def frames() -> dict[str, object]:  # new pictures each time: saving leaves settings on them
        return {"save_all": True, "append_images": [picture(seed=seed) for seed in (1, 2)]}

    rgba = image.convert("RGBA")
    rgba.putalpha(other.convert("L"))
    with_alpha = rgba.convert("P")
    made += [
        ("JPEG", encoded(image, "JPEG", progressive=True, exif=exif, icc_profile=profile)),
        ("JPEG", encoded(image, "JPEG", restart_marker_rows=1, subsampling=0, comment=b"comment")),
        ("MPO", encoded(image, "MPO", **frames())),
        ("PNG", encoded(rgba, "PNG", exif=exif, icc_profile=profile)),
        ("PNG", encoded(with_alpha, "PNG", transparency=bytes(range(256)))),
        ("PNG", encoded(image.convert("L"), "PNG", transparency=128)),
        ("PNG", encoded(image, "PNG", **frames())),
        ("WEBP", encoded(rgba, "WEBP", lossless=True, exif=exif, icc_profile=profile)),
        ("WEBP", encoded(image, "WEBP", **frames())),
        ("GIF", encoded(with_alpha, "GIF", transparency=3, interlace=True)),
        ("GIF", encoded(image, "GIF", **frames())),
        ("AVIF", encoded(rgba, "AVIF", exif=exif, icc_profile=profile)),
        ("AVIF", encoded(image, "AVIF", **frames())),
        ("TIFF", encoded(picture(), "TIFF", **frames(), icc_profile=profile)),
        ("TIFF", encoded(image.convert("1"), "TIFF", compression="group4")),
    ]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        made.append(("TIFF", encoded(image, "TIFF", compression=compression)))
    return [(EXTENSION[file_format], content) for file_format, content in made]


def damaged(content: bytes, other: bytes, generator: Generator) -> bytes:
    """Return a file after one to four blows, with the checksums of a PNG made right again."""
    for _ in range(int(generator.integers(1, 5))):
        blow = _BLOWS[int(generator.integers(len(_BLOWS)))]
        content = blow(content, other, generator) if content else other[: int(generator.integers(64))]
    return with_right_checksums(content) if content.startswith(b"\x89PNG") else content


def _place(content: bytes, generator: Generator) -> int:
    """Return a place, half of the time near the start, where headers are."""
    reach = len(content) if generator.random() < 0.5 else min(len(content), 128)
    return int(generator.integers(max(1, reach)))


def _cut(content: bytes, _: bytes, generator: Generator) -> bytes:
    return content[: _place(content, generator)]


def _flip(content: bytes, _: bytes, generator: Generator) -> bytes:
    changed = bytearray(content)
    for _number in range(int(generator.integers(1, 9))):
        changed[_place(content, generator)] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def _number(content: bytes, _: bytes, generator: Generator) -> bytes:
    """Put a number where lengths, sizes and counts may be."""
    value = _INTERESTING[int(generator.integers(len(_INTERESTING)))]
    size = int(generator.choice([1, 2, 4]))
    order = "little" if generator.random() < 0.5 else "big"
    place = _place(content, generator)
    number = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
    return content[:place] + number + content[place + size :]


def _splice(content: bytes, other: bytes, generator: Generator) -> bytes:
    return content[: _place(content, generator)] + other[_place(other, generator) :]


def _double(content: bytes, _: bytes, generator: Generator) -> bytes:
    start, stop = sorted((_place(content, generator), _place(content, generator)))
    return content[:stop] + content[start:stop] * int(generator.integers(1, 4)) + content[stop:]


def _drop(content: bytes, _: bytes, generator: Generator) -> bytes:
    start, stop = sorted((_place(content, generator), _place(content, generator)))
    return content[:start] + content[stop:]


def _noise(content: bytes, _: bytes, generator: Generator) -> bytes:
    place, length = _place(content, generator), int(generator.integers(1, 64))
    return content[:place] + generator.bytes(length) + content[place + length :]


_BLOWS: tuple[Callable[[bytes, bytes, Generator], bytes], ...] = (
    *(_cut, _flip, _flip, _number, _number, _splice, _double, _drop, _noise),
)


def with_right_checksums(content: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what is in them, as far as there are chunks."""
    mended, place = bytearray(content[:8]), 8
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(content):
            break
        body = content[place + 4 : end]
        mended += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place = end + 4
    return bytes(mended) + content[place:]


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, data: bytes, *before: bytes) -> bytes:
    """Return a PNG of given header and pixel data, with further chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return so many zero bytes, compressed."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    whole, rest = divmod(count, len(block))
    return (
        b"".join(packer.compress(block) for _ in range(whole)) + packer.compress(bytes(rest)) + packer.flush()
    )


def tiff(*directories: list[tuple[int, int, int, int]], following: tuple[int, ...] = ()) -> bytes:
    """Return a TIFF of directories of (tag, type, count, value); `following` are next offsets."""
    content, offsets, place = b"", [], 8
    for entries in directories:
        offsets.append(place)
        place += 2 + 12 * len(entries) + 4
    for number, entries in enumerate(directories):
        last = (*offsets[1:], 0)[number]
        after = following[number] if number < len(following) else last
        body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        content += struct.pack("<H", len(entries)) + body + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + content


def _tiff_entries(width: int, height: int, **more: int) -> list[tuple[int, int, int, int]]:
    tags = {256: width, 257: height, 258: 8, 259: more.get("compression", 1), 262: 1, 273: 8, 277: 1}
    tags |= {278: height, 279: width * height & 0xFFFFFFFF}
    return [(tag, 4, 1, value) for tag, value in tags.items()]


def made_to_hurt() -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of files after the shapes that have crashed, hung or bloated image libraries."""
    image = picture()
    jpeg, gif, plain = encoded(image, "JPEG"), encoded(image, "GIF"), encoded(image, "PNG")
    yield "empty.png", b""
    yield "wrong-extension.gif", jpeg
    yield "text.jpg", b"hello, I am not an image\n" * 40
    yield "svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n"
    for width, height in ((0, 0), (0, 9), (9, 0), (2**31 - 1, 2**31 - 1), (65535, 65535), (1, 2**31 - 1)):
        name = f"{width}x{height}"
        yield f"{name}.png", png(width, height, 8, 2, zeros(64))
        yield f"{name}.ppm", b"P6\n%d %d\n255\n" % (width, height) + bytes(64)
        yield f"{name}-ascii.ppm", b"P3\n%d %d\n255\n1 2 3\n" % (width, height)
        yield (
            f"{name}.bmp",
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, width, height, 1, 24, *[0] * 6),
        )
        yield f"{name}.tif", tiff(_tiff_entries(width, height))
        yield f"{name}-lzw.tif", tiff(_tiff_entries(width, height, compression=5))
        yield f"{name}.gif", gif[:6] + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + gif[10:]
        start = jpeg.index(b"\xff\xc0") + 5
        size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        yield f"{name}.jpg", jpeg[:start] + size + jpeg[start + 4 :]
    yield "no-frames.gif", gif[:13] + b";"
    yield "no-data.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
    entries = _tiff_entries(16, 16)
    yield "loop-to-itself.tif", tiff(entries, following=(8,))
    yield "loop-of-two.tif", tiff(entries, entries, following=(8 + 2 + 12 * len(entries) + 4, 8))
    yield "loop-of-sub-directories.tif", tiff([*entries, (330, 4, 1, 8), (34665, 4, 1, 8)])
    yield "count-of-everything.tif", tiff([(tag, 4, 0xFFFFFFFF, 8) for tag, *_ in entries])
    yield (
        "many-strips.tif",
        tiff([e for e in entries if e[0] not in (273, 279)] + [(273, 4, 2**28, 8), (279, 4, 2**28, 8)]),
    )
    yield "huge-tiles.tif", tiff([*entries, (322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 8)])
    yield "all-tags.tif", tiff([(tag, 13, 2, 0xFFFFFFF0) for tag in range(0, 65535, 7)])
    fractions = bytes(40_000_300)
    yield "fractions.tif", tiff([*entries, (282, 5, 5_000_000, 200)]) + fractions
    upright = chunk(b"eXIf", tiff([(0x0112, 5, 5_000_000, 26)]) + fractions)
    yield "fractions.png", png(9, 9, 8, 2, zeros(9 * 28), upright)
    exif = b"Exif\0\0" + tiff([(0x8769, 4, 1, 8), (0x0112, 3, 1, 6)], following=(8,))
    yield "loop-in-exif.jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    yield "padding.jpg", jpeg[:2] + b"\xff" * 20_000_000 + jpeg[2:]
    yield "restarts.jpg", jpeg[:2] + b"\xff\xd0" * 10_000_000 + jpeg[2:]
    yield "million-comments.jpg", jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:]
    long = b"Exif\0\0" + tiff([(0x0112, 3, 1, 6)]) + bytes(60_000)
    yield "long-exif.jpg", jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", len(long) + 2) + long) * 9 + jpeg[2:]
    yield "text-million.png", png(9, 9, 8, 2, zeros(9 * 28), chunk(b"tEXt", b"a\0b") * 200_000)
    frame = gif[gif.index(b",") : -1]
    yield "10000-frames.gif", gif[: gif.index(b",")] + frame[:10] + frame[10:] * 1 + frame * 9999 + b";"
    yield "endless-comment.gif", gif[:13] + b"!\xfe" + b"\xff" + bytes(255) * 9 + b"\xff" * 99999
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "profile-of-noise.png", encoded(image, "PNG", icc_profile=bytes(range(256)) * 40)
    yield "profile-of-nothing.jpg", encoded(image, "JPEG", icc_profile=bytes(128))
    lying = profile[:128] + struct.pack(">I", 0xFFFFFFFF) + profile[132:]
    yield "profile-of-endless-tags.png", encoded(image, "PNG", icc_profile=lying)
    grey = profile[:16] + b"GRAY" + profile[20:]
    yield "profile-of-another-space.png", encoded(image, "PNG", icc_profile=grey)
    yield "profile-bomb.png", png(9, 9, 8, 2, zeros(9 * 28), chunk(b"iCCP", b"x\0\0" + zeros(2**28)))
    yield "text-bomb.png", png(9, 9, 8, 2, zeros(9 * 28), *[chunk(b"zTXt", b"x\0\0" + zeros(2**26))] * 40)
    yield "exif-bomb.png", png(9, 9, 8, 2, zeros(9 * 28), chunk(b"eXIf", tiff(entries)[:20] * 99999))
    yield "pixels-bomb.png", png(9, 9, 8, 2, zeros(2**28))
    yield "thousand-palettes.png", png(9, 9, 8, 3, zeros(90), *[chunk(b"PLTE", bytes(768))] * 5000)
    yield "nothing-after-header.avif", encoded(image, "AVIF")[:40]
    riff = encoded(image, "WEBP")
    yield "lying-length.webp", riff[:4] + b"\xff" * 4 + riff[8:]
    yield "plain-without-end.ppm", b"P3\n9 9\n255\n" + b"#" * 10**6
    yield "huge-number.ppm", b"P6\n" + b"9" * 10**6 + b" 9\n255\n"
    yield "spaces.ppm", b"P3\n9 9\n255\n" + b" " * 10**7
    yield "not-finite.tif", encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")
    yield "sound.png", plain


def made_to_be_heavy() -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of small files that are just within the limit of 200 million pixels."""
    side = 14_000
    yield "heavy-rgb.png", png(side, side, 8, 2, zeros(side * (side * 3 + 1)))
    yield "heavy-16-bit.png", png(side, side, 16, 0, zeros(side * (side * 2 + 1)))
    yield "heavy-rgba-16-bit.png", png(side, side, 16, 6, zeros(side * (side * 8 + 1)))
    yield "heavy-plain.ppm", b"P2\n5000 5000\n255\n" + b"1 " * 25_000_000
    yield "heavy-scans.jpg", _many_scans()
    floats = Image.new("F", (side, side), 0.5)
    yield "heavy-float.tif", encoded(floats, "TIFF", compression="tiff_adobe_deflate")
    yield "heavy-interlaced.gif", encoded(Image.new("P", (side, side)), "GIF", interlace=True)
    yield "heavy.webp", encoded(Image.new("RGB", (side, side)), "WEBP", lossless=True, method=0)
    yield "heavy.bmp", _run_length_bmp(side)


def _many_scans() -> bytes:
    """A progressive JPEG that sends the same scan again and again."""
    content = encoded(Image.new("RGB", (6000, 6000)), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * 400 + content[-2:]


def _run_length_bmp(side: int) -> bytes:
    row = b"\xff\x01" * (side // 255) + bytes([side % 255, 1]) + b"\0\0"
    data = row * side + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", 54 + 1024 + len(data), 0, 54 + 1024) + header + bytes(1024) + data
