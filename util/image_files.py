"""Finding image files and decoding them: whatever is in a user's folder becomes 8-bit RGB, or one clear
error.

Cameras, scanners and annotation tools leave grey, palette, 16-bit, CMYK, transparent and rotated images in a
data set, and downloads leave broken ones. `open_rgb` converts the former and raises `ImageError` for the
latter.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from util.errors import UserError

# Compared in lower case.
IMAGE_EXTENSIONS = frozenset(".jpg .jpeg .jfif .png .bmp .tif .tiff .webp .gif .ppm .pgm .pbm".split())

# Only these decoders are tried, whatever a file is called: others of Pillow's start external programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it only warns: 256 MiB of RGB
MAX_SIDE = 65_535

# Pillow warns of odd metadata, and of large images, which are refused below. Set once, not per call: the
# filters belong to the process, and images are decoded from several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

REMEDY = "Replace or remove the file; training can also continue without it: --on_bad_image skip"

# What phones write, which Pillow cannot decode by itself: the brand at byte 8 of an ISO media file.
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
HEIC_EXTENSIONS = (".heic", ".heif")
HEIC_REMEDY = "Convert it to JPEG or PNG, for example with ImageMagick: magick photo.heic photo.jpg"


class ImageError(UserError):
    """An image file that cannot be used: its path, what was found, and what to do."""

    def __init__(self, path: str | os.PathLike, found: str, remedy: str = REMEDY) -> None:
        # All three become args, so that pickle carries the error out of a worker unchanged.
        super().__init__(os.fspath(path), found, remedy)
        self.path, self.found, self.remedy = self.args

    def __str__(self) -> str:
        # !r, because names may hold newlines and bytes that are not text.
        return f"cannot use the image {self.path!r}: {self.found}. {self.remedy}."


def list_images(folder: str | os.PathLike, limit: float = math.inf) -> list[Path]:
    """The image files under `folder`, in the order of their names' bytes, at most `limit` of them.

    Nested folders and symlinks are followed, each real folder once, so a link to a parent folder ends the
    descent. Hidden names and names without an image extension are skipped. A dangling or circular link counts
    as a file; opening it raises. Raises `UserError` when the folder is missing, unreadable or without images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the image folder {str(folder)!r} {found}. Check the path, --dataroot and --phase.")

    def stop(error: OSError) -> None:
        found = f"cannot list the folder {error.filename!r}: {error.strerror}"
        raise UserError(f"{found}. Check its permissions.") from error

    images: list[Path] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in files:
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if extension in IMAGE_EXTENSIONS:
                images.append(Path(parent, name))
            else:
                others[extension or "no extension"] += 1
    if not images:
        found = ", ".join(f"{count} of {kind!r}" for kind, count in others.most_common(5)) or "nothing"
        remedy = f"Put images into it; known are {' '.join(sorted(IMAGE_EXTENSIONS))}."
        if others.keys() & set(HEIC_EXTENSIONS):
            remedy += f" HEIC cannot be read. {HEIC_REMEDY}."
        raise UserError(f"no images in the folder {str(folder)!r} (found there: {found}). {remedy}")
    images.sort(key=os.fsencode)
    return images if limit == math.inf else images[: int(limit)]


def open_rgb(path: str | os.PathLike) -> Image.Image:
    """An image file as 8-bit RGB, upright; see `decode`."""
    return decode(path)[0]


def decode(path: str | os.PathLike) -> tuple[Image.Image, str]:
    """Decode an image file to 8-bit RGB, upright. Returns the image and Pillow's name for the file's mode.

    EXIF orientation is applied; transparency is composited over white; 16-bit, 32-bit and float grey are
    scaled to 0..255, not clipped; an animation gives its first frame. Raises nothing but `ImageError`.
    """
    _require_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _require_size(path, *image.size)
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image), image.mode
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            start = file.read(12)
        if start[4:8] == b"ftyp" and start[8:] in HEIC_BRANDS:
            raise ImageError(path, "it is a HEIC image, which cannot be read", HEIC_REMEDY) from error
        raise ImageError(path, f"it is not an image of a known format (it begins with {start!r})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"it declares more than the {MAX_PIXELS} pixels that are accepted") from error
    except MemoryError as error:
        raise ImageError(path, "decoding it needs more memory than there is") from error
    except Exception as error:  # decoders raise exceptions of every type for damaged data
        raise ImageError(path, f"it is damaged or cut short ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency over white, deep grey scaled to 0..255."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = to_rgba(image)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """An 8-bit Pillow image of any mode with its alpha channel."""
    if image.mode in ("La", "RGBa"):  # premultiplied alpha, which Pillow does not convert to RGBA in one step
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGBA")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits (H, W) as uint8.

    White is 65535 for integers, for floats the least of 1, 255 and 65535 that no value exceeds. Values
    outside these ranges are stretched from their least to their greatest.
    """
    whites = (65535.0,) if np.issubdtype(grey.dtype, np.integer) else (1.0, 255.0, 65535.0)
    grey = grey.astype(np.float64)
    low, high = grey.min(), grey.max()
    if not np.isfinite(low + high):
        raise ValueError("it holds infinite or undefined values")
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        grey, white = grey - low, max(high - low, 1e-30)
    return np.rint(grey * (255 / white)).astype(np.uint8)


def _require_file(path: str | os.PathLike) -> None:
    """Only regular files are opened: reading a pipe or a device might never end."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        found = "it is a link to a file that does not exist" if os.path.islink(path) else "it does not exist"
        raise ImageError(path, found) from error
    except (OSError, ValueError) as error:
        raise ImageError(path, f"it cannot be opened ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "it is not a regular file")
    if status.st_size == 0:
        raise ImageError(path, "it is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise ImageError(path, "reading it is not permitted", "Change the file's permissions")


def _require_size(path: str | os.PathLike, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(path, f"it has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        found = (
            f"it declares {width} x {height} pixels; accepted are {MAX_PIXELS} pixels, {MAX_SIDE} per side"
        )
        raise ImageError(path, found, "If it is a real photograph, scale it down; else remove it")
