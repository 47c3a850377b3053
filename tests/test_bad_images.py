"""Hostile and odd image files: each becomes the right RGB image or one `ImageError` that names it.

A case knows the right pixels, or that there are none, or (a flipped bit may not be noticed) leaves both open.
"""

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from scripts.judging import ImageSet
from util.errors import UserError
from util.image_files import (
    ImageError,
    grey_range,
    likely_range,
    list_images,
    open_rgb,
    parse_grey_range,
    to_rgb,
)

WIDTH, HEIGHT = 24, 16
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "GIF": {}, "PPM": {}, "WEBP": {"lossless": True, "exact": True}}
FORMATS = {**LOSSLESS, "JPEG": {"quality": 100, "subsampling": 0}}
EITHER = "the right size or an error"
ERROR = "an error"


class Case(NamedTuple):
    """A file by its name and content (or what makes it), and what should come of it."""

    name: str
    content: bytes | Callable[[str], object]
    expected: np.ndarray | str  # pixels (H, W, 3), ERROR or EITHER
    tolerance: int = 1
    may_fail: bool = False  # an error will do as well


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **FORMATS[kind], **options)
    return file.getvalue()


def photograph() -> Image.Image:
    """Smooth colours, so that JPEG stays close, and no symmetry, so that a wrong turn shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([40 + 8 * x, 30 + 12 * y, 200 - 4 * x - 3 * y], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(255 + (colour - 255.0) * (alpha[..., None] / 255))


def grey_of(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, -1)


def images_by_mode() -> dict[str, tuple[Image.Image, np.ndarray]]:
    """An image of each mode, and what it looks like, worked out without Pillow's conversions."""
    rgb = np.asarray(photograph()).astype(int)
    grey, alpha = rgb[..., 0], np.arange(WIDTH) * 10 % 256 + np.zeros((HEIGHT, 1), int)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3))
    indices = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 200
    image = lambda array, *mode: Image.fromarray(array.astype(np.uint8), *mode)  # noqa: E731

    def paletted(**transparency) -> Image.Image:
        paletted = image(indices, "L")
        paletted.putpalette(palette.astype(np.uint8).tobytes())
        paletted.info |= transparency
        return paletted

    black, deep, one = 20, (grey * 257).astype(np.uint16), (grey > 120) * 255
    cmyk = np.concatenate([255 - rgb, np.full_like(grey, black)[..., None]], -1)
    hole = np.where((indices == 7)[..., None], 255, palette[indices])
    return {
        "1": (image(one).convert("1"), grey_of(one)),
        "L": (image(grey), grey_of(grey)),
        "LA": (image(np.stack([grey, alpha], -1), "LA"), over_white(grey_of(grey), alpha)),
        "P": (paletted(), palette[indices]),
        "P with a transparent colour": (paletted(transparency=7), hole),
        "RGB": (photograph(), rgb),
        "RGBA": (image(np.concatenate([rgb, alpha[..., None]], -1)), over_white(rgb, alpha)),
        "CMYK": (image(cmyk, "CMYK"), rgb * (255 - black) / 255),
        "I;16": (Image.fromarray(deep), grey_of(grey)),
        "I of 16 bits": (Image.fromarray(deep.astype(np.int32)), grey_of(grey)),
        "F up to 1": (Image.fromarray((grey / 255).astype(np.float32)), grey_of(grey)),
        "F up to 65535": (Image.fromarray(deep.astype(np.float32)), grey_of(grey)),
    }


# What each format can hold without loss (JPEG: nearly).
HOLDS = {
    "PNG": ["1", "L", "LA", "P", "P with a transparent colour", "RGB", "RGBA", "I;16"],
    "TIFF": ["CMYK", "I of 16 bits", "F up to 1", "F up to 65535"],
    "BMP": ["RGB"],
    "GIF": ["P with a transparent colour"],
    "PPM": ["RGB", "I of 16 bits"],  # Pillow 10.3 writes 16 bits of mode I alone
    "WEBP": ["RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
}


def every_mode_and_format() -> Iterator[Case]:
    images = images_by_mode()
    for kind, mode in [(kind, mode) for kind, modes in HOLDS.items() for mode in modes]:
        image, expected = images[mode]
        content = encoded(image, kind, **({"transparency": 7} if "transparent" in mode else {}))
        yield Case(f"{mode}.{kind.lower()}", content, expected, 6 if kind == "JPEG" else 2)
    for mode, (image, expected) in images.items():  # as the inference takes them, without a file
        np.testing.assert_allclose(np.asarray(to_rgb(image)), expected, atol=2, err_msg=mode)


def damaged() -> Iterator[Case]:
    """Truncated anywhere, and with flipped bits. If only an end mark is missing, a decoder may succeed: then
    all must be right."""
    generator = random.Random(0)
    for kind in FORMATS:
        content, name = encoded(photograph(), kind), f"a.{kind.lower()}"
        with Image.open(BytesIO(content)) as whole:
            expected = np.asarray(whole.convert("RGB"))
        for part in range(1, 13, 2):
            pixels = ERROR if part < 10 else expected
            yield Case(name, content[: len(content) * part // 13], pixels, 1, True)
        yield Case(name, content + b"tail" * 9, expected)
        for number in range(16):
            flipped = bytearray(content)
            end = 64 if number < 8 else len(content)  # half of them in the header
            flipped[generator.randrange(min(end, len(content)))] ^= 1 << generator.randrange(8)
            yield Case(name, bytes(flipped), EITHER)


def misnamed() -> Iterator[Case]:
    yield Case("misnamed.jpg", encoded(photograph(), "PNG"), np.asarray(photograph()))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print showpage\n"
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for content in (b"<!DOCTYPE html>404</html>", random.Random(1).randbytes(4096), postscript, heic, b""):
        yield Case("fake.png", content, ERROR)
        yield Case("fake.tga", content, ERROR)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, data: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def odd_sizes() -> Iterator[Case]:
    for width, height in [(1, 1), (65500, 1)]:
        pixels = np.full((height, width, 3), (10, 200, 90), np.uint8)
        yield Case("thin.png", encoded(Image.fromarray(pixels), "PNG"), pixels)
    for width, height in [(0, 5), (5, 0), (100_000, 100_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)]:
        yield Case("huge.png", png_of(width, height, b"\0" * 64), ERROR)
    yield Case("huge.ppm", b"P6 20000 9000 255\n", ERROR)
    yield Case("bomb.png", encoded(Image.new("1", (12_000, 9_000)), "PNG"), ERROR)


def names_and_no_files() -> Iterator[Case]:
    yield Case("missing.png", lambda path: None, ERROR)
    yield Case("folder.png", os.mkdir, ERROR)
    yield Case("pipe.png", os.mkfifo, ERROR)
    yield Case("loop.png", lambda path: os.symlink("loop.png", path), ERROR)
    for name in ("new\nline.png", "<script>alert(1)<!--.png", os.fsdecode(b"\xff\xfe.png")):
        yield Case(name, encoded(photograph(), "PNG"), np.asarray(photograph()))
        yield Case(name, b"broken", ERROR)


def other_oddities() -> Iterator[Case]:
    expected = np.asarray(photograph())
    turned = {3: expected[::-1, ::-1], 6: np.rot90(expected), 8: np.rot90(expected, -1)}
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case("turned.png", encoded(Image.fromarray(stored.copy()), "PNG", exif=exif), expected)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        first, second = Image.new("RGB", (9, 9), (200, 10, 30)), Image.new("RGB", (9, 9), (0, 0, 255))
        content = encoded(first, kind, save_all=True, append_images=[second])
        yield Case(f"moving.{kind.lower()}", content, np.asarray(first))
    for value in (np.nan, np.inf):
        bad = Image.fromarray(np.full((8, 8), value, np.float32))
        yield Case("nan.tif", encoded(bad, "TIFF"), ERROR)


def complaint(case: Case, path: str) -> str | None:
    """What is wrong with how `case` was handled, if anything."""
    try:
        image = open_rgb(path)
    except ImageError as error:
        if not isinstance(case.expected, str) and not case.may_fail:
            return f"refused: {error}"
        return None if repr(path) in str(error) and "\n" not in str(error) else f"not named: {error}"
    pixels = np.asarray(image).astype(int)
    if image.mode != "RGB" or pixels.ndim != 3:
        return f"became {image.mode}"
    if isinstance(case.expected, str):
        return None if case.expected == EITHER else "accepted"
    off = np.abs(pixels - case.expected).max() if pixels.shape == case.expected.shape else 256
    return f"is off by {off}" if off > case.tolerance else None


@pytest.mark.filterwarnings("ignore")  # Pillow's, which pytest shows although util.image_files silences them
@pytest.mark.parametrize(
    "group", [every_mode_and_format, damaged, misnamed, odd_sizes, names_and_no_files, other_oddities]
)
def test_each_file_gives_its_pixels_or_one_error(group, tmp_path):
    wrong = {}
    for number, case in enumerate(group()):
        folder = tmp_path / str(number)  # of its own, so that names can be anything
        folder.mkdir()
        path = os.path.join(str(folder), case.name)
        if isinstance(case.content, bytes):
            Path(path).write_bytes(case.content)
        else:
            case.content(path)
        if what := complaint(case, path):
            wrong[path] = what
    assert wrong == {}


def other_profile() -> bytes:
    """An RGB profile with red and blue exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for one, other in ((b"rXYZ", b"bXYZ"), (b"rTRC", b"bTRC")):
        profile = profile.replace(one, b"....").replace(other, one).replace(b"....", other)
    return profile.replace(b"sRGB", b"BGRs").replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))


def test_colours_are_what_the_profile_says(tmp_path):
    swapped = np.asarray(photograph())[..., ::-1].astype(int)
    for image in (photograph(), photograph().convert("RGBA"), photograph().quantize(256)):
        image.save(tmp_path / "a.png", icc_profile=other_profile())
        found = open_rgb(tmp_path / "a.png")
        assert np.abs(np.asarray(found).astype(int) - swapped).max() <= (40 if image.mode == "P" else 4)
        found.save(tmp_path / "b.png")
        assert np.array_equal(open_rgb(tmp_path / "b.png"), found)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", other_profile()[:200]):
        photograph().save(tmp_path / "c.png", icc_profile=profile)
        assert np.array_equal(open_rgb(tmp_path / "c.png"), photograph())


@pytest.mark.parametrize(
    ("high", "dtype", "white"),
    [(1.0001, "float32", 1), (256, "float32", 255), (4095, "uint16", 4095), (65535, "uint16", 65535)],
)
def test_deep_grey_has_one_white_in_a_data_set(tmp_path, high, dtype, white):
    ramp = np.linspace(0, high, 256).reshape(16, 16).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "bright.tif")
    Image.fromarray(ramp // 4 if dtype == "uint16" else ramp / 4).save(tmp_path / "dark.tif")
    grey = grey_range(list_images(tmp_path))
    assert grey == (0, white)
    bright, dark = (np.asarray(open_rgb(tmp_path / name, grey)) for name in ("bright.tif", "dark.tif"))
    assert bright.max() == 255 and len(np.unique(bright)) > 250 and 62 <= dark.max() <= 64
    measured = list(ImageSet(tmp_path).images(""))  # as metrics read a folder
    assert np.array_equal(measured[0], bright) and np.array_equal(measured[1], dark)
    halved = np.asarray(open_rgb(tmp_path / "bright.tif", (0, 2 * white)))
    assert 127 <= halved.max() <= 128


def test_values_below_black_or_above_all_whites_are_stretched():
    assert likely_range(-1000, 3000) == (-1000, 3000) and likely_range(0, 70000) == (0, 70000)
    assert likely_range(-0.001, 1) == (0, 1)
    assert parse_grey_range("auto") is None and parse_grey_range("-1000,3000") == (-1000, 3000)
    for wrong in ("4095", "5,5", "nan,1", "0,inf", "a,b"):
        with pytest.raises(UserError, match=f"--grey_range {wrong} is no range"):
            parse_grey_range(wrong)


def test_other_formats_are_read_and_what_is_skipped_is_named_once(tmp_path, capsys):
    kinds = [".tga", ".jp2", ".jpe"] + ([".avif"] if features.check("avif") else [])
    for kind in kinds:
        photograph().save(tmp_path / f"_{kind[1:]}{kind}")
    for name in ("a.psd", "b.psd", "c.mov", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):
        found = list_images(tmp_path)
    assert sorted(path.suffix for path in found) == sorted(kinds)
    assert all(open_rgb(path).size == (WIDTH, HEIGHT) for path in found)
    note = "left out, since they are no images that can be read: 2 of '.psd', 1 of '.mov'\n"
    assert capsys.readouterr().err == f"note: {str(tmp_path)!r}: {note}"
    for brand, remedy in {b"heic": "pillow-heif", b"mp42": "ffmpeg"}.items():
        (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand)
        with pytest.raises(ImageError, match=remedy):
            open_rgb(tmp_path / "phone.jpg")
