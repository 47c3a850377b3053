"""Finding image files and decoding them: whatever a user has becomes 8-bit RGB, or one `ImageError`."""

import contextlib
import functools
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from util.errors import UserError, note_once

# Only these decoders are tried, whatever a file is called: others of Pillow's start external programs (EPS).
FORMATS = ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000"]

IMAGE_EXTENSIONS = set(
    ".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .webp .gif .ppm .pgm .pbm .jp2 .tga".split()
)
if features.check("avif"):
    FORMATS.append("AVIF")
    IMAGE_EXTENSIONS.add(".avif")
with contextlib.suppress(ImportError):  # an optional package
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
    IMAGE_EXTENSIONS.update((".heic", ".heif"))

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it only warns: 256 MiB of RGB

# Pillow warns of odd metadata, and of large images, which are refused below. Set once, not per call: the
# filters belong to the process, and images are decoded from several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

VIDEO = "It seems to be a video: translate its frames, as ffmpeg -i VIDEO frames/%05d.png makes them"
REMEDY = "Replace or remove the file"

WHITES = (1, 255, 1023, 4095, 16383, 65535)  # of floats, and of sensors with 8 to 16 bits
SAMPLED = 32  # files that `grey_range` reads


class ImageError(UserError):
    """An image file that cannot be used: its path, what was found, and what to do."""

    def __init__(self, path: str | os.PathLike, found: str, remedy: str = REMEDY) -> None:
        # All three become args, so that pickle carries the error out of a worker unchanged.
        super().__init__(os.fspath(path), found, remedy)
        self.path, self.found, self.remedy = self.args

    def __str__(self) -> str:
        # !r, because names may hold newlines and bytes that are not text.
        ways = f"{self.remedy}, or leave it out: --on_bad_image skip"
        return f"cannot use the image {self.path!r}: {self.found}. {ways}."


def list_images(folder: str | os.PathLike, limit: float = math.inf) -> list[Path]:
    """The image files under `folder`, in the order of their names' bytes, at most `limit` of them.

    Nested folders and symlinks are followed, each real folder once. Hidden names are skipped; names without
    an image extension too, and counted in one note on stderr. Raises `UserError` when the folder is missing
    or without images, OSError when it cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the folder {str(folder)!r} does not exist: check the path")

    def stop(error: OSError) -> None:
        raise error

    images: list[Path] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in files:
            extension = os.path.splitext(name)[1].lower()
            if extension in IMAGE_EXTENSIONS and not name.startswith("."):
                images.append(Path(parent, name))
            elif not name.startswith("."):
                others[extension or "no extension"] += 1
    found = ", ".join(f"{count} of {kind!r}" for kind, count in others.most_common(5))
    if not images:
        known = f"known are {' '.join(sorted(IMAGE_EXTENSIONS))}, and HEIC with pillow-heif"
        raise UserError(f"no images in the folder {str(folder)!r}, which holds {found or 'nothing'}; {known}")
    if others:
        note_once(f"{str(folder)!r}: left out, since they are no images that can be read: {found}")
    images.sort(key=os.fsencode)
    return images if limit == math.inf else images[: int(limit)]


def read_image(path: str | os.PathLike) -> Image.Image:
    """An image file in its own mode, upright; of an animation the first frame. Raises `ImageError` alone."""
    if not os.path.isfile(path):  # reading a pipe or a device might never end
        raise ImageError(path, "it cannot be read: there is no such file")
    try:
        # Almost any bytes can be taken for a TGA file, which has no signature.
        formats = [*FORMATS, "TGA"] if os.fspath(path).lower().endswith(".tga") else FORMATS
        with Image.open(path, formats=formats) as image:
            if not 0 < image.width * image.height <= MAX_PIXELS:
                sides = f"{image.width} x {image.height}"
                raise ImageError(path, f"it has {sides} pixels; 1 to {MAX_PIXELS} are read")
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
        if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
            raise ImageError(path, "it holds infinite or undefined values")
        return image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            start = file.read(10)
        remedy = REMEDY
        if start[4:8] == b"ftyp":  # by its brand: heic, mif1, ...; others are those of videos
            heic = start[8:] in (b"he", b"mi", b"ms")
            remedy = "HEIC is read with pillow-heif: install it, or convert to JPEG" if heic else VIDEO
        raise ImageError(path, "it is not an image of a known format", remedy) from error
    except Exception as error:  # decoders raise exceptions of every type for damaged data
        what = f"{type(error).__name__}: {error}"
        raise ImageError(path, f"it is damaged or cannot be read ({what})") from error


def open_rgb(path: str | os.PathLike, grey: tuple[float, float] | None = None) -> Image.Image:
    """An image file as 8-bit sRGB, upright. Raises nothing but `ImageError`."""
    return to_rgb(read_image(path), grey)


def to_rgb(image: Image.Image, grey: tuple[float, float] | None = None) -> Image.Image:
    """Any image as 8-bit sRGB, transparency over white; `grey`: black and white of deep grey."""
    if is_deep(image):
        values = np.asarray(image).astype(np.float64)
        black, white = grey or likely_range(values.min(), values.max())
        scaled = (values - black) * (255 / max(white - black, 1e-30))
        return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = to_rgba(image)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return _as_srgb(image, "RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """An 8-bit Pillow image of any mode as sRGB with its alpha channel."""
    if image.mode in ("La", "RGBa"):  # premultiplied alpha, which Pillow does not convert to RGBA in one step
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return _as_srgb(image, "RGBA")


def _as_srgb(image: Image.Image, mode: str) -> Image.Image:
    """An 8-bit image as `mode`, RGB or RGBA, with the colours that its profile says."""
    plain = image if image.mode == mode else image.convert(mode)
    source, transform = _profile_transform(image.info.get("icc_profile"))
    is_grey = image.mode in ("1", "L", "LA")
    if source is None or (source == "CMYK") != (image.mode == "CMYK") or (source == "L" and not is_grey):
        return plain
    colours = ImageCms.applyTransform(image.convert(source), transform)
    if mode == "RGBA":
        colours.putalpha(plain.getchannel("A"))
    colours.info.pop("icc_profile", None)
    return colours


@functools.lru_cache(maxsize=32)
def _profile_transform(profile: bytes | None):
    """The mode that a profile describes and its transform to sRGB; (None, None): there is nothing to do."""
    if not profile:
        return None, None
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(described.profile.xcolor_space)
        if mode is None or "sRGB" in ImageCms.getProfileDescription(described):
            return None, None
        return mode, ImageCms.buildTransform(described, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # a broken profile: viewers show such images without it
        return None, None


def is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def likely_range(low: float, high: float) -> tuple[float, float]:
    """What is black and white in images whose values lie within `low` and `high`.

    Black is 0 and white the least of `WHITES` that no value exceeds by more than 1 %. Where values are below
    0 or above all of these, black and white are `low` and `high`.
    """
    white = next((white for white in WHITES if high <= 1.01 * white), None)
    if white is None or low < -0.01 * white:
        return low, high
    return 0.0, float(white)


def grey_range(paths: Sequence[str | os.PathLike]) -> tuple[float, float] | None:
    """The `likely_range` of the files of a data set, by some of them; None if those have 8 bits."""
    extremes: list[float] = []
    for path in filter(os.path.isfile, paths[:: -(-len(paths) // SAMPLED)]):
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:  # said in its turn
            if is_deep(image) and np.isfinite(values := np.asarray(image)).all():
                extremes += [float(values.min()), float(values.max())]
    return likely_range(min(extremes), max(extremes)) if extremes else None


def parse_grey_range(text: str) -> tuple[float, float] | None:
    """The value of `--grey_range`: LOW,HIGH, or None for auto. Raises `UserError`."""
    if text == "auto":
        return None
    with contextlib.suppress(ValueError):
        low, high = map(float, text.split(","))
        if -math.inf < low < high < math.inf:
            return low, high
    raise UserError(f"--grey_range {text} is no range: give black and white, such as 0,4095, or auto")


def describe_grey_range(grey: tuple[float, float]) -> str:
    black_and_white = f"{grey[0]:g} as black and {grey[1]:g} as white"
    return f"grey images of more than 8 bits are read with {black_and_white} (--grey_range LOW,HIGH)"
