"""Finding image files and decoding them: whatever lies in a user's folder becomes 8-bit RGB, or one clear error.

Cameras, scanners and annotation tools leave grey, palette, 16-bit, CMYK, transparent and rotated images in a data set, and
downloads leave broken ones. `open_rgb` turns the former into RGB and raises `ImageError` for the latter; `list_images` finds the
files. Nothing here knows about training.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from util.errors import UserError

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jfif .png .bmp .tif .tiff .webp .gif .ppm .pgm .pbm".split()
)  # compared in lower case

# Only these decoders are ever tried, whatever a file is called: Pillow knows others that start external programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it only warns: 256 MiB of RGB
MAX_SIDE = 65_535

# The EXIF orientation and the turn that puts such an image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112

# Pillow remarks on odd metadata, and on large images, which are refused below. Set once and not per call: the warning filters
# belong to the process, and images are decoded from several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

REMEDY = "Replace or remove the file; training can also go on without it: --on_bad_image skip"


class ImageError(UserError):
    """An image file that cannot be used. `path` is the file, `found` what is wrong with it, `remedy` what to do."""

    def __init__(self, path: str | os.PathLike, found: str, remedy: str = REMEDY) -> None:
        # All three become args, so that pickle carries the error from a worker as it is.
        super().__init__(os.fspath(path), found, remedy)
        self.path, self.found, self.remedy = self.args

    def __str__(self) -> str:
        # !r, because names may hold newlines and bytes that are no text.
        return f"cannot use the image {self.path!r}: {self.found}. {self.remedy}."


def list_images(folder: str | os.PathLike, limit: float = math.inf) -> list[Path]:
    """The image files under `folder`, in the order of their names' bytes, at most `limit` of them.

    Nested folders and symlinks are followed, each real folder once (so a link to a parent is no loop). Hidden names and
    names without an image extension are passed over. A dangling link counts as a file: opening it says what it is.
    Raises `UserError` when the folder is missing, is unreadable or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"the image folder {str(folder)!r} {found}. Check the path, and --dataroot and --phase that lead to it."
        )

    def stop(error: OSError) -> None:
        raise UserError(
            f"cannot list the folder {error.filename!r}: {error.strerror}. Check its permissions."
        ) from error

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
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UserError(
            f"no images in the folder {str(folder)!r} (found there: {found}). Put images into it; known are {known}."
        )
    images.sort(key=os.fsencode)
    return images if limit == math.inf else images[: int(limit)]


def open_rgb(path: str | os.PathLike) -> Image.Image:
    """An image file as 8-bit RGB, upright; see `decode`."""
    return decode(path)[0]


def decode(path: str | os.PathLike) -> tuple[Image.Image, str]:
    """Decode an image file of any common mode to 8-bit RGB, upright. Returns the image and Pillow's name for the file's mode.

    EXIF orientation is applied; transparency is laid over white; 16-bit, 32-bit and float grey are scaled to 0..255, not
    clipped; of an animation the first frame is taken. Raises `ImageError`, and nothing else, for whatever cannot be read.
    """
    _require_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _require_size(path, *image.size)
            image.load()
            return to_rgb(_upright(image)), image.mode
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(path, f"it is not an image of a known format ({_beginning(path)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"it declares more than the {MAX_PIXELS} pixels that are accepted") from error
    except MemoryError as error:
        raise ImageError(path, "decoding it needs more memory than there is") from error
    except Exception as error:  # decoders meet damaged data with exceptions of every type
        raise ImageError(path, f"it is damaged or cut short ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency over white, deep grey scaled to 0..255."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Deep grey values (H, W) as uint8. White is 65535 for integers; for floats the least of 1, 255, 65535 that holds them
    all. Values outside any of these ranges are stretched from their least to their greatest."""
    whites = (65535.0,) if np.issubdtype(grey.dtype, np.integer) else (1.0, 255.0, 65535.0)
    grey = grey.astype(np.float64)
    low, high = grey.min(), grey.max()
    if not np.isfinite(low + high):
        raise ValueError("it holds infinite or undefined values")
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        grey, white = grey - low, max(high - low, 1e-30)
    return np.rint(grey * (255 / white)).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _require_file(path: str | os.PathLike) -> None:
    """Only regular files are opened: reading a pipe or a device would wait or go on for ever."""
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
        found = f"it declares {width} x {height} pixels; accepted are up to {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise ImageError(path, found, "If it is a real photograph, scale it down; else remove it")


def _beginning(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return f"it begins with {file.read(12)!r}"
