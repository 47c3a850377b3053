"""From a decoded image to the network's input: the preprocess modes of CUT, each in two halves.

The first half, `resized`, is deterministic and works on PIL images, so its result can be cached. The second
half is a window (top, left, flip), drawn from the sample's generator; `data.augment` crops the whole batch on
the device.

| mode | first half | second half |
|---|---|---|
| resize_and_crop | both sides to load_size | crop |
| crop | nothing | crop |
| scale_width | width to load_size, aspect kept, but at least crop_size high | whole |
| scale_width_and_crop | the same | crop |
| scale_shortside_and_crop | shorter side up to load_size where it is less; larger images stay | crop |
| none | nothing | whole |

Crops are squares of crop_size: at a random place in training, in the middle at test. Whole images are resized
to the nearest multiples of 4, which the generator needs.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image

from util.errors import UserError
from util.image_files import MAX_PIXELS

MODES = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "scale_shortside_and_crop", "none")
MULTIPLE = 4  # the generator halves the image twice
MIN_SIDE = 16  # pixels; with less, its residual blocks see less than 4 x 4 positions

Window = tuple[int, int, bool]  # top and left in pixels, mirrored or not


def crops(mode: str) -> bool:
    """Whether a mode crops squares of crop_size (else it takes whole images, which may differ in size)."""
    return mode.endswith("crop")


def check_sizes(
    mode: str, load_size: int, crop_size: int, multiple: int = MULTIPLE, smallest: int = MIN_SIDE
) -> None:
    """Raise `UserError` unless the inputs of `mode` suit networks that need sides of at least `smallest`
    pixels, in multiples of `multiple`."""
    if mode not in MODES:
        raise UserError(f"--preprocess {mode} is unknown; possible are {', '.join(MODES)}.")
    if not crops(mode):
        if multiple > MULTIPLE:
            raise UserError(
                f"--preprocess {mode} gives images of any size, but the networks need multiples of "
                f"{multiple}. Use a mode that crops, such as resize_and_crop, with --crop_size {multiple}."
            )
        return
    if crop_size % multiple or crop_size < smallest:
        least = math.ceil(smallest / multiple) * multiple
        nearest = max(least, round(crop_size / multiple) * multiple)
        raise UserError(
            f"--crop_size {crop_size} cannot be used: the networks need a multiple of {multiple}, "
            f"at least {smallest}. Take {nearest}."
        )
    if mode != "crop" and load_size < crop_size:
        raise UserError(
            f"--load_size {load_size} is less than --crop_size {crop_size}: nothing of that size can be "
            f"cropped. Make --load_size at least {crop_size}."
        )


def target_size(size: tuple[int, int], mode: str, load_size: int, crop_size: int) -> tuple[int, int]:
    """The (width, height) to which the first half of `mode` resizes an image of `size`."""
    width, height = size
    if mode == "resize_and_crop":
        width = height = load_size
    elif mode in ("scale_width", "scale_width_and_crop"):
        width, height = load_size, max(load_size * height // width, crop_size)
    elif mode == "scale_shortside_and_crop" and min(size) < load_size:
        scale = load_size / min(size)
        width, height = round(width * scale), round(height * scale)
    return (width, height) if crops(mode) else (_nearest_multiple(width), _nearest_multiple(height))


def resized(image: Image.Image, mode: str, load_size: int, crop_size: int) -> Image.Image:
    """The deterministic half of `mode`, bicubic. Raises `UserError` with the sizes for an unusable image."""
    width, height = target_size(image.size, mode, load_size, crop_size)
    was = f"it is {image.width} x {image.height} pixels"
    if crops(mode) and min(width, height) < crop_size:
        raise UserError(f"{was}, less than the {crop_size} x {crop_size} that --preprocess {mode} crops")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{was}, too small: the networks need {MIN_SIDE} x {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise UserError(f"{was}, which --preprocess {mode} would enlarge to {width} x {height}")
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Preprocess:
    """How one run turns images into inputs.

    Args:
        mode: one of `MODES`.
        load_size, crop_size: pixels.
        flip: mirror half of the training images.
        training: random crops and flips (else middle crops, no flips).
        n_epochs: after this epoch (in the decaying half of training) images are resized to crop_size, so that
            resize_and_crop no longer crops; None: never.

    Raises:
        UserError: impossible settings.
    """

    mode: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    training: bool = True
    n_epochs: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self.mode, self.load_size, self.crop_size)

    @property
    def crops(self) -> bool:
        return crops(self.mode)

    def load_size_at(self, epoch: int) -> int:
        """The load size of this epoch, pixels."""
        decaying = self.training and self.n_epochs is not None and epoch > self.n_epochs
        return self.crop_size if decaying else self.load_size

    def resize(self, image: Image.Image, load_size: int) -> Image.Image:
        return resized(image, self.mode, load_size, self.crop_size)

    def draw_window(self, generator: random.Random, height: int, width: int) -> Window:
        """Where to crop a (height, width) image, and whether to mirror it.

        Always draws three numbers, so that options do not change the numbers drawn after them.
        """
        free = (height - self.crop_size, width - self.crop_size) if self.crops else (0, 0)
        top, left = (generator.randrange(room + 1) for room in free)
        flip = generator.random() < 0.5
        if not self.training:
            return free[0] // 2, free[1] // 2, False
        return top, left, flip and self.flip

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the window in a (height, width) image."""
        return (self.crop_size, self.crop_size) if self.crops else (height, width)


def _nearest_multiple(side: int) -> int:
    return round(side / MULTIPLE) * MULTIPLE
